"""UniPC: a multistep predictor, and a corrector that uses the model's output at the predicted sample again."""

import math
from types import SimpleNamespace

import numpy as np

from tpusd.config.sampler import SamplerSettings
from tpusd.errors import UserError
from tpusd.samplers.grid import solver_grid
from tpusd.samplers.multistep import ORDERS, PREDICTIONS, SOLVER, alpha
from tpusd.samplers.predictions import to_epsilon, to_x0
from tpusd.samplers.registry import Sampler
from tpusd.samplers.rows import Table, level_of, row, table
from tpusd.samplers.schedule import SchedulerConfig


def unipc(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> Table:
    """Unified predictor-corrector: Zhao et al. 2023, algorithms 5 to 8.

    A row corrects the sample of its own model call, keeps the corrected one in y, and predicts from it.
    """
    if options.final_sigmas_type == "zero" and not options.predict_x0:
        raise UserError("sampler.predict_x0=False: ends at a noise above zero; add sampler.final_sigmas_type=sigma_min")
    if options.final_sigmas_type == "zero" and not options.lower_order_final and options.solver_order > 1:
        raise UserError(
            "sampler.lower_order_final=False: the step to zero noise can only be of order 1; "
            "add sampler.final_sigmas_type=sigma_min, or leave it out"
        )
    timesteps, sigmas = solver_grid(settings, config, options)
    convert = to_x0 if options.predict_x0 else to_epsilon
    n, rows, last_order = len(timesteps), [], 0
    for i, t in enumerate(timesteps):
        corrected = {"x": 1.0}
        if i > 0 and options.first_step + i - 1 not in options.disable_corrector:
            # Seen from the step before, this row's prediction is the new one and h1 is its m0.
            start, new, earlier = _step(sigmas, i - 1, last_order, options, corrector=True)
            corrected = {"y": start, "pred": new, **dict(zip(PREDICTIONS[1:], earlier, strict=False))}
        last_order = min(options.solver_order, i + 1, n - i if options.lower_order_final else options.solver_order)
        start, _, earlier = _step(sigmas, i, last_order, options, corrector=False)
        x = {name: start * weight for name, weight in corrected.items()}
        for name, weight in zip(PREDICTIONS, earlier, strict=False):
            x[name] = x.get(name, 0.0) + weight
        pred = convert(alpha(sigmas[i]) ** 2, options.prediction_type)
        rows.append(row(t=t, pred=pred, x=x, y=corrected))
    return table(rows, [level_of(alpha(sigma) ** 2) for sigma in sigmas[:-1]])


def _step(
    sigmas: np.ndarray, i: int, order: int, options: SimpleNamespace, *, corrector: bool
) -> tuple[float, float, np.ndarray]:
    """The weights of the step from sigmas[i] to sigmas[i + 1]. Zhao et al. 2023, equations 3 and 9 (8 for the noise).

    Returns the weight of the sample, the weight of the prediction at the end of the step, and the weights (order,) of
    the earlier predictions, the latest first.
    """
    start, stop = sigmas[i], sigmas[i + 1]
    weights = np.zeros(order)
    if stop == start:
        return 1.0, 0.0, weights
    h = math.inf if stop == 0 else math.log(start / stop)
    ratio, signed = alpha(stop) / alpha(start), -h if options.predict_x0 else h
    on_sample, scale = (stop / start * ratio, alpha(stop)) if options.predict_x0 else (ratio, stop * alpha(stop))
    b_h = signed if options.solver_type == "bh1" else math.expm1(signed)
    weights[0] = -scale * math.expm1(signed)
    # Differences from the latest prediction, over their distance in lambda; the corrector adds one at the end.
    distances = [math.log(start / sigmas[i - k]) / h for k in range(1, order)]
    nodes = [*distances, 1.0] if corrector else distances
    # The first node alone has the weight 1/2, as in diffusers.
    rhos = np.array([0.5]) if len(nodes) <= 1 else _rhos(nodes, signed, b_h)
    new = -scale * b_h * float(rhos[-1]) if corrector else 0.0
    weights[0] -= new
    for k, distance in enumerate(distances):
        difference = -scale * b_h * rhos[k] / distance
        weights[k + 1] += difference
        weights[0] -= difference
    return on_sample, new, weights


def _rhos(distances: list[float], h: float, b_h: float) -> np.ndarray:
    """The weights of the differences. Zhao et al. 2023, equation 6: R rho = b."""
    n = len(distances)
    powers = np.vander(distances, n, increasing=True).T
    phi, b = math.expm1(h) / h - 1, []
    for k in range(1, n + 1):
        b.append(phi * math.factorial(k) / b_h)
        phi = phi / h - 1 / math.factorial(k + 1)
    return np.linalg.solve(powers, np.array(b))


SAMPLERS = (
    Sampler(
        name="unipc",
        a1111="UniPC",
        table=unipc,
        defaults={
            **SOLVER,
            "rescale_betas_zero_snr": False,
            "sigma_min": None,
            "sigma_max": None,
            "final_sigmas_type": "zero",
            "solver_type": "bh2",
            "predict_x0": True,
            "disable_corrector": (),
        },
        choices={"solver_type": ("bh1", "bh2"), "solver_order": ORDERS},
        diffusers="UniPCMultistepScheduler",
        paper="[Zhao et al. 2023](https://arxiv.org/abs/2302.04867)",
    ),
)
