"""Pictures and labels on a white sheet, and the sheet as a PNG."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from tpusd.gallery.lettering import Lettering, clusters

MAX_TEXT = 400  # characters of a label


class Sheet:
    """Collects what is to be drawn; `painted` draws it. Positions are pixels from the top left corner."""

    def __init__(self, font: Lettering, line_height: int):
        self._font = font
        self._line_height = line_height
        self._pictures: list[tuple[int, int, Image.Image]] = []
        self._frames: list[tuple[int, int, int, int]] = []
        self._lines: list[tuple[float, float, str, str]] = []

    def picture(self, left: int, top: int, image: Image.Image) -> None:
        self._pictures.append((left, top, image))

    def frame(self, left: int, top: int, width: int, height: int) -> None:
        """An empty cell: its outline."""
        self._frames.append((left, top, left + width - 1, top + height - 1))

    def lines(self, left: float, top: float, lines: Sequence[str], color: str) -> None:
        self._lines += [(left, top + number * self._line_height, line, color) for number, line in enumerate(lines)]

    def centered(self, middle: float, top: float, lines: Sequence[str], color: str) -> None:
        for number, line in enumerate(lines):
            left = middle - self._font.getlength(line) / 2
            self.lines(left, top + number * self._line_height, [line], color)

    def painted(self, width: int, height: int) -> Image.Image:
        sheet = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(sheet)
        for left, top, image in self._pictures:
            sheet.paste(image, (left, top))
        for box in self._frames:
            draw.rectangle(box, outline="#c8c8ce")
        for x, y, line, color in self._lines:
            self._font.draw(draw, sheet, x, y, line, color)
        return sheet


def encode_sheet(sheet: Image.Image) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=4)  # 16 images: 75 ms and 833 kB; level 6 takes 171 ms for 803 kB
    return buffer.getvalue()


def wrap(text: str, font: Lettering, width: int, max_lines: int = 4) -> list[str]:
    """Lines of at most `width` pixels; an ellipsis ends what does not fit. Control characters become spaces.

    What no font has becomes a word, so the lines can be drawn.
    """
    lines = [""]
    for word in font.readable(text[:MAX_TEXT]).split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append(word)
        while font.getlength(lines[-1]) > width and len(pieces := list(clusters(lines[-1]))) > 1:  # a wide word
            cut = max(1, int(len(pieces) * width / font.getlength(lines[-1])) - 1)
            lines[-1:] = ["".join(pieces[:cut]), "".join(pieces[cut:])]
    lines = lines[1:]
    if len(lines) > max_lines:
        last = "".join(list(clusters(lines[max_lines - 1]))[:-3])
        lines = [*lines[: max_lines - 1], last.rstrip() + "..."]
    return lines
