"""plot.png: for each score of a sweep, its settings by seconds per image, and a heat map of two axes. For papers."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from tpusd.gallery.drawing import encode_sheet
from tpusd.gallery.lettering import Lettering
from tpusd.gallery.settings import Cell, ScoredRun, Setting, heat_map, settings
from tpusd.records.sweep import Sweep

MAX_SCORES = 6  # of one plot
MAX_VALUES = 10  # of a heat map's axis
MAX_NAMED = 10  # settings that the list below the plot has, beside the best ones
LINE = 34  # pixels of a line of that list
WIDTH, HEIGHT = 1100, 720  # pixels of a plot of settings
LEFT, RIGHT, TOP, BOTTOM = 150, 40, 60, 100
CELL_WIDTH, CELL_HEIGHT = 190, 84
BLACK, GRAY, RULE, BLUE, LIGHT = "#1b1b1f", "#5f5f69", "#dcdce2", "#1f5fd0", "#ffffff"
MAX_SHARE = 0.75  # of blue in a cell, so that its text can be read
MAX_TEXT = 60  # characters of a name


def draw_plot(sweep: Sweep, runs: Sequence[ScoredRun]) -> bytes | None:
    """plot.png; None where the sweep has nothing to plot: no score, or one setting."""
    panels = []
    for column in sorted({name for run in runs for name in run.scores.columns})[:MAX_SCORES]:
        found = settings(sweep, runs, column)
        timed = [one for one in found if one.seconds is not None]
        parts = [_scatter(timed, column)] if len(timed) > 1 else []
        heat = heat_map(sweep, runs, column)
        if heat is not None and heat[2]:
            parts.append(_heat(sweep, column, *heat))
        if parts:
            panels.append(_joined(parts, across=True))
    return encode_sheet(_joined(panels, across=False)) if panels else None


def _joined(parts: Sequence[Image.Image], *, across: bool) -> Image.Image:
    widths, heights = [part.width for part in parts], [part.height for part in parts]
    size = (sum(widths), max(heights)) if across else (max(widths), sum(heights))
    sheet = Image.new("RGB", size, LIGHT)
    place = 0
    for part in parts:
        sheet.paste(part, (place, 0) if across else (0, place))
        place += part.width if across else part.height
    return sheet


class _Pen:
    """Text and lines on a picture."""

    def __init__(self, width: int, height: int, size: int = 24):
        self.image = Image.new("RGB", (width, height), LIGHT)
        self.draw = ImageDraw.Draw(self.image)
        self._font = Lettering(size)

    def text(self, x: float, y: float, text: str, color: str = BLACK, anchor: str = "left") -> None:
        """y: of the middle of the line. anchor: which side of the text is at x."""
        shown = self.readable(text)
        length = self._font.getlength(shown)
        x -= {"left": 0.0, "middle": length / 2, "right": length}[anchor]
        self._font.draw(self.draw, self.image, x, y - 15, shown, color)

    def readable(self, text: str) -> str:
        return self._font.readable(text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "...")

    def length(self, text: str) -> float:
        return self._font.getlength(self.readable(text))


def _scatter(found: Sequence[Setting], column: str) -> Image.Image:
    numbered = list(enumerate(found, 1))
    named = [(number, one) for number, one in numbered if one.is_best or number <= MAX_NAMED]
    pen = _Pen(WIDTH, HEIGHT + LINE * len(named) + 30)
    seconds = [one.seconds for one in found if one.seconds is not None]
    spreads = [(one.cell.mean, one.cell.spread or 0.0) for one in found]
    xs = _Scale([0.0, *seconds], LEFT, WIDTH - RIGHT)
    ys = _Scale([mean + sign * spread for mean, spread in spreads for sign in (-1, 1)], HEIGHT - BOTTOM, TOP)
    for tick in xs.ticks:
        pen.draw.line([(xs.at(tick), TOP), (xs.at(tick), HEIGHT - BOTTOM)], fill=RULE, width=2)
        pen.text(xs.at(tick), HEIGHT - BOTTOM + 24, f"{tick:.6g}", GRAY, "middle")
    for tick in ys.ticks:
        pen.draw.line([(LEFT, ys.at(tick)), (WIDTH - RIGHT, ys.at(tick))], fill=RULE, width=2)
        pen.text(LEFT - 14, ys.at(tick), f"{tick:.6g}", GRAY, "right")
    pen.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 34, "seconds per image", GRAY, "middle")
    pen.text(LEFT, 26, column)
    front = sorted((one.seconds or 0.0, one.cell.mean) for one in found if one.is_best)
    pen.draw.line([(xs.at(x), ys.at(y)) for x, y in front], fill=BLUE, width=3)
    for number, one in sorted(enumerate(found, 1), key=lambda pair: pair[1].is_best):  # the best ones on top
        x, y = xs.at(one.seconds or 0.0), ys.at(one.cell.mean)
        spread = one.cell.spread or 0.0
        pen.draw.line([(x, ys.at(one.cell.mean - spread)), (x, ys.at(one.cell.mean + spread))], fill=GRAY, width=3)
        pen.draw.ellipse([x - 9, y - 9, x + 9, y + 9], fill=BLUE if one.is_best else LIGHT, outline=BLUE, width=4)
        if one.is_best or number <= MAX_NAMED:
            pen.text(x + 14, y - 18, str(number))
    for place, (number, one) in enumerate(named):
        color = BLACK if one.is_best else GRAY
        pen.text(LEFT, HEIGHT + 10 + place * LINE, f"{number}  {_text(one.cell)}  {one.name}", color)
    return pen.image


def _text(cell: Cell) -> str:
    return f"{cell.mean:.4g}" if cell.spread is None else f"{cell.mean:.4g} ± {cell.spread:.2g}"


def _heat(sweep: Sweep, column: str, across: str, down: str, cells: Mapping[tuple[str, str], Cell]) -> Image.Image:
    columns = [value for value in sweep.axes[across] if any(place[0] == value for place in cells)][:MAX_VALUES]
    rows = [value for value in sweep.axes[down] if any(place[1] == value for place in cells)][:MAX_VALUES]
    measure = _Pen(1, 1)
    label = round(max(measure.length(value) for value in [*rows, down])) + 40
    width, top = label + CELL_WIDTH * len(columns) + RIGHT, TOP + 60
    title = f"{column}: mean ± spread"
    pen = _Pen(max(width, label + round(measure.length(title)) + 20), top + CELL_HEIGHT * len(rows) + 60)
    pen.text(label, 26, title)
    pen.text(20, top - 24, f"{_last(down)} ↓", GRAY)
    means = [cell.mean for cell in cells.values()]
    low, span = min(means), max(means) - min(means)
    for i, value in enumerate(columns):
        pen.text(label + (i + 0.5) * CELL_WIDTH, top - 24, value, BLACK, "middle")
    pen.text(label, top - 54 if len(columns) else top, f"{_last(across)} →", GRAY)
    for j, row in enumerate(rows):
        middle = top + (j + 0.5) * CELL_HEIGHT
        pen.text(20, middle, row)
        for i, value in enumerate(columns):
            if (cell := cells.get((value, row))) is None:
                continue
            share = (cell.mean - low) / span if span else 0.5
            left, upper = label + i * CELL_WIDTH, top + j * CELL_HEIGHT
            box = [left + 3, upper + 3, left + CELL_WIDTH - 3, upper + CELL_HEIGHT - 3]
            pen.draw.rectangle(box, fill=_blue(share * MAX_SHARE))
            pen.text(left + CELL_WIDTH / 2, middle, _text(cell), BLACK, "middle")
    return pen.image


def _last(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _blue(share: float) -> tuple[int, int, int]:
    low, high = (238, 243, 251), (91, 143, 224)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return red, green, blue


class _Scale:
    """Values to positions, with the round values between its ends as `ticks`."""

    def __init__(self, values: Sequence[float], start: float, end: float):
        low, high = min(values), max(values)
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
            margin = max(abs(low), 1e-3) * 0.1
            low, high = low - margin, high + margin
        pad = (high - low) * 0.06
        self._low, self._high = 0.0 if low == 0 else low - pad, high + pad
        self._start, self._end = start, end
        power = 10.0 ** math.floor(math.log10((self._high - self._low) / 5))
        step = next(one * power for one in (1, 2, 5, 10) if (self._high - self._low) / (one * power) <= 6)
        first, last = math.ceil(self._low / step), math.floor(self._high / step)
        self.ticks = [number * step for number in range(first, last + 1)]

    def at(self, value: float) -> float:
        return self._start + (value - self._low) / (self._high - self._low) * (self._end - self._start)
