"""TCD: few steps, with a model that was distilled to jump along its trajectory."""

import math
from types import SimpleNamespace

import numpy as np

from tpusd.config.sampler import SamplerSettings
from tpusd.errors import UserError
from tpusd.samplers.grid import distilled_grid
from tpusd.samplers.predictions import to_x0
from tpusd.samplers.registry import Sampler
from tpusd.samplers.rows import Table, level_of, row, table
from tpusd.samplers.schedule import STABLE_DIFFUSION_BETAS, SchedulerConfig


def tcd(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> Table:
    """Trajectory consistency distillation, with strategic stochastic sampling: Zheng et al. 2024.

    Each step jumps to a timestep s below the next one, and fresh noise brings it back up. The paper's gamma is `eta`:
    s is (1 - eta) times the next timestep. The last step ends at timestep 0.
    """
    if not 0 <= options.eta <= 1:
        raise UserError(f"sampler.eta={options.eta:g}: must be from 0 (no noise) to 1 (the most noise)")
    timesteps = distilled_grid(settings, config, options)
    alphas = config.alphas_cumprod(rescale=options.rescale_betas_zero_snr, **STABLE_DIFFUSION_BETAS)
    rows, levels = [], []
    for t, following in zip(timesteps, [*timesteps[1:], 0], strict=True):
        # In float32, as in diffusers: the product may lie just under a whole number or on it.
        s = math.floor(np.float32(1 - options.eta) * np.float32(following))
        a, a_s, a_following = float(alphas[t]), float(alphas[s]), float(alphas[following])
        # sqrt(a_s) x0 + direction * epsilon, with epsilon = (x - sqrt(a) x0) / sqrt(1 - a)
        direction = math.sqrt((1 - a_s) / (1 - a))
        kept = math.sqrt(a_following / a_s)
        x = {
            "x": kept * direction,
            "pred": kept * (math.sqrt(a_s) - direction * math.sqrt(a)),
            "noise": math.sqrt(1 - a_following / a_s),
        }
        rows.append(row(t=t, pred=to_x0(a, options.prediction_type), x=x))
        levels.append(level_of(a))
    return table(rows, levels)


SAMPLERS = (
    Sampler(
        name="tcd",
        a1111="TCD",
        table=tcd,
        defaults={
            "prediction_type": "epsilon",
            "rescale_betas_zero_snr": False,
            "eta": 0.3,
            "original_inference_steps": 50,
            "timesteps": None,
        },
        diffusers="TCDScheduler",
        paper="[Zheng et al. 2024](https://arxiv.org/abs/2402.19159)",
    ),
)
