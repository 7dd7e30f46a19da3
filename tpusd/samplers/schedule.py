"""A checkpoint's scheduler_config.json, and the noise schedule that it describes. NumPy in float64; no JAX.

Knows nothing of samplers: what a file leaves out stays None here, because each sampler has its own default for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from tpusd.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
MAX_TRAIN_TIMESTEPS = 100_000

Spacing = Literal["leading", "linspace", "trailing"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]

# Fields that change the result and are not implemented, with the values that switch them off.
_ONLY = {
    "thresholding": (False, None),
    "use_flow_sigmas": (False, None),
    "timestep_type": ("discrete", None),
}
_CHOICES = {
    "beta_schedule": BETA_SCHEDULES,
    "prediction_type": PREDICTION_TYPES,
    "timestep_spacing": SPACINGS,
}


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """The fields of scheduler_config.json that reach a table; None: the file does not say.

    clip_sample is left out: latents are not confined to -1..1, and StableDiffusionPipeline switches it off as well.
    """

    num_train_timesteps: int | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    beta_schedule: str | None = None
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str | None = None
    timestep_spacing: str | None = None
    steps_offset: int | None = None
    set_alpha_to_one: bool | None = None
    rescale_betas_zero_snr: bool | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SchedulerConfig":
        """Raises UserError for a field that is not implemented or that is no such value."""
        name = values.get("_class_name")
        if isinstance(name, str) and ("FlowMatch" in name or "EDM" in name):
            raise UserError(f"_class_name={name}: flow matching and EDM models are not implemented")
        for key, allowed in _ONLY.items():
            if not any(values.get(key) is value or values.get(key) == value for value in allowed):
                raise UserError(f"{key}={values[key]!r}: is not implemented")
        taken = {}
        for field in fields(cls):
            value = values.get(field.name)
            if value is not None:
                taken[field.name] = _checked(field.name, str(field.type), value)
        made = cls(**taken)
        made.betas()
        return made

    def betas(self) -> np.ndarray:
        """The variances of the forward process, (num_train_timesteps,). Ho et al. 2020, section 2."""
        return make_betas(
            self.beta_schedule or "linear",
            0.0001 if self.beta_start is None else self.beta_start,
            0.02 if self.beta_end is None else self.beta_end,
            self.train_timesteps,
            self.trained_betas,
        )

    @property
    def train_timesteps(self) -> int:
        return 1000 if self.num_train_timesteps is None else self.num_train_timesteps


def make_betas(
    schedule: str, beta_start: float, beta_end: float, num_train_timesteps: int, trained_betas: tuple | None = None
) -> np.ndarray:
    if trained_betas is not None:
        betas = np.array(trained_betas, np.float64)
        if len(betas) != num_train_timesteps:
            raise UserError(f"trained_betas: {len(betas)} values for num_train_timesteps={num_train_timesteps}")
    elif schedule == "linear":
        betas = np.linspace(beta_start, beta_end, num_train_timesteps)
    elif schedule == "scaled_linear":
        betas = np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
    else:  # squaredcos_cap_v2: Nichol & Dhariwal 2021, equation 17
        edges = np.arange(num_train_timesteps + 1) / num_train_timesteps
        alpha_bar = np.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    if not ((betas > 0) & (betas <= 1)).all() or (betas[:-1] == 1).any():  # the last may be pure noise
        raise UserError("the betas must lie between 0 and 1; look at beta_start, beta_end and trained_betas")
    return betas


def rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas whose last step is pure noise. Lin et al. 2023, algorithm 1."""
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alphas_cumprod = root**2
    return 1 - np.concatenate([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])


def whole_timesteps(spacing: str, steps: int, num_train_timesteps: int, offset: int) -> np.ndarray:
    """Whole timesteps, falling, (steps,). Lin et al. 2023, table 2. offset: only `leading` has one."""
    if spacing == "linspace":
        return np.linspace(0, num_train_timesteps - 1, steps).round()[::-1].astype(np.int64)
    if spacing == "leading":
        return np.arange(steps)[::-1] * (num_train_timesteps // steps) + offset
    return np.round(np.arange(num_train_timesteps, 0, -num_train_timesteps / steps)).astype(np.int64) - 1


def _checked(name: str, kind: str, value: Any) -> Any:
    if name in _CHOICES and value not in _CHOICES[name]:
        raise UserError(f"{name}={value!r}: is not implemented (implemented: {', '.join(_CHOICES[name])})")
    if kind.startswith("bool"):
        good = isinstance(value, bool)
    elif kind.startswith("int"):
        low, high = (1, MAX_TRAIN_TIMESTEPS) if name == "num_train_timesteps" else (0, MAX_TRAIN_TIMESTEPS)
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    elif kind.startswith("float"):
        good = _is_number(value)
        value = float(value) if good else value
    elif kind.startswith("tuple"):
        good = isinstance(value, list | tuple) and len(value) <= MAX_TRAIN_TIMESTEPS and all(map(_is_number, value))
        value = tuple(map(float, value)) if good else value
    else:
        good = isinstance(value, str)
    if not good:
        raise UserError(f"{name}={str(value)[:80]!r}: is not a value that it can have")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
