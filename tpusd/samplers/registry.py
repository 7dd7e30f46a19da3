"""The samplers, found in the modules of this package: each module lists its own in `SAMPLERS`.

To add a sampler, write a module beside this one. Importing the registry imports no sampler and no NumPy.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, get_args

import tpusd.samplers
from tpusd.config.sampler import PredictionType, SamplerSettings
from tpusd.errors import UserError, show, suggest

if TYPE_CHECKING:
    from tpusd.samplers.rows import Table
    from tpusd.samplers.schedule import SchedulerConfig

OptionValue = str | float | bool | tuple[int, ...] | None
_COMPILED_LOOP = ("guidance", "loop")  # modules that import JAX, and hold no sampler


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """All that tpusd knows of a sampler.

    Attributes:
        name: its name in a config, as in `sampler=ddim`; conf/sampler/NAME.yaml has its default number of steps.
        a1111: its name in A1111, and so in the text that every image carries.
        table: settings, the checkpoint's schedule and the resolved options -> the table of coefficients.
        defaults: every option that the sampler has, with the default of the diffusers class.
        choices: the values of an option, where the sampler takes fewer than its type allows; a checkpoint's other
            value is meant for another sampler, and is ignored.
        prediction_types: the prediction types that it works with; another one is an error, whoever asks for it.
        diffusers: the class of diffusers that the tests compare it with.
        diffusers_options: what makes that class this sampler.
        paper: where it was published, in Markdown.
    """

    name: str
    a1111: str
    table: "Callable[[SamplerSettings, SchedulerConfig, SimpleNamespace], Table]"
    defaults: Mapping[str, OptionValue]
    choices: Mapping[str, tuple[OptionValue, ...]] = field(default_factory=dict)
    prediction_types: tuple[PredictionType, ...] = get_args(PredictionType)
    diffusers: str
    diffusers_options: Mapping[str, OptionValue] = field(default_factory=dict)
    paper: str


@functools.cache
def samplers() -> Mapping[str, Sampler]:
    """Every sampler by its name, in alphabetical order."""
    found: list[Sampler] = []
    for module in pkgutil.iter_modules(tpusd.samplers.__path__):
        if module.name not in _COMPILED_LOOP:
            found += getattr(importlib.import_module(f"{tpusd.samplers.__name__}.{module.name}"), "SAMPLERS", ())
    by_name = {sampler.name: sampler for sampler in sorted(found, key=lambda sampler: sampler.name)}
    assert len(by_name) == len(found) == len({sampler.a1111 for sampler in found}), "two samplers share a name"
    return by_name


def find_sampler(name: str) -> Sampler:
    """The sampler of that name. Raises UserError for an unknown name."""
    known = samplers()
    if name not in known:
        raise UserError(
            f"sampler.name={show(name)}: no such sampler{suggest(name, known)}; the samplers are {', '.join(known)}"
        )
    return known[name]
