"""Sampler settings and a checkpoint's schedule -> the table that the loop runs. NumPy; no JAX."""

import math

import numpy as np

from tpusd.config.sampler import SamplerSettings
from tpusd.errors import UserError, show
from tpusd.samplers.registry import find_sampler
from tpusd.samplers.rows import COLUMNS, MAX_ROWS, Table
from tpusd.samplers.schedule import SchedulerConfig
from tpusd.samplers.settings import resolve

__all__ = ["COLUMNS", "MAX_ROWS", "SamplerSettings", "Table", "make_table"]


def make_table(settings: SamplerSettings, scheduler_config: SchedulerConfig) -> Table:
    """The coefficients of every step.

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
    try:
        with np.errstate(all="ignore"):  # what is not finite is found in the table
            return sampler.table(settings, scheduler_config, options)
    except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
        # Two neighbouring timesteps of one noise, or a noise of 0 or 1 exactly: the reference has NaN there.
        raise UserError(
            f"sampler={settings.name}: with sampler.num_inference_steps={steps} and the checkpoint's noise schedule a "
            f"coefficient is not finite ({show(str(error), 80)}); take another number of steps or timestep_spacing, or "
            "sampler=ddim"
        ) from None
