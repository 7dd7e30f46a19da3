"""A sweep's runs by setting, as its page has them: the score of each, its spread, the seconds that an image takes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tpusd.records.manifest import ImageRecord
from tpusd.records.scores import Scores
from tpusd.records.sweep import Sweep, SweepRun

SEED = "seed"
MIN_RATE = 1e-9  # images/s


class ScoredRun(Protocol):
    """A run of a sweep. rate: images/s of its last session."""

    @property
    def run(self) -> SweepRun: ...
    @property
    def records(self) -> Sequence[ImageRecord]: ...
    @property
    def scores(self) -> Scores: ...
    @property
    def rate(self) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Scores of images together. spread: the standard deviation of the means of the seeds; None: of one seed."""

    mean: float
    spread: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The runs that differ in their seed alone. seconds: for an image.

    is_best: no other setting has a higher score in at most the time.
    """

    name: str
    cell: Cell
    seconds: float | None
    is_best: bool = False


def settings(sweep: Sweep, runs: Sequence[ScoredRun], column: str) -> list[Setting]:
    """The settings whose images have a score, the highest first."""
    varied = [key for key, values in sweep.axes.items() if key != SEED and len(values) > 1]
    groups: dict[str, list[ScoredRun]] = {}
    for run in runs:
        name = ", ".join(f"{_short(key, varied)} {run.run.at[key]}" for key in varied) or "all runs"
        groups.setdefault(name, []).append(run)
    found = []
    for name, members in groups.items():
        cell = cell_of(members, column)
        seconds = [1 / run.rate for run in members if run.rate is not None and run.rate > MIN_RATE]
        if cell is not None:
            found.append(Setting(name=name, cell=cell, seconds=_mean(seconds) if seconds else None))
    return _with_front(
        sorted(found, key=lambda one: (-one.cell.mean, math.inf if one.seconds is None else one.seconds))
    )


def heat_map(
    sweep: Sweep, runs: Sequence[ScoredRun], column: str
) -> tuple[str, str, Mapping[tuple[str, str], Cell]] | None:
    """(field across, field down, (value across, value down) -> score) of the two longest axes that are no seed.

    None where the sweep has fewer axes.
    """
    varied = [key for key, values in sweep.axes.items() if key != SEED and len(values) > 1]
    if len(varied) < 2:
        return None
    across, down = sorted(varied, key=lambda key: -len(sweep.axes[key]))[:2]
    groups: dict[tuple[str, str], list[ScoredRun]] = {}
    for run in runs:
        groups.setdefault((run.run.at[across], run.run.at[down]), []).append(run)
    cells = {place: cell for place, members in groups.items() if (cell := cell_of(members, column)) is not None}
    return across, down, cells


def cell_of(runs: Iterable[ScoredRun], column: str) -> Cell | None:
    """The scores of all images of some runs; None where none has one."""
    by_seed: dict[str, list[float]] = {}
    for run in runs:
        values = [value for record in run.records if (value := run.scores.of(record).get(column)) is not None]
        if values:
            by_seed.setdefault(run.run.at.get(SEED, ""), []).extend(values)
    every = [value for values in by_seed.values() for value in values]
    if not every:
        return None
    return Cell(mean=_mean(every), spread=_deviation([_mean(values) for values in by_seed.values()]), count=len(every))


def _with_front(found: Sequence[Setting]) -> list[Setting]:
    fastest = math.inf
    marked = []
    for one in found:
        is_best = one.seconds is not None and one.seconds < fastest
        fastest = one.seconds if is_best and one.seconds is not None else fastest
        marked.append(replace(one, is_best=is_best))
    return marked


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _deviation(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    middle = _mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1))


def _short(key: str, keys: Sequence[str]) -> str:
    """A field's last word, unless another one ends in it too."""
    last = key.rsplit(".", 1)[-1]
    return key if sum(other.rsplit(".", 1)[-1] == last for other in keys) > 1 else last
