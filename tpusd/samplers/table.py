"""Sampler settings and a checkpoint's schedule -> the table that the loop runs. Pure NumPy, so asked early."""

import math

from tpusd.config.sampler import SamplerSettings
from tpusd.errors import UserError
from tpusd.samplers import ddim, euler, lcm, multistep, pndm, unipc
from tpusd.samplers.rows import COLUMNS, MAX_ROWS, Table
from tpusd.samplers.schedule import SchedulerConfig

__all__ = ["COLUMNS", "MAX_ROWS", "SamplerSettings", "Table", "make_table"]

_SAMPLERS = {
    "pndm": pndm.pndm,
    "ddim": ddim.ddim,
    "ddpm": ddim.ddpm,
    "euler": euler.euler,
    "euler_ancestral": euler.euler_ancestral,
    "heun": euler.heun,
    "lms": euler.lms,
    "dpmpp_2m": multistep.dpmpp_2m,
    "dpmpp_2m_sde": multistep.dpmpp_2m_sde,
    "unipc": unipc.unipc,
    "deis": multistep.deis,
    "lcm": lcm.lcm,
}


def make_table(settings: SamplerSettings, scheduler_config: SchedulerConfig) -> Table:
    """Raises UserError for settings that do not suit each other or the checkpoint."""
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
    return _SAMPLERS[settings.name](settings, scheduler_config)
