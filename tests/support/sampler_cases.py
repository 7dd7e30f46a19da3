"""Every sampler with every option that its diffusers class shares, and a table run in plain NumPy float64.

A new sampler is one row of CASES; every test of samplers, options and images follows from it.
"""

import random
from dataclasses import dataclass

import numpy as np

from tpusd.samplers.registry import samplers
from tpusd.samplers.rows import C_IN, P_OUT, P_X, PUSH, TERMS, T, X, Y
from tpusd.samplers.settings import SIGMA_SCHEDULES

_SPACINGS = [{"timestep_spacing": spacing} for spacing in ("leading", "linspace", "trailing")]
_SIGMAS = [{f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta")]
_ZERO_SNR = [{"rescale_betas_zero_snr": True}, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}]
_TO_SIGMA_MIN = [{"final_sigmas_type": "sigma_min"} | sigmas for sigmas in ({}, *_SIGMAS)]
_BOUNDS = [{"sigma_min": 0.05, "sigma_max": 9.0} | sigmas for sigmas in _SIGMAS]
_ORDERS = [{"solver_order": order, "lower_order_final": final} for order in (1, 2, 3) for final in (True, False)]
# Seven, as the records of tools/record_sampler_goldens.py have seven steps.
_TIMESTEPS = {"timesteps": (999, 850, 700, 499, 249, 120, 3)}
_DPMPP = [
    *({"solver_type": "heun"} | more for more in ({}, {"final_sigmas_type": "sigma_min"}, {"solver_order": 3})),
    {"euler_at_final": True},
    {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
    {"use_lu_lambdas": True},
    *({"lambda_min_clipped": -1.5} | spacing for spacing in _SPACINGS),
    {"solver_order": 3, "use_karras_sigmas": True},
    *(_TIMESTEPS | more for more in ({}, {"solver_order": 3}, {"final_sigmas_type": "sigma_min"})),
]


@dataclass(frozen=True)
class Case:
    """A sampler's row: the options to compare with diffusers, besides the defaults.

    noise: whether the sampler adds fresh noise by default. zero_alpha: whether it takes zero terminal SNR exactly, so
    that its first step divides by zero with an epsilon model. whole_timesteps: whether diffusers cuts timesteps between
    the trained ones to whole ones, where 50 beta sigmas have two steps on one timestep and end in an IndexError.
    """

    options: list[dict]
    noise: bool = False
    zero_alpha: bool = False
    whole_timesteps: bool = False


CASES = {
    "pndm": Case([*_SPACINGS, {"set_alpha_to_one": True}, {"steps_offset": 0}]),
    "ddim": Case(
        [*_SPACINGS, *_ZERO_SNR, {"set_alpha_to_one": True}, {"steps_offset": 3}, {"eta": 0.3}, {"eta": 1.0}],
        zero_alpha=True,
    ),
    "ddpm": Case(
        [
            *_SPACINGS,
            *_ZERO_SNR,
            {"steps_offset": 0},
            {"variance_type": "fixed_large"},
            {"variance_type": "fixed_small_log"},
            _TIMESTEPS,
        ],
        noise=True,
        zero_alpha=True,
    ),
    "euler": Case(
        [
            *_SPACINGS,
            *_SIGMAS,
            *({"timestep_spacing": "leading"} | sigmas for sigmas in _SIGMAS),
            *_ZERO_SNR,
            *_TO_SIGMA_MIN,
            *_BOUNDS,
            {"interpolation_type": "log_linear"},
            {"interpolation_type": "log_linear", "use_karras_sigmas": True},
            _TIMESTEPS,
            _TIMESTEPS | {"timestep_spacing": "leading"},
        ]
    ),
    "euler_ancestral": Case([*_SPACINGS, *_ZERO_SNR, {"timestep_spacing": "leading", "steps_offset": 0}], noise=True),
    "heun": Case(
        [*_SPACINGS, *_SIGMAS, *({"timestep_spacing": "trailing"} | sigmas for sigmas in _SIGMAS), _TIMESTEPS]
    ),
    "lms": Case([*_SPACINGS, *_SIGMAS, *({"timestep_spacing": "leading"} | sigmas for sigmas in _SIGMAS)]),
    "dpmpp_2m": Case([*_SPACINGS, *_SIGMAS, *_ZERO_SNR, *_TO_SIGMA_MIN, *_ORDERS, *_DPMPP], whole_timesteps=True),
    "dpmpp_2m_sde": Case(
        [*_SPACINGS, *_SIGMAS, *_ZERO_SNR, *_TO_SIGMA_MIN, *_ORDERS, *_DPMPP], noise=True, whole_timesteps=True
    ),
    "unipc": Case(
        [
            *_SPACINGS,
            *_SIGMAS,
            *_ZERO_SNR,
            *_TO_SIGMA_MIN,
            *_BOUNDS,
            *(orders for orders in _ORDERS if orders["lower_order_final"]),
            *(orders | {"final_sigmas_type": "sigma_min"} for orders in _ORDERS),
            {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
            {"solver_type": "bh1", "final_sigmas_type": "sigma_min", "solver_order": 3},
            {"predict_x0": False, "final_sigmas_type": "sigma_min"},
            {"predict_x0": False, "final_sigmas_type": "sigma_min", "solver_order": 3},
            {"disable_corrector": (0, 1)},
        ],
        whole_timesteps=True,
    ),
    "deis": Case(
        [*_SPACINGS, *_SIGMAS, *_ORDERS, {"solver_order": 3, "use_karras_sigmas": True}], whole_timesteps=True
    ),
    "lcm": Case(
        [{"original_inference_steps": 100}, {"timestep_scaling": 3.0}, {"rescale_betas_zero_snr": True}, _TIMESTEPS],
        noise=True,
        zero_alpha=True,
    ),
    "tcd": Case(
        [
            {"eta": 0.0},
            {"eta": 1.0},
            {"eta": 0.8, "original_inference_steps": 333},
            {"rescale_betas_zero_snr": True},
            _TIMESTEPS,
            _TIMESTEPS | {"eta": 1.0},
        ],
        noise=True,
        zero_alpha=True,
    ),
}
NAMES = tuple(CASES)


def options_of(name: str) -> list[dict]:
    return [{}, *CASES[name].options]


def steps_of(name: str, options: dict) -> tuple[int, ...]:
    """5, 20 and 50, if diffusers can make them; with timesteps, their number."""
    if "timesteps" in options:
        return (len(options["timesteps"]),)
    return (5, 20) if CASES[name].whole_timesteps and options.get("use_beta_sigmas") else (5, 20, 50)


def drawn_options(generator: random.Random, name: str) -> dict:
    """A value of every option of a sampler that has few of them, and at most one schedule of sigmas."""
    sampler = samplers()[name]
    values = {
        "prediction_type": sampler.prediction_types,
        "timestep_spacing": ("leading", "trailing", "linspace"),
        "steps_offset": (0, 1),
        "eta": (0.0, 0.3, 1.0),
        "final_sigmas_type": ("zero", "sigma_min"),
        "interpolation_type": ("linear", "log_linear"),
        "lambda_min_clipped": (None, -5.1),
    }
    values |= {option: (False, True) for option, default in sampler.defaults.items() if isinstance(default, bool)}
    values |= sampler.choices
    drawn = {option: generator.choice(values[option]) for option in sampler.defaults if option in values}
    schedules = [option for option in SIGMA_SCHEDULES if option in drawn]
    chosen = generator.choice([None, *schedules])
    return drawn | {option: option == chosen for option in schedules}


# The arguments of run_steps for a loop that records nothing.
UNLOGGED = {"record": lambda k, x, log: log, "log": ()}


def run_in_float64(table, model, x: np.ndarray, noise) -> np.ndarray:
    """The rows as rows.py describes them, with no mask and no rounding. model(x, t); noise(k): like x."""
    x, y, h1, h2, h3 = x.astype(np.float64) * table.init_scale, *[np.zeros_like(x, np.float64)] * 4
    for k, row in enumerate(table.rows):
        pred = row[P_X] * x + row[P_OUT] * model(row[C_IN] * x, row[T])
        seen = np.stack([x, y, pred, h1, h2, h3, noise(k)])
        x, y = (np.tensordot(row[start : start + TERMS], seen, 1) for start in (X, Y))
        if row[PUSH]:
            h1, h2, h3 = pred, h1, h2
    return x


# What tools/record_sampler_goldens.py records, and tests/samplers/test_recorded.py compares with.


def golden_cases(name: str) -> list[tuple[dict, int, str]]:
    """(options, steps, prediction type): each option at 7 steps, the defaults at 1, 20 and 50 and for each type."""
    cases = [({}, steps, "epsilon") for steps in (1, 20, 50)]
    cases += [({}, 7, kind) for kind in samplers()[name].prediction_types]
    for options in CASES[name].options:
        cases.append((options, 7, "v_prediction" if options.get("rescale_betas_zero_snr") else "epsilon"))
    return cases


def golden_model(x, t, sin):
    return 0.8 * sin(x + 0.003 * t) + 0.1 * x


def golden_start() -> np.ndarray:
    return np.cos(1.7 * np.arange(6)) * 1.3


def golden_noise(k: int) -> np.ndarray:
    return np.cos(2.3 * k + 0.9 * np.arange(6)) * 1.2
