"""Samplers in Karras' variable, clean sample + sigma * noise: Euler, Euler ancestral, Heun and LMS.

The kept prediction is the derivative (x - x0) / sigma of Karras et al. 2022, equation 4.
"""

import math
from types import SimpleNamespace
from typing import TypedDict

import numpy as np
from numpy.polynomial.polynomial import polyfromroots, polyint, polyval

from tpusd.config.sampler import SamplerSettings
from tpusd.samplers.grid import euler_grid
from tpusd.samplers.predictions import to_derivative
from tpusd.samplers.registry import OptionValue, Sampler
from tpusd.samplers.rows import Table, row, table
from tpusd.samplers.schedule import SchedulerConfig

LMS_ORDER = 4


class _ModelTerms(TypedDict):
    c_in: float
    pred: tuple[float, float]


def euler(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> Table:
    """Euler's method on the probability flow: Karras et al. 2022, algorithm 1 with one order and no churn."""
    timesteps, sigmas, init_scale = euler_grid(settings, config, options)
    rows = [
        row(t=t, **_model(sigma, options), x={"x": 1.0, "pred": following - sigma})
        for t, sigma, following in zip(timesteps, sigmas[:-1], sigmas[1:], strict=True)
    ]
    return table(rows, [(1.0, sigma) for sigma in sigmas[:-1]], init_scale)


def euler_ancestral(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> Table:
    """Euler steps to a lower sigma, and fresh noise back up to the next: k-diffusion's `euler_ancestral`.

    With sigma_down**2 + sigma_up**2 = sigma_next**2 it has the variances of Song et al. 2021 at eta 1.
    """
    timesteps, sigmas, init_scale = euler_grid(settings, config, options)
    rows = []
    for t, sigma, following in zip(timesteps, sigmas[:-1], sigmas[1:], strict=True):
        up = following * math.sqrt(1 - (following / sigma) ** 2)
        down = following**2 / sigma
        rows.append(row(t=t, **_model(sigma, options), x={"x": 1.0, "pred": down - sigma, "noise": up}))
    return table(rows, [(1.0, sigma) for sigma in sigmas[:-1]], init_scale)


def heun(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> Table:
    """Heun's method, two model calls a step and one for the last: Karras et al. 2022, algorithm 1 without churn."""
    timesteps, sigmas, init_scale = euler_grid(settings, config, options, beta_range=(0.00085, 0.012))
    rows, levels = [], []
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        dt = following - sigma
        levels.append((1.0, sigma))
        rows.append(row(t=timesteps[i], **_model(sigma, options), x={"x": 1.0, "pred": dt}, y={"x": 1.0}))
        if i + 1 < len(timesteps):
            mean = {"y": 1.0, "h1": dt / 2, "pred": dt / 2}
            rows.append(row(t=timesteps[i + 1], **_model(following, options), x=mean))
            levels.append((1.0, following))
    return table(rows, levels, init_scale)


def lms(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> Table:
    """Linear multistep of order 4 on uneven sigmas: k-diffusion's `lms`, with exact integrals of the polynomials.

    From a picture the order is at once that of the step in the whole schedule, as in diffusers, and what was not
    predicted is 0.
    """
    timesteps, sigmas, init_scale = euler_grid(settings, config, options, first_step=0)
    rows = []
    for i, t in list(enumerate(timesteps))[options.first_step :]:
        known = sigmas[i::-1][:LMS_ORDER]
        weights = [_lagrange_integral(known, j, sigmas[i], sigmas[i + 1]) for j in range(len(known))]
        x = {"x": 1.0, **dict(zip(("pred", "h1", "h2", "h3"), weights, strict=False))}
        rows.append(row(t=t, **_model(sigmas[i], options), x=x))
    return table(rows, [(1.0, sigma) for sigma in sigmas[options.first_step : -1]], init_scale)


def _model(sigma: float, options: SimpleNamespace) -> _ModelTerms:
    """The model sees the sample at unit variance; its output becomes the derivative."""
    return {"c_in": 1 / math.sqrt(sigma**2 + 1), "pred": to_derivative(sigma, options.prediction_type)}


def _lagrange_integral(known: np.ndarray, j: int, start: float, stop: float) -> float:
    """The integral from start to stop of the polynomial that is 1 at known[j] and 0 at the others."""
    others = np.delete(known, j)
    antiderivative = polyint(polyfromroots(others))
    return float((polyval(stop, antiderivative) - polyval(start, antiderivative)) / np.prod(known[j] - others))


_SPACING: dict[str, OptionValue] = {"prediction_type": "epsilon", "timestep_spacing": "linspace", "steps_offset": 0}
_SIGMAS: dict[str, OptionValue] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
SAMPLERS = (
    Sampler(
        name="euler",
        a1111="Euler",
        table=euler,
        defaults={
            **_SPACING,
            **_SIGMAS,
            "rescale_betas_zero_snr": False,
            "sigma_min": None,
            "sigma_max": None,
            "final_sigmas_type": "zero",
            "interpolation_type": "linear",
            "timesteps": None,
        },
        diffusers="EulerDiscreteScheduler",
        paper="[Karras et al. 2022](https://arxiv.org/abs/2206.00364), algorithm 1",
    ),
    Sampler(
        name="euler_ancestral",
        a1111="Euler a",
        table=euler_ancestral,
        defaults={**_SPACING, "rescale_betas_zero_snr": False},
        prediction_types=("epsilon", "v_prediction"),
        diffusers="EulerAncestralDiscreteScheduler",
        paper="k-diffusion",
    ),
    Sampler(
        name="heun",
        a1111="Heun",
        table=heun,
        defaults={**_SPACING, **_SIGMAS, "timesteps": None},
        diffusers="HeunDiscreteScheduler",
        paper="[Karras et al. 2022](https://arxiv.org/abs/2206.00364), algorithm 1",
    ),
    Sampler(
        name="lms",
        a1111="LMS",
        table=lms,
        defaults={**_SPACING, **_SIGMAS},
        diffusers="LMSDiscreteScheduler",
        paper="k-diffusion",
    ),
)
