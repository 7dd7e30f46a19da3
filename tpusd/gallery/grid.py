"""Pictures in rows and columns with a label for each, as one picture: for papers and slides."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from tpusd.gallery.drawing import font_of_size, wrap

MAX_CELL = 256  # pixels of a picture's longer side
MIN_CELL = 128
GAP, MARGIN, LINE = 6, 16, 20
FONT_SIZE = 16
ROW_LABEL = 180  # pixels


def labelled_grid(
    pictures: Sequence[Sequence[Image.Image | None]],
    *,
    column_labels: Sequence[str],
    row_labels: Sequence[str],
    column_title: str = "",
    row_title: str = "",
    note: str = "",
) -> Image.Image:
    """pictures: rows of cells, None where there is none. Titles say what the labels are; the note stands below."""
    font = font_of_size(FONT_SIZE)
    sizes = [picture.size for row in pictures for picture in row if picture is not None]
    widest, tallest = max(w for w, _ in sizes), max(h for _, h in sizes)
    scale = min(1.0, MAX_CELL / max(widest, tallest))
    if max(widest, tallest) < MIN_CELL:  # enlarged in whole steps, so that pixels stay what they are
        scale = max(1, MIN_CELL // max(widest, tallest))
    cell = round(widest * scale), round(tallest * scale)
    above = [wrap(label, font, cell[0], max_lines=3) for label in column_labels]
    beside = [wrap(label, font, ROW_LABEL - 12, max_lines=max(1, cell[1] // LINE)) for label in row_labels]
    longest = max([font.getlength(line) for lines in beside for line in lines] + [font.getlength(row_title)])
    left = MARGIN + (round(longest) + 14 if longest else 0)
    titles = LINE if column_title else 0
    top = MARGIN + titles + LINE * max(map(len, above), default=0) + 6
    width = left + len(column_labels) * (cell[0] + GAP) - GAP + MARGIN
    below = wrap(note, font, width - 2 * MARGIN, max_lines=3)
    height = top + len(row_labels) * (cell[1] + GAP) + (LINE * len(below) + 4 if below else 0) + MARGIN - GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    middle = left + (width - MARGIN - left) / 2
    draw.text((middle - font.getlength(column_title) / 2, MARGIN - 6), column_title, fill="#5f5f69", font=font)
    draw.text((MARGIN, top - 6 - LINE), row_title, fill="#5f5f69", font=font)
    for column, lines in enumerate(above):
        middle = left + column * (cell[0] + GAP) + cell[0] / 2
        for number, line in enumerate(lines):
            y = top - 6 - LINE * (len(lines) - number)
            draw.text((middle - font.getlength(line) / 2, y), line, fill="#1b1b1f", font=font)
    for row, (lines, cells) in enumerate(zip(beside, pictures, strict=True)):
        y = top + row * (cell[1] + GAP)
        for number, line in enumerate(lines):
            draw.text((MARGIN, y + 2 + number * LINE), line, fill="#1b1b1f", font=font)
        for column, picture in enumerate(cells):
            x = left + column * (cell[0] + GAP)
            if picture is None:
                draw.rectangle((x, y, x + cell[0] - 1, y + cell[1] - 1), outline="#c8c8ce")
                continue
            size = round(picture.width * scale), round(picture.height * scale)
            resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
            fitted = picture if picture.size == size else picture.resize(size, resampling)
            sheet.paste(fitted, (x + (cell[0] - size[0]) // 2, y + (cell[1] - size[1]) // 2))
    for number, line in enumerate(below):
        y = top + len(row_labels) * (cell[1] + GAP) + number * LINE
        draw.text((MARGIN, y), line, fill="#5f5f69", font=font)
    return sheet
