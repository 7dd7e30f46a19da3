"""DDIM and DDPM: steps between trained timesteps through the predicted clean sample."""

import math
from types import SimpleNamespace

from tpusd.config.sampler import SamplerSettings
from tpusd.errors import UserError
from tpusd.samplers.grid import whole_grid
from tpusd.samplers.predictions import to_x0
from tpusd.samplers.registry import Sampler
from tpusd.samplers.rows import Table, level_of, row, table
from tpusd.samplers.schedule import SchedulerConfig


def ddim(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> Table:
    """Denoising diffusion implicit models: Song et al. 2021, equations 12 and 16; their alpha is `a` here."""
    if not 0 <= options.eta <= 1:
        raise UserError(f"sampler.eta={options.eta:g}: must be from 0 (no noise) to 1 (the noise of ddpm)")
    alphas = config.alphas_cumprod(rescale=options.rescale_betas_zero_snr)
    ratio = config.train_timesteps // settings.num_inference_steps
    rows, levels = [], []
    for t in whole_grid(settings, config, options):
        a = float(alphas[t])
        previous = alphas[t - ratio] if t >= ratio else 1.0 if options.set_alpha_to_one else alphas[0]
        sigma = options.eta * math.sqrt((1 - previous) / (1 - a) * (1 - a / previous))
        # sqrt(previous) x0 + direction * epsilon, with epsilon = (x - sqrt(a) x0) / sqrt(1 - a)
        direction = math.sqrt(max(0.0, 1 - previous - sigma**2) / (1 - a))
        x = {"x": direction, "pred": math.sqrt(previous) - direction * math.sqrt(a), "noise": sigma}
        rows.append(row(t=t, pred=to_x0(a, options.prediction_type), x=x))
        levels.append(level_of(a))
    return table(rows, levels)


def ddpm(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> Table:
    """Denoising diffusion probabilistic models: Ho et al. 2020, equations 6 and 7, between the chosen timesteps."""
    alphas = config.alphas_cumprod(rescale=options.rescale_betas_zero_snr)
    timesteps = whole_grid(settings, config, options)
    rows, levels = [], []
    for t, previous in zip(timesteps, [*alphas[timesteps[1:]], 1.0], strict=True):
        a = float(alphas[t])
        beta = 1 - a / previous
        variance = beta if options.variance_type == "fixed_large" else (1 - previous) / (1 - a) * beta
        x = {
            "x": math.sqrt(a / previous) * (1 - previous) / (1 - a),
            "pred": math.sqrt(previous) * beta / (1 - a),
            "noise": math.sqrt(variance) if t > 0 else 0.0,
        }
        rows.append(row(t=t, pred=to_x0(a, options.prediction_type), x=x))
        levels.append(level_of(a))
    return table(rows, levels)


SAMPLERS = (
    Sampler(
        name="ddim",
        a1111="DDIM",
        table=ddim,
        defaults={
            "prediction_type": "epsilon",
            "timestep_spacing": "leading",
            "steps_offset": 0,
            "rescale_betas_zero_snr": False,
            "set_alpha_to_one": True,
            "eta": 0.0,
        },
        diffusers="DDIMScheduler",
        paper="[Song et al. 2021](https://arxiv.org/abs/2010.02502)",
    ),
    Sampler(
        name="ddpm",
        a1111="DDPM",
        table=ddpm,
        defaults={
            "prediction_type": "epsilon",
            "timestep_spacing": "leading",
            "steps_offset": 0,
            "rescale_betas_zero_snr": False,
            "variance_type": "fixed_small",
            "timesteps": None,
        },
        # fixed_small_log is the same number as fixed_small; diffusers takes its logarithm and then its exponential.
        choices={"variance_type": ("fixed_small", "fixed_small_log", "fixed_large")},
        diffusers="DDPMScheduler",
        paper="[Ho et al. 2020](https://arxiv.org/abs/2006.11239)",
    ),
)
