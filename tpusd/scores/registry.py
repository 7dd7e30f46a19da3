"""The metrics, found in the modules of tpusd.scores.metrics: each module lists its own in `METRICS`."""

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping

import tpusd.scores.metrics
from tpusd.errors import UserError, show, suggest
from tpusd.scores.base import Metric


@functools.cache
def metrics() -> Mapping[str, Metric]:
    """Every metric by its name, in alphabetical order. Importing their modules loads no heavy library."""
    found: list[Metric] = []
    for module in pkgutil.iter_modules(tpusd.scores.metrics.__path__):
        found += getattr(importlib.import_module(f"{tpusd.scores.metrics.__name__}.{module.name}"), "METRICS", ())
    return {metric.name: metric for metric in sorted(found, key=lambda metric: metric.name)}


def metric_named(name: str, others: Iterable[str] = ()) -> Metric:
    """Raises UserError for an unknown one. others: names of metrics that are not here."""
    if name not in metrics():
        known = [*metrics(), *others]
        near = suggest(name, known) or f"; choose from {', '.join(known)}"
        raise UserError(f"metric={show(name)}: no such metric{near}")
    return metrics()[name]
