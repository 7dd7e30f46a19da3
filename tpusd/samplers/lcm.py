"""LCM: few steps, with a model that was distilled for it."""

import math
from types import SimpleNamespace

from tpusd.config.sampler import SamplerSettings
from tpusd.errors import UserError
from tpusd.samplers.grid import distilled_grid
from tpusd.samplers.predictions import to_x0
from tpusd.samplers.registry import Sampler
from tpusd.samplers.rows import Table, level_of, row, table
from tpusd.samplers.schedule import STABLE_DIFFUSION_BETAS, SchedulerConfig

SIGMA_DATA = 0.5


def lcm(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> Table:
    """Latent consistency models: Luo et al. 2023, algorithm 3: to the clean sample, and back to the next noise level.

    A distilled model contains the guidance, so guidance_scale is usually 1 to 2.
    """
    timesteps = distilled_grid(settings, config, options)
    if options.timestep_scaling <= 0:
        raise UserError(f"sampler.timestep_scaling={options.timestep_scaling:g}: must be above 0; 10 is usual")
    alphas = config.alphas_cumprod(rescale=options.rescale_betas_zero_snr, **STABLE_DIFFUSION_BETAS)
    rows, levels = [], []
    for t, following in zip(timesteps, [*alphas[timesteps[1:]], 1.0], strict=True):
        scaled = float(t) * options.timestep_scaling
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)  # Song et al. 2023, appendix C
        out = scaled / math.sqrt(scaled**2 + SIGMA_DATA**2)
        x = {
            "x": math.sqrt(following) * skip,
            "pred": math.sqrt(following) * out,
            "noise": math.sqrt(1 - following),
        }
        rows.append(row(t=t, pred=to_x0(float(alphas[t]), options.prediction_type), x=x))
        levels.append(level_of(float(alphas[t])))
    return table(rows, levels)


SAMPLERS = (
    Sampler(
        name="lcm",
        a1111="LCM",
        table=lcm,
        defaults={
            "prediction_type": "epsilon",
            "rescale_betas_zero_snr": False,
            "original_inference_steps": 50,
            "timestep_scaling": 10.0,
            "timesteps": None,
        },
        diffusers="LCMScheduler",
        paper="[Luo et al. 2023](https://arxiv.org/abs/2310.04378)",
    ),
)
