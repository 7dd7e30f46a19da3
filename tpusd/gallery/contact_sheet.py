"""A run's contact sheet: which of its images stand on it, in how many columns. Reads them back from the directory."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpusd.storage import local as storage

SHEET_COLUMNS = 8
SHEET_IMAGES = 96  # a contact sheet of more is no longer looked at


def write_contact_sheet(path: Path, records: Sequence[Mapping[str, Any]], num_images: int, num_rows: int) -> None:
    """Thumbnails of a run's images into its directory `path`: the first copies of the first rows.

    records: its manifest. num_images: of the whole run, which may not be finished.
    """
    from PIL import Image

    from tpusd.recipes.files import contact_sheet, encode_sheet, sheet_labels
    from tpusd.records.directory import CONTACT_SHEET

    first_copy = min((record["copy"] for record in records), default=0)
    end = first_copy + (SHEET_COLUMNS if num_rows > 1 else SHEET_IMAGES)
    first = itertools.islice((record for record in records if record["copy"] < end), SHEET_IMAGES)
    records = sorted(first, key=lambda record: (record["row"], record["copy"]))
    if not records:
        return

    def entries() -> Iterator[tuple[str, Image.Image]]:
        for label, record in zip(sheet_labels(records), records, strict=True):
            with Image.open(path / record["file_name"]) as image:
                image.load()
                yield label, image

    note = f"{len(records)} of {num_images} images; all of them are in images/" if len(records) < num_images else ""
    copies = len({record["copy"] for record in records})
    columns = copies if 2 < copies <= SHEET_COLUMNS else 4 if len(records) <= 16 else SHEET_COLUMNS
    storage.write_file(path / CONTACT_SHEET, encode_sheet(contact_sheet(entries(), columns=columns, note=note)))
