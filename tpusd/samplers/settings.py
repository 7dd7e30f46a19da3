"""What a user can choose of a sampler, and what it comes to for a checkpoint. No JAX."""

from collections.abc import Mapping
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from tpusd.config.sampler import SamplerSettings
from tpusd.errors import UserError
from tpusd.samplers.schedule import SchedulerConfig

SIGMA_SCHEDULES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def resolve(
    settings: SamplerSettings,
    config: SchedulerConfig,
    defaults: Mapping[str, Any],
    choices: Mapping[str, tuple[Any, ...]] | None = None,
) -> SimpleNamespace:
    """Every option in `defaults`: from the settings, else from the checkpoint, else from `defaults`.

    choices: the values that this sampler has for an option; the checkpoint's may be meant for another sampler, and is
    then passed over. Raises UserError for an option that is set and that this sampler does not have.
    """
    choices = choices or {}
    taken = {}
    for field in fields(settings):
        option, chosen = field.name, getattr(settings, field.name)
        if option in ("name", "num_inference_steps"):
            continue
        if option not in defaults:
            if chosen is not None:
                raise UserError(
                    f"sampler.{option}={chosen}: {settings.name} has no such option; leave it out "
                    f"(it has {', '.join(defaults)})"
                )
            continue
        allowed = choices.get(option)
        if chosen is not None and allowed is not None and chosen not in allowed:
            raise UserError(f"sampler.{option}={chosen}: {settings.name} takes {' or '.join(map(str, allowed))}")
        published = getattr(config, option, None)
        if allowed is not None and published not in allowed:
            published = None
        taken[option] = next((v for v in (chosen, published) if v is not None), defaults[option])
    options = SimpleNamespace(**taken)
    _check_schedules(settings, options)
    return options


def _check_schedules(settings: SamplerSettings, options: SimpleNamespace) -> None:
    """One sigma schedule at most. One that the settings choose replaces the checkpoint's."""
    chosen = [name for name in SIGMA_SCHEDULES if getattr(settings, name)]
    if len(chosen) > 1:
        raise UserError(f"sampler.{chosen[0]}=True: cannot be had together with {chosen[1]}=True; choose one of them")
    if chosen:
        for name in SIGMA_SCHEDULES:
            if hasattr(options, name):
                setattr(options, name, name in chosen)
    active = [name for name in SIGMA_SCHEDULES if getattr(options, name, False)]
    if len(active) > 1:
        raise UserError(f"the checkpoint asks for {' and '.join(active)}; set sampler.{active[0]}=false")
