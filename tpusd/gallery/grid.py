"""Pictures in rows and columns with labels, as one picture. Two layouts: labels below each picture, or on the axes."""

from collections.abc import Iterable, Sequence
from itertools import chain

from PIL import Image

from tpusd.gallery.drawing import Sheet, wrap
from tpusd.gallery.lettering import Lettering

CELL = 256  # pixels of a picture's longer side
MIN_CELL = 128
ROW_LABEL = 180  # pixels
DARK, BLACK, GRAY, LIGHT = "#222222", "#1b1b1f", "#5f5f69", "#666666"


def contact_sheet(
    entries: Iterable[tuple[str, Image.Image]], *, columns: int, note: str = "", cell: int = CELL
) -> Image.Image:
    """Thumbnails in rows, each with its label below.

    entries: (label, picture), taken one at a time and not kept. An empty label leaves its place free.
    columns: thumbnails in a row.
    note: a line at the foot.
    cell: pixels of a thumbnail's longer side.
    """
    gap, line_height = 12, 17
    font = Lettering(13)
    thumbnails = [(wrap(label, font, cell), _thumbnail(image, cell)) for label, image in entries]
    columns = max(1, min(columns, len(thumbnails)))
    sheet = Sheet(font, line_height)
    top = gap
    for start in range(0, len(thumbnails), columns):
        row = thumbnails[start : start + columns]
        bottom = top + max(image.height for _, image in row)
        for column, (lines, image) in enumerate(row):
            left = gap + column * (cell + gap)
            sheet.picture(left + (cell - image.width) // 2, bottom - image.height, image)
            sheet.lines(left, bottom + 4, lines, DARK)
        top = bottom + 6 + line_height * max(len(lines) for lines, _ in row) + gap
    width = gap + columns * (cell + gap)
    below = wrap(note, font, width - 2 * gap, max_lines=3)
    sheet.lines(gap, top - gap // 2, below, LIGHT)
    return sheet.painted(width, top + line_height * len(below))


def labelled_grid(
    pictures: Sequence[Sequence[Image.Image | None]],
    *,
    column_labels: Sequence[str],
    row_labels: Sequence[str],
    column_title: str = "",
    row_title: str = "",
    note: str = "",
) -> Image.Image:
    """Pictures in cells of one size, with labels above the columns and beside the rows: for papers and slides.

    pictures: rows of cells; None leaves a cell empty, and at least one holds a picture.
    column_title, row_title: what the labels are values of.
    note: a line at the foot.
    """
    gap, margin, line_height = 6, 16, 20
    font = Lettering(16)
    column_title, row_title = font.readable(column_title), font.readable(row_title)
    scale = _scale([picture.size for picture in chain.from_iterable(pictures) if picture is not None])
    widest = max(picture.width for picture in chain.from_iterable(pictures) if picture is not None)
    tallest = max(picture.height for picture in chain.from_iterable(pictures) if picture is not None)
    cell_width, cell_height = round(widest * scale), round(tallest * scale)
    above = [wrap(label, font, cell_width, max_lines=3) for label in column_labels]
    max_lines = max(1, cell_height // line_height)
    beside = [wrap(label, font, ROW_LABEL - 12, max_lines=max_lines) for label in row_labels]
    longest = max(font.getlength(line) for line in [*chain.from_iterable(beside), row_title])
    left = margin + (round(longest) + 14 if longest else 0)
    top = margin + (line_height if column_title else 0) + line_height * max(map(len, above), default=0) + 6
    right = left + len(column_labels) * (cell_width + gap) - gap
    bottom = top + len(row_labels) * (cell_height + gap)

    sheet = Sheet(font, line_height)
    sheet.centered(left + (right - left) / 2, margin - 6, [column_title], GRAY)
    sheet.lines(margin, top - 6 - line_height, [row_title], GRAY)
    for column, lines in enumerate(above):
        middle = left + column * (cell_width + gap) + cell_width / 2
        sheet.centered(middle, top - 6 - line_height * len(lines), lines, BLACK)
    for row, (lines, cells) in enumerate(zip(beside, pictures, strict=True)):
        y = top + row * (cell_height + gap)
        sheet.lines(margin, y + 2, lines, BLACK)
        for column, picture in enumerate(cells):
            x = left + column * (cell_width + gap)
            if picture is None:
                sheet.frame(x, y, cell_width, cell_height)
                continue
            fitted = _scaled(picture, scale)
            sheet.picture(x + (cell_width - fitted.width) // 2, y + (cell_height - fitted.height) // 2, fitted)
    below = wrap(note, font, right - margin, max_lines=8)
    sheet.lines(margin, bottom, below, GRAY)
    foot = line_height * len(below) + 4 if below else 0
    return sheet.painted(right + margin, bottom + foot + margin - gap)


def _thumbnail(image: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _scale(sizes: Sequence[tuple[int, int]]) -> float:
    """Shrinks pictures larger than a cell; enlarges small ones in whole steps, so that each pixel stays a square."""
    longest = max(max(size) for size in sizes)
    return max(1, MIN_CELL // longest) if longest < MIN_CELL else min(1.0, CELL / longest)


def _scaled(picture: Image.Image, scale: float) -> Image.Image:
    size = round(picture.width * scale), round(picture.height * scale)
    if picture.size == size:
        return picture
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
