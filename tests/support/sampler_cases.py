"""Every sampler with every option that its diffusers class shares, and a table run in plain NumPy float64."""

import numpy as np

from tpusd.samplers.rows import C_IN, P_OUT, P_X, PUSH, TERMS, T, X, Y

DIFFUSERS_CLASSES = {
    "pndm": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "lcm": "LCMScheduler",
}
NAMES = tuple(DIFFUSERS_CLASSES)
STOCHASTIC = ("ddpm", "euler_ancestral", "dpmpp_2m_sde", "lcm")
PREDICTION_TYPES = {name: ("epsilon", "v_prediction", "sample") for name in NAMES} | {
    "pndm": ("epsilon", "v_prediction"),
    "euler_ancestral": ("epsilon", "v_prediction"),
}

_SPACINGS = [{"timestep_spacing": spacing} for spacing in ("leading", "linspace", "trailing")]
_SIGMAS = [{f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta")]
_ZERO_SNR = [{"rescale_betas_zero_snr": True}, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}]
_TO_SIGMA_MIN = [{"final_sigmas_type": "sigma_min"} | sigmas for sigmas in ({}, *_SIGMAS)]
_BOUNDS = [{"sigma_min": 0.05, "sigma_max": 9.0} | sigmas for sigmas in _SIGMAS]
_ORDERS = [{"solver_order": order, "lower_order_final": final} for order in (1, 2, 3) for final in (True, False)]
_DPMPP = [
    *({"solver_type": "heun"} | more for more in ({}, {"final_sigmas_type": "sigma_min"}, {"solver_order": 3})),
    {"euler_at_final": True},
    {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
    {"use_lu_lambdas": True},
    *({"lambda_min_clipped": -1.5} | spacing for spacing in _SPACINGS),
    {"solver_order": 3, "use_karras_sigmas": True},
]
OPTIONS = {
    "pndm": [*_SPACINGS, {"set_alpha_to_one": True}, {"steps_offset": 0}],
    "ddim": [*_SPACINGS, *_ZERO_SNR, {"set_alpha_to_one": True}, {"steps_offset": 3}, {"eta": 0.3}, {"eta": 1.0}],
    "ddpm": [
        *_SPACINGS,
        *_ZERO_SNR,
        {"steps_offset": 0},
        {"variance_type": "fixed_large"},
        {"variance_type": "fixed_small_log"},
    ],
    "euler": [
        *_SPACINGS,
        *_SIGMAS,
        *({"timestep_spacing": "leading"} | sigmas for sigmas in _SIGMAS),
        *_ZERO_SNR,
        *_TO_SIGMA_MIN,
        *_BOUNDS,
        {"interpolation_type": "log_linear"},
        {"interpolation_type": "log_linear", "use_karras_sigmas": True},
    ],
    "euler_ancestral": [*_SPACINGS, *_ZERO_SNR, {"timestep_spacing": "leading", "steps_offset": 0}],
    "heun": [*_SPACINGS, *_SIGMAS, *({"timestep_spacing": "trailing"} | sigmas for sigmas in _SIGMAS)],
    "lms": [*_SPACINGS, *_SIGMAS, *({"timestep_spacing": "leading"} | sigmas for sigmas in _SIGMAS)],
    "dpmpp_2m": [*_SPACINGS, *_SIGMAS, *_ZERO_SNR, *_TO_SIGMA_MIN, *_ORDERS, *_DPMPP],
    "dpmpp_2m_sde": [*_SPACINGS, *_SIGMAS, *_ZERO_SNR, *_TO_SIGMA_MIN, *_ORDERS, *_DPMPP],
    "unipc": [
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
    "deis": [*_SPACINGS, *_SIGMAS, *_ORDERS, {"solver_order": 3, "use_karras_sigmas": True}],
    "lcm": [{"original_inference_steps": 100}, {"timestep_scaling": 3.0}, {"rescale_betas_zero_snr": True}],
}


def options_of(name: str) -> list[dict]:
    return [{}, *OPTIONS[name]]


def steps_of(name: str, options: dict) -> tuple[int, ...]:
    """5, 20 and 50 as far as there is a reference."""
    if name in ("dpmpp_2m", "dpmpp_2m_sde", "unipc", "deis") and options.get("use_beta_sigmas"):
        # At 50 the first two whole timesteps are one; diffusers then starts at the second and runs over the end.
        return (5, 20)
    return (5, 20, 50)


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


# What tools/record_sampler_goldens.py records, and test_samplers_recorded.py compares with.


def golden_cases(name: str) -> list[tuple[dict, int, str]]:
    """(options, steps, prediction type): each option at 7 steps, the defaults at 1, 20 and 50 and for each type."""
    cases = [({}, steps, "epsilon") for steps in (1, 20, 50)]
    cases += [({}, 7, kind) for kind in PREDICTION_TYPES[name]]
    for options in OPTIONS[name]:
        cases.append((options, 7, "v_prediction" if options.get("rescale_betas_zero_snr") else "epsilon"))
    return cases


def golden_model(x, t, sin):
    return 0.8 * sin(x + 0.003 * t) + 0.1 * x


def golden_start() -> np.ndarray:
    return np.cos(1.7 * np.arange(6)) * 1.3


def golden_noise(k: int) -> np.ndarray:
    return np.cos(2.3 * k + 0.9 * np.arange(6)) * 1.2
