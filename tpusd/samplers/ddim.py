"""Samplers that step on the trained timesteps in the variance-preserving variable: DDIM."""

import math

import numpy as np

from tpusd.errors import UserError
from tpusd.samplers.rows import Table, row, table
from tpusd.samplers.schedule import SchedulerConfig, rescale_zero_terminal_snr, whole_timesteps
from tpusd.samplers.settings import SamplerSettings, resolve

DDIM_DEFAULTS = {
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "eta": 0.0,
}


def ddim(settings: SamplerSettings, config: SchedulerConfig) -> Table:
    """Denoising diffusion implicit models: Song et al. 2021, equation 12 (their alpha is the cumulative product)."""
    options = resolve(settings, config, DDIM_DEFAULTS)
    alphas = vp_alphas(config, options)
    ratio = config.train_timesteps // settings.num_inference_steps
    rows = []
    for t in vp_timesteps(settings, config, options):
        a = alphas[t]
        previous = alphas[t - ratio] if t >= ratio else 1.0 if options.set_alpha_to_one else alphas[0]
        p_x, p_out = to_x0(a, options.prediction_type)
        sigma = options.eta * math.sqrt((1 - previous) / (1 - a) * (1 - a / previous))
        direction = math.sqrt(max(0.0, 1 - previous - sigma**2)) / math.sqrt(1 - a)  # of eps = (x - sqrt(a) x0) / ...
        x = {"x": direction, "pred": math.sqrt(previous) - direction * math.sqrt(a), "noise": sigma}
        rows.append(row(t=t, pred=(p_x, p_out), x=x, push=False))
    return table(rows)


def vp_alphas(config: SchedulerConfig, options) -> np.ndarray:
    """Cumulative products of 1 - beta, (num_train_timesteps,)."""
    betas = config.betas()
    if options.rescale_betas_zero_snr:
        betas = rescale_zero_terminal_snr(betas)
    return np.cumprod(1 - betas)


def vp_timesteps(settings: SamplerSettings, config: SchedulerConfig, options) -> np.ndarray:
    timesteps = whole_timesteps(
        options.timestep_spacing, settings.num_inference_steps, config.train_timesteps, options.steps_offset
    )
    if timesteps[0] >= config.train_timesteps:
        raise UserError(
            f"sampler.steps_offset={options.steps_offset}: the first of {settings.num_inference_steps} steps would be "
            f"at {timesteps[0]}, and the model knows 0 to {config.train_timesteps - 1}; use another "
            "sampler.num_inference_steps or a smaller offset"
        )
    return timesteps


def to_x0(a: float, prediction_type: str) -> tuple[float, float]:
    """Coefficients (of the sample, of the model's output) of the predicted clean sample; a: alpha's product at t."""
    if prediction_type == "epsilon":
        if a == 0:
            raise UserError(
                "sampler.rescale_betas_zero_snr=True: the first step is pure noise, from which an epsilon model can "
                "tell nothing; use a v_prediction model, or leave it out"
            )
        return 1 / math.sqrt(a), -math.sqrt((1 - a) / a)
    if prediction_type == "v_prediction":  # Salimans & Ho 2022, appendix D
        return math.sqrt(a), -math.sqrt(1 - a)
    return 0.0, 1.0
