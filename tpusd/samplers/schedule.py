"""A checkpoint's scheduler_config.json, and the noise schedules that it describes. NumPy; no JAX.

The cumulative product of alphas is rounded to float32, as in diffusers, because comparisons with it choose the whole
timesteps; everything after it is float64. sigma is sqrt((1 - a) / a) for the cumulative product a. Knows no sampler: a
field that the file does not have stays None here, because each sampler has its own default for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypedDict

import numpy as np
from annotated_types import Interval, Len

from tpusd.config.sampler import BetaSchedule, SamplerOptions, Spacing
from tpusd.config.typed import read
from tpusd.errors import UserError, show

MAX_TRAIN_TIMESTEPS = 100_000
KARRAS_RHO = 7.0  # Karras et al. 2022, section 5
BETA_SIGMAS = (0.6, 0.6)  # the two shape parameters of Lee et al. 2024, "Beta Sampling is All You Need"
NEARLY_ZERO_ALPHA = 2.0**-24  # replaces the zero of a zero-terminal-SNR schedule, at which sigma would be infinite
NEVER_PUBLISHED = {"eta", "timesteps"}  # diffusers takes them as arguments of calls, and ignores them in a file
# Fields that change the result and are not implemented, with the values that switch them off.
_ONLY = {"thresholding": (False, None), "use_flow_sigmas": (False, None), "timestep_type": ("discrete", None)}


class BetaDefaults(TypedDict, total=False):
    """A sampler's own noise schedule, for checkpoints whose file gives no other."""

    beta_range: tuple[float, float]
    beta_schedule: str


# LCMScheduler and TCDScheduler have Stable Diffusion's schedule as their default.
STABLE_DIFFUSION_BETAS: BetaDefaults = {"beta_range": (0.00085, 0.012), "beta_schedule": "scaled_linear"}

# The ranges of numbers in a file, which may come from anyone.
_Number = Annotated[float, Interval(ge=-1e30, le=1e30)]
_Timestep = Annotated[int, Interval(ge=0, le=MAX_TRAIN_TIMESTEPS)]
_Count = Annotated[int, Interval(ge=1, le=MAX_TRAIN_TIMESTEPS)]


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(SamplerOptions):
    """The fields of scheduler_config.json that change a table; None: the file does not have the field.

    clip_sample and skip_prk_steps change no table: latents are never clipped, and PNDM has no Runge-Kutta steps. A
    family says where that differs from its reference.
    """

    class_name: str | None = None  # of diffusers, without a leading `Flax`
    clip_sample: bool | None = None
    skip_prk_steps: bool | None = None

    num_train_timesteps: _Count | None = None
    beta_start: _Number | None = None
    beta_end: _Number | None = None
    beta_schedule: BetaSchedule | None = None
    trained_betas: Annotated[tuple[_Number, ...], Len(0, MAX_TRAIN_TIMESTEPS)] | None = None
    # Options that a run may set too, here with the range of a file.
    steps_offset: _Timestep | None = None
    sigma_min: _Number | None = None
    sigma_max: _Number | None = None
    solver_order: _Count | None = None
    lambda_min_clipped: Annotated[float, Interval(ge=-math.inf, le=1e30)] | None = None  # minus infinity: no clip
    disable_corrector: Annotated[tuple[_Timestep, ...], Len(0, MAX_TRAIN_TIMESTEPS)] | None = None
    original_inference_steps: _Count | None = None
    timestep_scaling: _Number | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SchedulerConfig":
        """values: the file's JSON. Raises UserError for a field that is not implemented and for an invalid value."""
        name = values.get("_class_name")
        if isinstance(name, str) and ("FlowMatch" in name or "EDM" in name):
            raise UserError(f"_class_name={show(name)}: flow matching and EDM models are not implemented")
        for key, allowed in _ONLY.items():
            if not any(values.get(key) is value or values.get(key) == value for value in allowed):
                raise UserError(f"{key}={show(values[key])}: is not implemented")
        known = {field.name for field in fields(cls)} - NEVER_PUBLISHED - {"class_name"}
        taken = {key: value for key, value in values.items() if key in known and value is not None}
        taken["class_name"] = name.removeprefix("Flax") if isinstance(name, str) else None
        config = read(cls, taken)
        config.alphas_cumprod()
        return config

    @property
    def train_timesteps(self) -> int:
        return 1000 if self.num_train_timesteps is None else self.num_train_timesteps

    def alphas_cumprod(
        self, *, rescale: bool = False, beta_range: tuple[float, float] = (0.0001, 0.02), beta_schedule: str = "linear"
    ) -> np.ndarray:
        """The share of the clean sample's variance at each trained timestep, float64 (num_train_timesteps,).

        rescale: to zero terminal SNR. beta_range, beta_schedule: the sampler's own, for what the file does not have.
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
    schedule: str,
    beta_start: float,
    beta_end: float,
    num_train_timesteps: int,
    trained_betas: tuple[float, ...] | None = None,
) -> np.ndarray:
    """The variances that the forward process adds. Ho et al. 2020, section 2.

    Args:
        schedule: a BetaSchedule; not used with `trained_betas`.
        beta_start: the first variance.
        beta_end: the last variance.
        num_train_timesteps: the number of variances.
        trained_betas: the variances themselves.

    Returns:
        float64 (num_train_timesteps,), rounded to float32.

    Raises:
        UserError: a variance is not between 0 and 1, or `trained_betas` has another length.
    """
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
    """Whole timesteps, falling, (steps,). Lin et al. 2023, table 2. offset: for `leading` only."""
    if spacing == "linspace":
        return np.linspace(0, num_train_timesteps - 1, steps).round()[::-1].astype(np.int64)
    if spacing == "leading":
        return np.arange(steps)[::-1] * (num_train_timesteps // steps) + offset
    # For some numbers of steps diffusers' arange gives one more timestep, -1.
    return np.round(np.arange(num_train_timesteps, 0, -num_train_timesteps / steps)).astype(np.int64)[:steps] - 1


def to_sigmas(alphas_cumprod: np.ndarray) -> np.ndarray:
    """sqrt((1 - a) / a), rising with the timestep; a zero in `alphas_cumprod` becomes 2**-24, as in diffusers."""
    a = np.where(alphas_cumprod == 0, NEARLY_ZERO_ALPHA, alphas_cumprod)
    return _float32(np.sqrt((1 - a) / a))


def sigmas_at(timesteps: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Sigma at each timestep, linear between the trained ones. trained: sigma of every trained timestep, rising."""
    return np.asarray(np.interp(timesteps, np.arange(len(trained)), trained))


