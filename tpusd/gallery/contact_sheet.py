"""A run's contact sheet: which of its images stand on it, in how many columns. Reads them back from the directory."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from tpusd import storage
from tpusd.gallery.drawing import font_of_size, wrap
from tpusd.records.manifest import ImageRecord

SHEET_COLUMNS = 8
SHEET_IMAGES = 96  # a contact sheet of more is no longer looked at


def write_contact_sheet(path: Path, records: Sequence[ImageRecord], num_images: int, num_rows: int) -> None:
    """Thumbnails of a run's images into its directory `path`: the first copies of the first rows.

    records: its manifest. num_images: of the whole run, which may not be finished.
    """
    from PIL import Image

    from tpusd.gallery.drawing import encode_sheet
    from tpusd.records.layout import CONTACT_SHEET

    first_copy = min((record.copy for record in records), default=0)
    end = first_copy + (SHEET_COLUMNS if num_rows > 1 else SHEET_IMAGES)
    first = itertools.islice((record for record in records if record.copy < end), SHEET_IMAGES)
    records = sorted(first, key=lambda record: record.key)
    if not records:
        return

    def entries() -> Iterator[tuple[str, Image.Image]]:
        for label, record in zip(sheet_labels(records), records, strict=True):
            with Image.open(path / record.file_name) as image:
                image.load()
                yield label, image

    note = f"{len(records)} of {num_images} images; all of them are in images/" if len(records) < num_images else ""
    copies = len({record.copy for record in records})
    columns = copies if 2 < copies <= SHEET_COLUMNS else 4 if len(records) <= 16 else SHEET_COLUMNS
    storage.write_file(path / CONTACT_SHEET, encode_sheet(contact_sheet(entries(), columns=columns, note=note)))


def contact_sheet(
    entries: Iterable[tuple[str, Image.Image]], *, columns: int, note: str = "", cell: int = 256
) -> Image.Image:
    """Labelled thumbnails in rows of `columns`; `cell`: pixels of a thumbnail's longer side. `note` stands at the foot.

    An empty label leaves the room under its thumbnail free. Entries are taken one at a time and not kept.
    """
    font = font_of_size(13)
    thumbnails: list[tuple[list[str], Image.Image]] = []
    for label, image in entries:
        image = image.convert("RGB")
        scale = cell / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
        thumbnails.append((wrap(label, font, cell), image))
    columns = max(1, min(columns, len(thumbnails)))
    gap, line_height = 12, 17
    rows = [thumbnails[i : i + columns] for i in range(0, len(thumbnails), columns)]
    heights = [
        max(image.height for _, image in row) + 6 + line_height * max(len(lines) for lines, _ in row) for row in rows
    ]
    note_lines = wrap(note, font, columns * (cell + gap) - gap, max_lines=3)
    size = (gap + columns * (cell + gap), gap + sum(height + gap for height in heights) + line_height * len(note_lines))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        image_height = max(image.height for _, image in row)
        for column, (lines, image) in enumerate(row):
            left = gap + column * (cell + gap)
            sheet.paste(image, (left + (cell - image.width) // 2, top + image_height - image.height))
            for number, line in enumerate(lines):
                draw.text((left, top + image_height + 4 + number * line_height), line, fill="#222222", font=font)
        top += height + gap
    for number, line in enumerate(note_lines):
        draw.text((gap, top - gap // 2 + number * line_height), line, fill="#666666", font=font)
    return sheet


def sheet_labels(records: Sequence[ImageRecord]) -> list[str]:
    """A prompt under the first picture of its row; the others show their copy."""
    labels, last = [], None
    for record in records:
        first = record.row != last
        labels.append(record.prompt if first else f"copy {record.copy}")
        last = record.row
    return labels
