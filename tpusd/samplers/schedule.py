"""A checkpoint's scheduler_config.json, and the noise schedules that come of it. NumPy; no JAX.

The cumulative product of alphas is rounded to float32 where diffusers rounds it, because whole timesteps are chosen by
comparing with it; everything after it is float64. sigma is sqrt((1 - a) / a) for the cumulative product a. Knows
nothing of samplers: what a file leaves out stays None here, because each sampler has its own default for it.
"""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tpusd.config.sampler import BetaSchedule, FinalSigmas, Interpolation, PredictionType, Spacing
from tpusd.errors import UserError

MAX_TRAIN_TIMESTEPS = 100_000
KARRAS_RHO = 7.0  # Karras et al. 2022, section 5
BETA_SIGMAS = (0.6, 0.6)  # the two shape parameters of Lee et al. 2024, "Beta Sampling is All You Need"
NEARLY_ZERO_ALPHA = 2.0**-24  # stands for the zero of a zero-terminal-SNR schedule where sigma would be infinite
# Fields that change the result and are not implemented, with the values that switch them off.
_ONLY = {"thresholding": (False, None), "use_flow_sigmas": (False, None), "timestep_type": ("discrete", None)}


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """The fields of scheduler_config.json that reach a table; None: the file does not say.

    clip_sample is left out: latents are not confined to -1..1, and StableDiffusionPipeline switches it off as well.
    """

    num_train_timesteps: int | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    beta_schedule: BetaSchedule | None = None
    trained_betas: tuple[float, ...] | None = None
    prediction_type: PredictionType | None = None
    timestep_spacing: Spacing | None = None
    steps_offset: int | None = None
    rescale_betas_zero_snr: bool | None = None
    set_alpha_to_one: bool | None = None
    variance_type: str | None = None
    use_karras_sigmas: bool | None = None
    use_exponential_sigmas: bool | None = None
    use_beta_sigmas: bool | None = None
    use_lu_lambdas: bool | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: FinalSigmas | None = None
    interpolation_type: Interpolation | None = None
    solver_order: int | None = None
    solver_type: str | None = None
    lower_order_final: bool | None = None
    euler_at_final: bool | None = None
    lambda_min_clipped: float | None = None
    predict_x0: bool | None = None
    disable_corrector: tuple[int, ...] | None = None
    original_inference_steps: int | None = None
    timestep_scaling: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SchedulerConfig":
        """Raises UserError for a field that is not implemented or that holds no such value."""
        name = values.get("_class_name")
        if isinstance(name, str) and ("FlowMatch" in name or "EDM" in name):
            raise UserError(f"_class_name={name}: flow matching and EDM models are not implemented")
        for key, allowed in _ONLY.items():
            if not any(values.get(key) is value or values.get(key) == value for value in allowed):
                raise UserError(f"{key}={values[key]!r}: is not implemented")
        taken = {}
        for key, hint in typing.get_type_hints(cls).items():
            if values.get(key) is not None:
                taken[key] = _checked(key, typing.get_args(hint)[0], values[key])  # hint: X | None
        made = cls(**taken)
        made.alphas_cumprod()
        return made

    @property
    def train_timesteps(self) -> int:
        return 1000 if self.num_train_timesteps is None else self.num_train_timesteps

    def alphas_cumprod(
        self, *, rescale: bool = False, beta_range: tuple[float, float] = (0.0001, 0.02), beta_schedule: str = "linear"
    ) -> np.ndarray:
        """The share of the clean sample's variance at each trained timestep, float64 (num_train_timesteps,).

        rescale: to zero terminal SNR. beta_range and beta_schedule: what a sampler takes where the file does not say.
        """
        betas = make_betas(
            self.beta_schedule or beta_schedule,
            beta_range[0] if self.beta_start is None else self.beta_start,
            beta_range[1] if self.beta_end is None else self.beta_end,
            self.train_timesteps,
            self.trained_betas,
        )
        return _float32(rescaled(betas) if rescale else np.cumprod(_float32(1 - betas)))


def make_betas(
    schedule: str, beta_start: float, beta_end: float, num_train_timesteps: int, trained_betas: tuple | None = None
) -> np.ndarray:
    """The variances that the forward process adds, (num_train_timesteps,). Ho et al. 2020, section 2."""
    if trained_betas is not None:
        betas = np.array(trained_betas, np.float64)
        if len(betas) != num_train_timesteps:
            raise UserError(f"trained_betas: {len(betas)} values for num_train_timesteps={num_train_timesteps}")
    elif schedule == "linear":
        betas = _linspace(beta_start, beta_end, num_train_timesteps)
    elif schedule == "scaled_linear":
        if min(beta_start, beta_end) < 0:
            raise UserError(f"beta_start={beta_start:g} beta_end={beta_end:g}: must lie between 0 and 1")
        betas = _linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
    else:  # Nichol & Dhariwal 2021, equation 17
        edges = np.arange(num_train_timesteps + 1) / num_train_timesteps
        alpha_bar = np.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    betas = _float32(betas)
    # The last may be 1: pure noise.
    if not ((betas > 0) & (betas <= 1)).all() or (betas[:-1] == 1).any():
        raise UserError("beta_start, beta_end, trained_betas: every beta must lie between 0 and 1")
    return betas


