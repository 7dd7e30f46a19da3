"""Sampler settings and a checkpoint's schedule -> the table that the loop runs. NumPy; no JAX."""

import math
from types import SimpleNamespace

import numpy as np

from tpusd.config.sampler import SamplerSettings
from tpusd.errors import UserError
from tpusd.samplers.registry import find_sampler
from tpusd.samplers.rows import COLUMNS, MAX_ROWS, Table
from tpusd.samplers.schedule import SchedulerConfig
from tpusd.samplers.settings import resolve

__all__ = ["COLUMNS", "MAX_ROWS", "SamplerSettings", "Table", "make_table"]


def first_step(num_inference_steps: int, strength: float) -> int:
    """The step at which an image starts that keeps 1 - strength of a picture. Raises UserError where no step is left.

    As in diffusers: the last int(num_inference_steps * strength) steps are made.
    """
    made = min(int(num_inference_steps * strength), num_inference_steps)
    if made < 1:
        smallest = math.ceil(10**4 / num_inference_steps) / 10**4
        raise UserError(
            f"strength={strength:g}: makes no step of sampler.num_inference_steps={num_inference_steps}; use "
            f"strength={smallest:g} or more"
        )
    return num_inference_steps - made


def make_table(settings: SamplerSettings, scheduler_config: SchedulerConfig, *, strength: float = 1.0) -> Table:
    """The coefficients of every step.

    strength: the share of the steps, the last ones, that an image makes which starts from a picture.

    Raises UserError for an unknown sampler, and for settings that contradict each other or the checkpoint.
    """
    sampler = find_sampler(settings.name)
    steps, most = settings.num_inference_steps, scheduler_config.train_timesteps
    if not 1 <= steps <= most:
        raise UserError(
            f"sampler.num_inference_steps={steps}: must be from 1 to {most}, the timesteps that the model knows"
        )
    if settings.steps_offset is not None and not 0 <= settings.steps_offset < most:
        raise UserError(f"sampler.steps_offset={settings.steps_offset}: must be from 0 to {most - 1}; 0 or 1 are usual")
    for option, value in vars(settings).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"sampler.{option}={value}: must be a finite number; leave it out for the default")
    options = resolve(settings, scheduler_config, sampler)
    options.first_step = first_step(steps, strength)
    try:
        with np.errstate(all="ignore"):  # what is not finite is found in the table
            return sampler.table(settings, scheduler_config, options)
    except (ArithmeticError, ValueError, np.linalg.LinAlgError):
        raise UserError(_why_not_finite(settings, scheduler_config, options)) from None


def _why_not_finite(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> str:
    """What to change where a coefficient is infinite or no number, as in the reference."""
    alphas = config.alphas_cumprod()
    what = f"sampler={settings.name} sampler.num_inference_steps={settings.num_inference_steps}"
    if not (0 < alphas.min() and alphas.max() < 1 and (np.diff(alphas) < 0).all()):
        return (
            f"{what}: not every coefficient is finite, because the noise of the checkpoint's scheduler_config.json "
            "does not grow from each timestep to the next, from above 0 to below 1, in float32; correct its betas, or "
            "use another sampler, such as euler"
        )
    if getattr(options, "rescale_betas_zero_snr", False):
        return (
            f"{what} sampler.rescale_betas_zero_snr=True: not every coefficient is finite, because the rescaled noise "
            "does not fall in each step near pure noise; use fewer steps, sampler=euler, or "
            "sampler.rescale_betas_zero_snr=false"
        )
    return f"{what}: not every coefficient is finite; use fewer steps, or another sampler, such as euler"
