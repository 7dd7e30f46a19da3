"""The options of a run's sampler: what the user sets, what the checkpoint says, and the defaults. No JAX."""

import itertools
from dataclasses import fields
from types import SimpleNamespace

from tpusd.config.sampler import SamplerOptions, SamplerSettings
from tpusd.errors import UserError, show
from tpusd.samplers.registry import OptionValue, Sampler
from tpusd.samplers.schedule import SchedulerConfig

SIGMA_SCHEDULES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def resolve(settings: SamplerSettings, config: SchedulerConfig, sampler: Sampler) -> SimpleNamespace:
    """Every option that the sampler has: from the settings, else from the checkpoint, else the sampler's default.

    Raises UserError for an option that is set and that the sampler does not have, and for a value that it does not
    take.
    """
    resolved: dict[str, OptionValue] = {}
    for option in (field.name for field in fields(SamplerOptions)):
        chosen = getattr(settings, option)
        if option in sampler.defaults:
            resolved[option] = _resolve_option(option, chosen, getattr(config, option), sampler)
        elif chosen is not None:
            raise UserError(
                f"sampler.{option}={_shown(chosen)}: {sampler.name} has no such option; leave it out, or write "
                f"sampler.{option}=null (it has {', '.join(sampler.defaults)})"
            )
    options = SimpleNamespace(**resolved)
    _check_schedules(settings, options)
    _check_timesteps(settings, config, options)
    if options.prediction_type not in sampler.prediction_types:
        raise UserError(
            f"sampler.prediction_type={options.prediction_type}: {sampler.name} takes "
            f"{' or '.join(sampler.prediction_types)}; use another sampler, such as ddim"
        )
    return options


def _resolve_option(option: str, chosen: OptionValue, published: OptionValue, sampler: Sampler) -> OptionValue:
    """chosen: from the settings; published: from the checkpoint; None: not set."""
    allowed = sampler.choices.get(option)
    if allowed is not None:
        if chosen is not None and chosen not in allowed:
            raise UserError(f"sampler.{option}={chosen}: {sampler.name} takes {' or '.join(map(str, allowed))}")
        published = published if published in allowed else None
    return next((value for value in (chosen, published) if value is not None), sampler.defaults[option])


def _check_timesteps(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> None:
    """Timesteps that the settings choose: falling, one a step, and no other schedule beside them."""
    timesteps = settings.timesteps
    if timesteps is None:
        return
    given, most = f"sampler.timesteps={_shown(timesteps)}", config.train_timesteps - 1
    if timesteps[0] > most or any(later >= earlier for earlier, later in itertools.pairwise(timesteps)):
        raise UserError(f"{given}: must fall from step to step, from at most {most}, the last that the model knows")
    if len(timesteps) != settings.num_inference_steps:
        raise UserError(
            f"{given}: has {len(timesteps)}, and sampler.num_inference_steps={settings.num_inference_steps}; write "
            f"sampler.num_inference_steps={len(timesteps)}, or sampler.timesteps=null"
        )
    active = next((name for name in SIGMA_SCHEDULES if getattr(options, name, False)), None)
    if active is not None:
        raise UserError(f"{given}: cannot be combined with {active}=True; write sampler.{active}=false")


def _shown(value: OptionValue) -> str:
    return show(list(value)) if isinstance(value, tuple) else str(value)


def _check_schedules(settings: SamplerSettings, options: SimpleNamespace) -> None:
    """One sigma schedule at most. One that the settings choose replaces the checkpoint's."""
    chosen = [name for name in SIGMA_SCHEDULES if getattr(settings, name)]
    if len(chosen) > 1:
        raise UserError(f"sampler.{chosen[0]}=True: cannot be combined with {chosen[1]}=True; choose one of them")
    if chosen:
        for name in SIGMA_SCHEDULES:
            if hasattr(options, name):
                setattr(options, name, name in chosen)
    active = [name for name in SIGMA_SCHEDULES if getattr(options, name, False)]
    if len(active) > 1:
        raise UserError(f"the checkpoint asks for {' and '.join(active)}; set sampler.{active[0]}=false")
