"""The timesteps and noise levels of a sampler's model calls, which its options choose from the trained ones. NumPy.

Four families, as in diffusers: DDIM's whole timesteps; the timesteps of a distillation (LCM, TCD); Euler's sigmas
between the timesteps; and the grid of the exponential solvers (DPM-Solver, UniPC, DEIS), which starts one step earlier
and takes its ends from the whole schedule.
"""

import math
from types import SimpleNamespace
from typing import Unpack

import numpy as np

from tpusd.config.sampler import SamplerSettings
from tpusd.errors import UserError
from tpusd.samplers import schedule
from tpusd.samplers.schedule import BetaDefaults, SchedulerConfig


def whole_grid(
    settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace, *, first_step: int | None = None
) -> np.ndarray:
    """Whole timesteps, falling, (n,). Raises UserError for timesteps that the model does not know.

    first_step: steps before it are left out; None: options.first_step.
    """
    first = options.first_step if first_step is None else first_step
    if (given := _given(options)) is not None:
        return given[first:]
    n, spacing = settings.num_inference_steps, options.timestep_spacing
    timesteps = schedule.whole_timesteps(spacing, n, config.train_timesteps, options.steps_offset)
    return _checked(timesteps, config, options)[first:]


def distilled_grid(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> np.ndarray:
    """Whole timesteps, falling, (n,): evenly chosen among the original_inference_steps of a distillation."""
    if (given := _given(options)) is not None:
        return given[options.first_step :]
    n, most = settings.num_inference_steps, options.original_inference_steps
    if not 1 <= most <= config.train_timesteps:
        raise UserError(f"sampler.original_inference_steps={most}: must be from 1 to {config.train_timesteps}")
    if n > most:
        raise UserError(
            f"sampler.num_inference_steps={n}: {settings.name} chooses among sampler.original_inference_steps={most} "
            "timesteps; 4 to 8 steps are usual"
        )
    distilled = np.arange(most, 0, -1) * (config.train_timesteps // most) - 1
    chosen = distilled[np.floor(np.linspace(0, most, n, endpoint=False)).astype(np.int64)]
    return np.asarray(chosen[options.first_step :])


def euler_grid(
    settings: SamplerSettings,
    config: SchedulerConfig,
    options: SimpleNamespace,
    *,
    first_step: int | None = None,
    **beta_defaults: Unpack[BetaDefaults],
) -> tuple[np.ndarray, np.ndarray, float]:
    """The grid of the samplers in Karras' variable. first_step: as in whole_grid.

    Returns:
        Timesteps (n,), which may be fractional.
        Sigmas (n + 1,): the level of each model call, and the level at which the last step ends.
        init_scale: the factor on the initial noise.
    """
    n = settings.num_inference_steps
    trained = _trained(config, options, **beta_defaults)
    if options.timestep_spacing == "linspace" and _given(options) is None:
        timesteps = np.linspace(0, len(trained) - 1, n)[::-1]
    else:
        timesteps = whole_grid(settings, config, options, first_step=0)
    sigmas = schedule.sigmas_at(timesteps, trained)
    if getattr(options, "interpolation_type", "linear") == "log_linear":
        # One level more than steps, so that the last step leads to the lowest trained sigma and not to zero.
        sigmas = schedule.exponential_sigmas(trained[0], trained[-1], n + 1)
    chosen = _chosen_sigmas(options, sigmas[-1], sigmas[0], n)
    if chosen is not None:
        sigmas, timesteps = chosen, schedule.timesteps_of(chosen, trained)
    sigmas = np.append(sigmas, _last(options, trained[0]))[: n + 1]
    high = sigmas[0]
    # The noise of the first step; with `leading`, which starts at a lower level, the deviation of the whole sample.
    init_scale = math.sqrt(high**2 + 1) if options.timestep_spacing == "leading" else high
    first = options.first_step if first_step is None else first_step
    return timesteps[first:], sigmas[first:], init_scale


def solver_grid(
    settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace
) -> tuple[np.ndarray, np.ndarray]:
    """Whole timesteps (n,) and sigmas (n + 1,), the last of which is the level at which the last step ends."""
    timesteps, sigmas = _whole_solver_grid(settings, config, options)
    if options.first_step >= len(timesteps):  # with a clip these are fewer than the steps
        raise UserError(
            f"sampler.lambda_min_clipped={options.lambda_min_clipped:g}: leaves {len(timesteps)} of "
            f"{settings.num_inference_steps} steps, and this strength starts after them; use a larger strength"
        )
    return timesteps[options.first_step :], sigmas[options.first_step :]


def _whole_solver_grid(
    settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace
) -> tuple[np.ndarray, np.ndarray]:
    n, spacing = settings.num_inference_steps, options.timestep_spacing
    trained = _trained(config, options)
    # Leave out the levels whose log of signal to noise is under the clip; `trained` rises.
    clip = getattr(options, "lambda_min_clipped", -math.inf)
    last = len(trained) - int(np.sum(-np.log(trained) < clip))
    if last < 2:
        raise UserError(
            f"sampler.lambda_min_clipped={clip:g}: leaves no noise levels; -5.1 is usual"
            if last < len(trained)
            else f"sampler={settings.name}: needs two noise levels or more, and the checkpoint has "
            f"num_train_timesteps={len(trained)}; use sampler=ddim"
        )
    given = _given(options)
    if given is not None:
        timesteps = given
    elif spacing == "trailing":  # with a clip these are fewer than n
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
    lu_lambdas = getattr(options, "use_lu_lambdas", False)
    if options.use_karras_sigmas or lu_lambdas:
        # Only dpmpp does not round the cosine schedule.
        if not (hasattr(options, "lambda_min_clipped") and config.beta_schedule == "squaredcos_cap_v2"):
            timesteps = timesteps.round()
    if lu_lambdas:
        timesteps[0] = len(trained) - 1  # the reference takes both logarithms in float32, so they meet there
    lowest = trained[0] if getattr(options, "sigma_min", None) is None else options.sigma_min
    return timesteps.astype(np.int64), np.append(chosen, _last(options, lowest))


def _given(options: SimpleNamespace) -> np.ndarray | None:
    """The timesteps that the settings choose themselves."""
    timesteps = getattr(options, "timesteps", None)
    return None if timesteps is None else np.array(timesteps, np.int64)


def _trained(config: SchedulerConfig, options: SimpleNamespace, **beta_defaults: Unpack[BetaDefaults]) -> np.ndarray:
    """Sigma of every trained timestep, rising."""
    rescale = getattr(options, "rescale_betas_zero_snr", False)
    return schedule.to_sigmas(config.alphas_cumprod(rescale=rescale, **beta_defaults))


def _chosen_sigmas(options: SimpleNamespace, low: float, high: float, n: int) -> np.ndarray | None:
    """Sigmas (n,) of the schedule that the options choose, from high to low; None if they choose no schedule."""
    makers = {
        "use_karras_sigmas": schedule.karras_sigmas,
        "use_exponential_sigmas": schedule.exponential_sigmas,
        "use_lu_lambdas": schedule.exponential_sigmas,  # even in the logarithm, Lu et al. 2022a, section 3.1
        "use_beta_sigmas": schedule.beta_sigmas,
    }
    chosen = next((name for name in makers if getattr(options, name, False)), None)
    own_low, own_high = getattr(options, "sigma_min", None), getattr(options, "sigma_max", None)
    own = own_low is not None or own_high is not None
    low, high = low if own_low is None else own_low, high if own_high is None else own_high
    if chosen is None:
        if own:
            given = f"sigma_min={low:g}" if own_low is not None else f"sigma_max={high:g}"
            raise UserError(
                f"sampler.{given}: bounds the sigmas of use_karras_sigmas, use_exponential_sigmas or use_beta_sigmas; "
                "set one of them to true"
            )
        return None
    if not 0 < low <= high < math.inf:
        raise UserError(
            f"sampler.sigma_min={low:g} sampler.sigma_max={high:g}: must be above 0, and sigma_min at most sigma_max"
            if own
            else f"sampler.{chosen}=True: the checkpoint's sigmas, {low:g} to {high:g}, must be above 0 and "
            "finite; leave it out"
        )
    sigmas = makers[chosen](low, high, n)
    sigmas[n - 1 :] = low if n > 1 else high  # exactly, so that a step from low to low has length 0
    return sigmas


def _last(options: SimpleNamespace, lowest: float) -> float:
    """The level at which the last step ends."""
    return lowest if getattr(options, "final_sigmas_type", "zero") == "sigma_min" else 0.0


def _checked(timesteps: np.ndarray, config: SchedulerConfig, options: SimpleNamespace) -> np.ndarray:
    if timesteps.max() >= config.train_timesteps:
        raise UserError(
            f"sampler.steps_offset={options.steps_offset}: the first of {len(timesteps)} steps would be at "
            f"{timesteps.max():g}, and the model knows 0 to {config.train_timesteps - 1}; use fewer steps, "
            "or sampler.timestep_spacing=trailing"
        )
    return timesteps