def timesteps_of(sigmas: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """The fractional timestep of each sigma, linear in log sigma. trained: sigma of every trained timestep, rising."""
    if len(trained) == 1:
        return np.zeros(len(sigmas))
    log_trained, log_sigmas = _float32(np.log(trained)), np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(log_trained, log_sigmas, side="right") - 1, 0, len(trained) - 2)
    weight = np.clip((log_trained[low] - log_sigmas) / (log_trained[low] - log_trained[low + 1]), 0, 1)
    return np.asarray((1 - weight) * low + weight * (low + 1))


def karras_sigmas(low: float, high: float, n: int) -> np.ndarray:
    """From `high` down to `low`, (n,). Karras et al. 2022, equation 5."""
    start, stop = high ** (1 / KARRAS_RHO), low ** (1 / KARRAS_RHO)
    return np.asarray((start + np.linspace(0, 1, n) * (stop - start)) ** KARRAS_RHO)


def exponential_sigmas(low: float, high: float, n: int) -> np.ndarray:
    """From `high` down to `low` in equal ratios, (n,)."""
    return np.exp(np.linspace(math.log(high), math.log(low), n))


def beta_sigmas(low: float, high: float, n: int) -> np.ndarray:
    """From `high` down to `low`, close at both ends, (n,): quantiles of a beta distribution. Lee et al. 2024."""
    from scipy.special import betaincinv  # slow to import, and rarely needed

    return np.asarray(low + betaincinv(*BETA_SIGMAS, 1 - np.linspace(0, 1, n)) * (high - low))


def _linspace(start: float, end: float, n: int) -> np.ndarray:
    """np.linspace with torch's rounding: float32 bounds and step, counted from the nearer end."""
    if n == 1:
        return np.array([np.float32(start)], np.float64)
    low, high = np.float32(start), np.float32(end)
    step, i = float((high - low) / np.float32(n - 1)), np.arange(n)
    return _float32(np.where(i < n // 2, float(low) + step * i, float(high) - step * (n - 1 - i)))


def _float32(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).astype(np.float32).astype(np.float64)
