"""What a user can choose of a sampler, and what it comes to for a checkpoint. No JAX."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, Literal

from tpusd.errors import UserError
from tpusd.samplers.schedule import FinalSigmas, Interpolation, PredictionType, SchedulerConfig, Spacing

SamplerName = Literal[
    "pndm",
    "ddim",
    "ddpm",
    "euler",
    "euler_ancestral",
    "heun",
    "lms",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "unipc",
    "deis",
    "lcm",
]
SIGMA_SCHEDULES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """A sampler and its options, named as diffusers names them. docs/samplers.md says which sampler has which.

    None: as the checkpoint's scheduler_config.json says, else the default of the diffusers class.
    """

    name: SamplerName
    num_inference_steps: int = 50
    prediction_type: PredictionType | None = None
    timestep_spacing: Spacing | None = None
    steps_offset: int | None = None
    rescale_betas_zero_snr: bool | None = None
    set_alpha_to_one: bool | None = None
    eta: float | None = None
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large"] | None = None
    use_karras_sigmas: bool | None = None
    use_exponential_sigmas: bool | None = None
    use_beta_sigmas: bool | None = None
    use_lu_lambdas: bool | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: FinalSigmas | None = None
    interpolation_type: Interpolation | None = None
    solver_order: int | None = None
    solver_type: Literal["midpoint", "heun", "bh1", "bh2"] | None = None
    lower_order_final: bool | None = None
    euler_at_final: bool | None = None
    lambda_min_clipped: float | None = None
    predict_x0: bool | None = None
    disable_corrector: tuple[int, ...] | None = None
    original_inference_steps: int | None = None
    timestep_scaling: float | None = None


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
