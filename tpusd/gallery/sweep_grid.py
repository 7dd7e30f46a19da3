"""Which of a sweep's images are in grid.png: the fields on its axes, and the values of all others."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tpusd.config.schema import SavedConfig
from tpusd.errors import UserError, show, suggest
from tpusd.gallery.prompt_labels import prompt_labels
from tpusd.records.manifest import ImageRecord
from tpusd.records.sweep import Sweep, SweepRun
from tpusd.storage.pictures import open_picture

if TYPE_CHECKING:
    from PIL import Image

MAX_GRID = 12  # columns and rows; the page has them all
PROMPT, COPY = "prompt", "copy"  # which can be axes beside the swept fields
MAX_PROMPT = 300  # characters of the caption
# What a caption says of all images, where they share it: a field of the manifest, and its name in the caption.
SHARED = (
    "model",
    "precision",
    "sampler",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "seed",
    "height",
    "width",
)


@dataclass(frozen=True, kw_only=True)
class SweepImages:
    """A run of the sweep that has images. records: its manifest, by row and copy."""

    run: SweepRun
    directory: Path
    config: SavedConfig
    records: Sequence[ImageRecord]


@dataclass(frozen=True, kw_only=True)
class GridChoice:
    """What the user chose; None: the default.

    columns, rows: a swept field, `prompt` or `copy`.
    prompts: rows of the prompt set, in the order in which they are shown.
    at: field -> value, for fields that are on no axis.
    """

    columns: str | None = None
    rows: str | None = None
    prompts: tuple[int, ...] | None = None
    at: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """The field on each axis; columns is None where the sweep has no field that varies. fixed: the others' values."""

    columns: str | None
    rows: str
    fixed: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Cell:
    record: ImageRecord
    file: Path


def draw_grid(sweep: Sweep, runs: Sequence[SweepImages], choice: GridChoice | None = None) -> bytes | None:
    """grid.png; None if no run with the values of the fixed fields has images.

    choice: default: the two longest axes, or the only one and the prompts; of every other field its first value.

    Raises UserError where the choice names what the sweep has not.
    """
    from tpusd.gallery.drawing import encode_sheet
    from tpusd.gallery.grid import labelled_grid

    choice = choice or GridChoice()
    axes = _axes(sweep, choice)
    kept = [run for run in runs if all(run.run.at[key] == value for key, value in axes.fixed.items() if key != COPY)]
    cells = _cells(kept, axes, choice)
    if not cells:
        return None
    columns, rows = (_values(sweep, kept, choice, axes, number) for number in (0, 1))
    columns, rows = (_in_use(values, {place[n] for place in cells}) for n, values in enumerate((columns, rows)))
    labels = prompt_labels((cell.record.row, cell.record.prompt) for cell in cells.values())
    shown_columns, shown_rows = columns[:MAX_GRID], rows[:MAX_GRID]
    sheet = labelled_grid(
        [[_picture(cells.get((column, row))) for column in shown_columns] for row in shown_rows],
        column_labels=_labels(sweep, kept, axes.columns, shown_columns, labels),
        row_labels=_labels(sweep, kept, axes.rows, shown_rows, labels),
        column_title=axes.columns or "",
        row_title="" if axes.rows == PROMPT else axes.rows,
        note=_caption(sweep, cells, axes, (len(columns), len(rows))),
    )
    return encode_sheet(sheet)


def parse_prompts(text: str) -> tuple[int, ...]:
    """`0,3,5-7` -> rows. Raises UserError."""
    rows: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first or last - first > 100_000:
            raise UserError(f"--grid-prompts={show(text)}: must be rows of the prompt set, such as 0,3,5-7")
        rows += range(first, last + 1)
    return tuple(dict.fromkeys(rows))


def _axes(sweep: Sweep, choice: GridChoice) -> _Axes:
    columns, rows = (
        None if name is None else _field(sweep, name, option)
        for name, option in ((choice.columns, "--grid-columns"), (choice.rows, "--grid-rows"))
    )
    if columns is not None and columns == rows:
        raise UserError(f"--grid-rows={show(rows)}: is on the columns already; name another field")
    at = {_field(sweep, name, "--grid-at"): value for name, value in choice.at.items()}
    free = [key for key in sorted(sweep.axes, key=lambda key: -len(sweep.axes[key])) if key not in (columns, rows, *at)]
    if choice.prompts is not None and len(choice.prompts) > 1 and PROMPT not in (columns, rows):
        columns, rows = (columns, PROMPT) if rows is None else (columns or PROMPT, rows)
    if columns is None:
        columns = free.pop(0) if free else None if rows in (None, PROMPT) else PROMPT
    if rows is None:
        rows = free.pop(0) if free else PROMPT if columns != PROMPT else COPY
    if choice.prompts is not None and len(choice.prompts) > 1 and PROMPT not in (columns, rows):
        raise UserError(
            f"--grid-prompts: names {len(choice.prompts)} prompts, and both axes have other fields; name one prompt, "
            f"or one axis {PROMPT}"
        )
    return _Axes(columns=columns, rows=rows, fixed=_fixed(sweep, at, (columns, rows)))


def _fixed(sweep: Sweep, at: Mapping[str, str], axes: Sequence[str | None]) -> dict[str, str]:
    for name, value in at.items():
        if name in axes or name == PROMPT:
            advice = "choose prompts with --grid-prompts" if name == PROMPT else "remove it"
            raise UserError(f"--grid-at={show(f'{name}={value}')}: {show(name)} is no fixed field; {advice}")
        if name in sweep.axes and value not in sweep.axes[name]:
            known = ", ".join(sweep.axes[name][:20])
            raise UserError(f"--grid-at={show(f'{name}={value}')}: the sweep has {show(name)}={show(known)}")
    first = {key: values[0] for key, values in sweep.axes.items() if key not in axes and values}
    return first | dict(at)