def rescaled(betas: np.ndarray) -> np.ndarray:
    """Betas -> the cumulative product of alphas, shifted so that it ends in zero. Lin et al. 2023, algorithm 1."""
    root = np.sqrt(np.cumprod(1 - betas))
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2 if len(root) > 1 else np.zeros(1)


def whole_timesteps(spacing: Spacing, steps: int, num_train_timesteps: int, offset: int) -> np.ndarray:
    """Whole timesteps, falling, (steps,). Lin et al. 2023, table 2. offset: only `leading` has one."""
    if spacing == "linspace":
        return np.linspace(0, num_train_timesteps - 1, steps).round()[::-1].astype(np.int64)
    if spacing == "leading":
        return np.arange(steps)[::-1] * (num_train_timesteps // steps) + offset
    # diffusers' arange gives one more, at -1, for some numbers of steps.
    return np.round(np.arange(num_train_timesteps, 0, -num_train_timesteps / steps)).astype(np.int64)[:steps] - 1


def to_sigmas(alphas_cumprod: np.ndarray) -> np.ndarray:
    """sqrt((1 - a) / a), rising with the timestep; a zero in `alphas_cumprod` counts as 2**-24, as in diffusers."""
    a = np.where(alphas_cumprod == 0, NEARLY_ZERO_ALPHA, alphas_cumprod)
    return _float32(np.sqrt((1 - a) / a))


def sigmas_at(timesteps: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Between the trained timesteps sigma is interpolated linearly. trained: sigma of every trained timestep."""
    return np.interp(timesteps, np.arange(len(trained)), trained)


def timesteps_of(sigmas: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """The timestep, fractional, at which the model was trained for each sigma: linear in log sigma."""
    log_trained, log_sigmas = _float32(np.log(trained)), np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(log_trained, log_sigmas, side="right") - 1, 0, len(trained) - 2)
    weight = np.clip((log_trained[low] - log_sigmas) / (log_trained[low] - log_trained[low + 1]), 0, 1)
    return (1 - weight) * low + weight * (low + 1)


def karras_sigmas(low: float, high: float, n: int) -> np.ndarray:
    """From `high` down to `low`, (n,). Karras et al. 2022, equation 5."""
    ramp = np.linspace(0, 1, n)
    return (high ** (1 / KARRAS_RHO) + ramp * (low ** (1 / KARRAS_RHO) - high ** (1 / KARRAS_RHO))) ** KARRAS_RHO


def exponential_sigmas(low: float, high: float, n: int) -> np.ndarray:
    """From `high` down to `low` in equal ratios, (n,)."""
    return np.exp(np.linspace(math.log(high), math.log(low), n))


def beta_sigmas(low: float, high: float, n: int) -> np.ndarray:
    """From `high` down to `low`, close at both ends, (n,): quantiles of a beta distribution. Lee et al. 2024."""
    from scipy.special import betaincinv  # slow to import, and seldom needed

    return low + betaincinv(*BETA_SIGMAS, 1 - np.linspace(0, 1, n)) * (high - low)


def _linspace(start: float, end: float, n: int) -> np.ndarray:
    """np.linspace with torch's float32 rounding of bounds and step, counted from the nearer end."""
    if n == 1:
        return np.array([np.float32(start)], np.float64)
    low, high = np.float32(start), np.float32(end)
    step, i = float((high - low) / np.float32(n - 1)), np.arange(n)
    return _float32(np.where(i < n // 2, float(low) + step * i, float(high) - step * (n - 1 - i)))


def _float32(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).astype(np.float32).astype(np.float64)


def _checked(name: str, hint: Any, value: Any) -> Any:
    """A value from a stranger's file as the type that the field asks for."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in args:
            raise UserError(f"{name}={str(value)[:80]!r}: is not implemented (implemented: {', '.join(args)})")
        return value
    if origin is tuple:
        if isinstance(value, list | tuple) and len(value) <= MAX_TRAIN_TIMESTEPS:
            return tuple(_checked(name, args[0], item) for item in value)
    elif hint is float:
        # Minus infinity is how lambda_min_clipped says "not at all".
        if isinstance(value, int | float) and not isinstance(value, bool) and (abs(value) < 1e30 or value == -math.inf):
            return float(value)
    elif hint is int:
        low = 1 if name in ("num_train_timesteps", "original_inference_steps", "solver_order") else 0
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= MAX_TRAIN_TIMESTEPS:
            return value
    elif isinstance(value, hint):
        return value
    raise UserError(f"{name}={str(value)[:80]!r}: is no value that it can have")
