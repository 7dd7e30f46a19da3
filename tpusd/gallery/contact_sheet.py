"""A run's contact sheet: which of its images it shows, and in how many columns. Reads them back from the directory."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tpusd import storage
from tpusd.records.layout import CONTACT_SHEET
from tpusd.records.manifest import ImageRecord
from tpusd.storage.pictures import open_picture

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = 8
MAX_IMAGES = 96  # more are too many to look at


def write_contact_sheet(path: Path, records: Sequence[ImageRecord], num_images: int, num_rows: int) -> None:
    """Thumbnails of a run's images: the first copies of the first rows.

    path: the run directory.
    records: its manifest.
    num_images: of the whole run, which may not be finished.
    num_rows: prompts of the run.
    """
    from tpusd.gallery.drawing import encode_sheet
    from tpusd.gallery.grid import contact_sheet

    first_copy = min((record.copy for record in records), default=0)
    end = first_copy + (COLUMNS if num_rows > 1 else MAX_IMAGES)
    first = itertools.islice((record for record in records if record.copy < end), MAX_IMAGES)
    shown = sorted(first, key=lambda record: record.key)
    if not shown:
        return
    note = f"{len(shown)} of {num_images} images; all of them are in images/" if len(shown) < num_images else ""
    sheet = contact_sheet(_entries(path, shown), columns=_columns(shown), note=note)
    storage.write_file(path / CONTACT_SHEET, encode_sheet(sheet))


def sheet_labels(records: Sequence[ImageRecord]) -> list[str]:
    """The prompt for the first picture of a row; for the others the number of their copy."""
    labels, last = [], None
    for record in records:
        first = record.row != last
        labels.append(record.prompt if first else f"copy {record.copy}")
        last = record.row
    return labels


def _entries(path: Path, records: Sequence[ImageRecord]) -> Iterator[tuple[str, "Image.Image"]]:
    for label, record in zip(sheet_labels(records), records, strict=True):
        with open_picture(path / record.file_name) as image:
            image.load()
        yield label, image


def _columns(records: Sequence[ImageRecord]) -> int:
    """A row's copies in one line if they fit; else four columns for few images."""
    copies = len({record.copy for record in records})
    if 2 < copies <= COLUMNS:
        return copies
    return 4 if len(records) <= 16 else COLUMNS
