"""What a user can choose of a sampler, and what it comes to for a checkpoint. No JAX."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, Literal

from tpusd.errors import UserError
from tpusd.samplers.schedule import PredictionType, SchedulerConfig, Spacing

SamplerName = Literal["pndm", "ddim"]


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """A sampler and its options. None: as the checkpoint's scheduler_config.json says, else diffusers' default."""

    name: SamplerName
    num_inference_steps: int = 50
    prediction_type: PredictionType | None = None
    timestep_spacing: Spacing | None = None
    steps_offset: int | None = None
    rescale_betas_zero_snr: bool | None = None
    set_alpha_to_one: bool | None = None
    eta: float | None = None  # ddim: 0 is deterministic, 1 adds as much noise as ddpm


def resolve(settings: SamplerSettings, config: SchedulerConfig, defaults: Mapping[str, Any]) -> SimpleNamespace:
    """Every option in `defaults`, from the settings, else from the checkpoint, else from `defaults`.

    Raises UserError for an option that is set and that this sampler does not have.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name not in ("name", "num_inference_steps", *defaults) and value is not None:
            raise UserError(
                f"sampler.{field.name}={value}: {settings.name} has no such option; leave it out "
                f"(it has {', '.join(defaults)})"
            )
    taken = {}
    for name, default in defaults.items():
        values = (getattr(settings, name, None), getattr(config, name, None), default)
        taken[name] = next((value for value in values if value is not None), None)
    return SimpleNamespace(**taken)
