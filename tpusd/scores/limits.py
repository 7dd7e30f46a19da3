"""Scores that their metric cannot give: somebody changed the file, or it was computed wrongly."""

from collections.abc import Iterator
from pathlib import Path

from tpusd.errors import show
from tpusd.records.scores import scores_by_line
from tpusd.scores.registry import metrics

ROUNDING = 1e-4  # by which a value may be beyond its limit


def limit_faults(path: Path) -> Iterator[str]:
    """A line for each score of the run directory `path` that is out of its metric's range. Raises UserError."""
    for where, score in scores_by_line(path):
        metric = metrics().get(score.metric)
        if metric is None or score.value is None:
            continue
        low, high = metric.limits
        if (low is not None and score.value < low - ROUNDING) or (high is not None and score.value > high + ROUNDING):
            yield (
                f"{where}: {score.metric}={show(score.value)}: must be {metric.range}; remove the line and score again"
            )
