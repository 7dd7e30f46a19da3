"""Where a sampler asks the model: the timesteps and noise levels that its options choose from the trained ones. NumPy.

Three families, as diffusers has them: DDIM's whole timesteps, Euler's sigmas between them, and the grid of the
exponential solvers (DPM-Solver, UniPC, DEIS), which starts one step earlier and takes its ends from the whole schedule.
"""

import math
from types import SimpleNamespace

import numpy as np

from tpusd.config.sampler import SamplerSettings
from tpusd.errors import UserError
from tpusd.samplers import schedule
from tpusd.samplers.schedule import SchedulerConfig


def whole_grid(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> np.ndarray:
    """Whole timesteps, falling, (n,)."""
    n, spacing = settings.num_inference_steps, options.timestep_spacing
    timesteps = schedule.whole_timesteps(spacing, n, config.train_timesteps, options.steps_offset)
    return _checked(timesteps, config, options)


def euler_grid(
    settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace, **beta_defaults
) -> tuple[np.ndarray, np.ndarray, float]:
    """Timesteps (n,), fractional ones too; sigmas (n + 1,), the last where the last step leads; init_scale."""
    n = settings.num_inference_steps
    trained = _trained(config, options, **beta_defaults)
    if options.timestep_spacing == "linspace":
        timesteps = np.linspace(0, len(trained) - 1, n)[::-1]
    else:
        timesteps = whole_grid(settings, config, options)
    sigmas = schedule.sigmas_at(timesteps, trained)
    if getattr(options, "interpolation_type", "linear") == "log_linear":
        # One level more than steps, so that the last step leads to the lowest trained sigma and not to zero.
        sigmas = schedule.exponential_sigmas(trained[0], trained[-1], n + 1)
    chosen = _chosen_sigmas(options, sigmas[-1], sigmas[0], n)
    if chosen is not None:
        sigmas, timesteps = chosen, schedule.timesteps_of(chosen, trained)
    sigmas = np.append(sigmas, _last(options, trained[0]))[: n + 1]
    high = sigmas[0]
    # Noise at the level of the first step; with `leading`, which starts lower, of the whole sample.
    return timesteps, sigmas, math.sqrt(high**2 + 1) if options.timestep_spacing == "leading" else high


def solver_grid(
    settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace
) -> tuple[np.ndarray, np.ndarray]:
    """Whole timesteps (n,) and sigmas (n + 1,), the last of which is where the last step leads."""
    n, spacing = settings.num_inference_steps, options.timestep_spacing
    trained = _trained(config, options)
    # Levels whose log of signal to noise lies under the clip are left out; `trained` rises.
    last = len(trained) - int(np.sum(-np.log(trained) < getattr(options, "lambda_min_clipped", -math.inf)))
    if last < 2:
        raise UserError(
            f"sampler.lambda_min_clipped={options.lambda_min_clipped:g}: leaves no noise levels; -5.1 is usual"
        )
    if spacing == "trailing":  # with a clip these are fewer than n
        timesteps = np.round(np.arange(last, 0, -len(trained) / n)).astype(np.int64)[:n] - 1
    elif spacing == "linspace":
        timesteps = np.linspace(0, last - 1, n + 1).round()[:0:-1].astype(np.int64)
    else:
        timesteps = np.arange(n, 0, -1) * (last // (n + 1)) + options.steps_offset
    _checked(timesteps, config, options)
    chosen = _chosen_sigmas(options, trained[0], trained[-1], n)
    if chosen is None:
        if (np.diff(timesteps) >= 0).any():
            raise UserError(
                f"sampler.num_inference_steps={n}: two steps would fall on one timestep; use fewer, or another "
                f"sampler.timestep_spacing than {spacing}"
            )
        return timesteps, np.append(schedule.sigmas_at(timesteps, trained), _last(options, trained[0]))
    timesteps = schedule.timesteps_of(chosen, trained)
    if options.use_karras_sigmas or getattr(options, "use_lu_lambdas", False):
        # dpmpp alone does not round where the schedule is the cosine.
        if not (hasattr(options, "lambda_min_clipped") and config.beta_schedule == "squaredcos_cap_v2"):
            timesteps = timesteps.round()
    lowest = trained[0] if getattr(options, "sigma_min", None) is None else options.sigma_min
    return timesteps.astype(np.int64), np.append(chosen, _last(options, lowest))


def _trained(config: SchedulerConfig, options: SimpleNamespace, **beta_defaults) -> np.ndarray:
    """Sigma of every trained timestep, rising."""
    rescale = getattr(options, "rescale_betas_zero_snr", False)
    return schedule.to_sigmas(config.alphas_cumprod(rescale=rescale, **beta_defaults))


def _chosen_sigmas(options: SimpleNamespace, low: float, high: float, n: int) -> np.ndarray | None:
    """Sigmas (n,) of the schedule that the options ask for, from high to low; None where they ask for none."""
    own_low, own_high = getattr(options, "sigma_min", None), getattr(options, "sigma_max", None)
    low, high = low if own_low is None else own_low, high if own_high is None else own_high
    if not 0 < low <= high < math.inf:
        raise UserError(
            f"sampler.sigma_min={low:g} sampler.sigma_max={high:g}: must be above 0, and the first not over the second"
        )
    makers = {
        "use_karras_sigmas": schedule.karras_sigmas,
        "use_exponential_sigmas": schedule.exponential_sigmas,
        "use_lu_lambdas": schedule.exponential_sigmas,  # even in the logarithm, Lu et al. 2022a, section 3.1
        "use_beta_sigmas": schedule.beta_sigmas,
    }
    for name, make in makers.items():
        if getattr(options, name, False):
            sigmas = make(low, high, n)
            sigmas[n - 1 :] = low if n > 1 else high  # to the last bit, so that a step from low to low is none
            return sigmas
    if (own_low, own_high) != (None, None):
        given = "sigma_min" if own_low is not None else "sigma_max"
        raise UserError(
            f"sampler.{given}={low if own_low is not None else high:g}: bounds the sigmas of use_karras_sigmas, "
            "use_exponential_sigmas or use_beta_sigmas; set one of them to true"
        )
    return None


def _last(options: SimpleNamespace, lowest: float) -> float:
    """Where the last step leads."""
    return lowest if getattr(options, "final_sigmas_type", "zero") == "sigma_min" else 0.0


def _checked(timesteps: np.ndarray, config: SchedulerConfig, options: SimpleNamespace) -> np.ndarray:
    if timesteps.max() >= config.train_timesteps:
        raise UserError(
            f"sampler.steps_offset={options.steps_offset}: the first of {len(timesteps)} steps would be at "
            f"{timesteps.max():g}, and the model knows 0 to {config.train_timesteps - 1}; use fewer steps, "
            "or sampler.timestep_spacing=trailing"
        )
    return timesteps
