"""The options of a run's sampler: what the user sets, what the checkpoint says, and the defaults. No JAX."""

from dataclasses import fields
from types import SimpleNamespace

from tpusd.config.sampler import SamplerOptions, SamplerSettings
from tpusd.errors import UserError
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
                f"sampler.{option}={chosen}: {sampler.name} has no such option; leave it out "
                f"(it has {', '.join(sampler.defaults)})"
            )
    options = SimpleNamespace(**resolved)
    _check_schedules(settings, options)
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
