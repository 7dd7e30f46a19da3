"""LCM: few steps with a model that was distilled for it."""

import math

import numpy as np

from tpusd.config.sampler import SamplerSettings
from tpusd.errors import UserError
from tpusd.samplers.predictions import to_x0
from tpusd.samplers.rows import Table, row, table
from tpusd.samplers.schedule import SchedulerConfig
from tpusd.samplers.settings import resolve

DEFAULTS = {
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}
SIGMA_DATA = 0.5


def lcm(settings: SamplerSettings, config: SchedulerConfig) -> Table:
    """Latent consistency models: Luo et al. 2023, algorithm 3: to the clean sample, and back to the next noise level.

    The timesteps are chosen among those of the distillation. A distilled model takes the guidance in, so
    guidance_scale is usually 1 to 2.
    """
    options = resolve(settings, config, DEFAULTS)
    steps, most = settings.num_inference_steps, options.original_inference_steps
    if not 1 <= most <= config.train_timesteps:
        raise UserError(f"sampler.original_inference_steps={most}: must be from 1 to {config.train_timesteps}")
    if steps > most:
        raise UserError(
            f"sampler.num_inference_steps={steps}: lcm chooses among sampler.original_inference_steps={most} "
            "timesteps; 4 to 8 steps are usual"
        )
    if options.timestep_scaling <= 0:
        raise UserError(f"sampler.timestep_scaling={options.timestep_scaling:g}: must be above 0; 10 is usual")
    alphas = config.alphas_cumprod(
        rescale=options.rescale_betas_zero_snr, beta_range=(0.00085, 0.012), beta_schedule="scaled_linear"
    )
    distilled = np.arange(most, 0, -1) * (config.train_timesteps // most) - 1
    timesteps = distilled[np.floor(np.linspace(0, most, steps, endpoint=False)).astype(np.int64)]
    rows = []
    for k, t in enumerate(timesteps):
        scaled = float(t) * options.timestep_scaling
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)  # Song et al. 2023, appendix C
        out = scaled / math.sqrt(scaled**2 + SIGMA_DATA**2)
        following = 1.0 if k == steps - 1 else alphas[timesteps[k + 1]]
        x = {
            "x": math.sqrt(following) * skip,
            "pred": math.sqrt(following) * out,
            "noise": math.sqrt(1 - following),
        }
        rows.append(row(t=t, pred=to_x0(alphas[t], options.prediction_type), x=x))
    return table(rows)