def _field(sweep: Sweep, name: str, option: str) -> str:
    """The swept field of this name, or whose last part it is. Raises UserError."""
    if name in sweep.axes or name in (PROMPT, COPY):
        return name
    ending = [key for key in sweep.axes if key.rsplit(".", 1)[-1] == name]
    if len(ending) == 1:
        return ending[0]
    known = [*sweep.axes, PROMPT, COPY]
    raise UserError(
        f"{option}={show(name)}: is no swept field; the sweep has {show(', '.join(known), 300)}{suggest(name, known)}"
    )


def _cells(runs: Sequence[SweepImages], axes: _Axes, choice: GridChoice) -> dict[tuple[str, str], _Cell]:
    """(column, row) -> the image there."""
    cells: dict[tuple[str, str], _Cell] = {}
    for own in runs:
        for record in _fixed_records(own.records, axes, choice):
            place = _value(own, record, axes.columns), _value(own, record, axes.rows)
            cells.setdefault(place, _Cell(record=record, file=own.directory / record.file_name))
    return cells


def _fixed_records(records: Sequence[ImageRecord], axes: _Axes, choice: GridChoice) -> Iterator[ImageRecord]:
    """Of what is on no axis: the chosen prompt and copy, else the first."""
    on_axis = (axes.columns, axes.rows)
    if choice.prompts is not None:
        wanted = set(choice.prompts if PROMPT in on_axis else choice.prompts[:1])
        records = [record for record in records if record.row in wanted]
    elif PROMPT not in on_axis:
        first = min((record.row for record in records), default=0)
        records = [record for record in records if record.row == first]
    if COPY in axes.fixed:
        records = [record for record in records if str(record.copy) == axes.fixed[COPY]]
    seen: set[int] = set()
    for record in records:
        if COPY in on_axis or record.row not in seen:
            yield record
        seen.add(record.row)


def _value(own: SweepImages, record: ImageRecord, axis: str | None) -> str:
    if axis is None:
        return ""
    if axis in own.run.at:
        return own.run.at[axis]
    return str(record.row if axis == PROMPT else record.copy)


def _values(sweep: Sweep, runs: Sequence[SweepImages], choice: GridChoice, axes: _Axes, number: int) -> Sequence[str]:
    """All values of an axis in order. number: 0: columns, 1: rows."""
    axis = (axes.columns, axes.rows)[number]
    if axis is None:
        return ("",)
    if axis in sweep.axes:
        return sweep.axes[axis]
    if axis == PROMPT and choice.prompts is not None:
        return [str(row) for row in choice.prompts]
    have = {record.row if axis == PROMPT else record.copy for own in runs for record in own.records}
    return [str(one) for one in sorted(have)]


def _in_use(values: Sequence[str], used: set[str]) -> list[str]:
    return [value for value in values if value in used]


def axis_labels(key: str, values: Sequence[str], runs: Sequence[SweepImages]) -> list[str]:
    """The values of a swept field as they are shown: prompt sets by their prompts, all else as on the command line."""
    if key != "prompts.rows":
        return list(values)
    rows = {own.run.at[key]: own.config.prompts.rows for own in runs}
    return [" | ".join(row.prompt for row in rows[value]) if value in rows else value for value in values]


def _labels(
    sweep: Sweep, runs: Sequence[SweepImages], axis: str | None, values: Sequence[str], prompts: Mapping[int, str]
) -> list[str]:
    if axis is not None and axis in sweep.axes:
        return axis_labels(axis, values, runs)
    return [prompts[int(value)] for value in values] if axis == PROMPT else list(values)


def _picture(cell: _Cell | None) -> "Image.Image | None":
    if cell is None:
        return None
    with open_picture(cell.file) as image:
        return image.convert("RGB")


def _caption(sweep: Sweep, cells: Mapping[tuple[str, str], _Cell], axes: _Axes, numbers: tuple[int, int]) -> str:
    """What holds for all images of the grid, and how many values do not fit. numbers: of the columns and the rows."""
    records = [cell.record for cell in cells.values()]
    parts = [f"{key} = {value}" for key, value in axes.fixed.items()]
    named = {key.rsplit(".", 1)[-1] for key in (*sweep.axes, *axes.fixed)}
    for name in SHARED:
        values = {getattr(record, name) for record in records}
        if name not in named and len(values) == 1 and (value := values.pop()) is not None:
            parts.append(f"{name} = {_short(str(value))}")
    if COPY not in (axes.columns, axes.rows, *axes.fixed) and len({record.copy for record in records}) == 1:
        parts += [f"copy = {records[0].copy}"] if records[0].copy else []
    for axis, number in zip((axes.columns, axes.rows), numbers, strict=True):
        if number > MAX_GRID:
            parts.append(f"{MAX_GRID} of {number} values of {axis}")
    prompts = dict.fromkeys(record.prompt for record in records)
    if PROMPT not in (axes.columns, axes.rows) and len(prompts) == 1:
        parts.append(f"prompt = {_short(next(iter(prompts)))}")
    return " · ".join(parts)


def _short(text: str) -> str:
    return text if len(text) <= MAX_PROMPT else text[: MAX_PROMPT - 3].rstrip() + "..."
