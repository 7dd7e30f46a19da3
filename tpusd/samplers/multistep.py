"""The exponential multistep solvers: DPM-Solver++ in its deterministic and its stochastic form, and DEIS.

Per step from sigma_s to sigma_t, with alpha = 1 / sqrt(1 + sigma**2) and lambda = -log(sigma): h = lambda_t - lambda_s,
m0, m1 and m2 are the predictions, the latest first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from tpusd.config.sampler import SamplerSettings
from tpusd.samplers.grid import solver_grid
from tpusd.samplers.predictions import to_epsilon, to_x0
from tpusd.samplers.registry import OptionValue, Sampler
from tpusd.samplers.rows import Table, level_of, row, table
from tpusd.samplers.schedule import SchedulerConfig

SOLVER: dict[str, OptionValue] = {
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "solver_order": 2,
    "lower_order_final": True,
}
ORDERS = (1, 2, 3)
FEW_STEPS = 15  # lower_order_final has an effect under this number of steps
PREDICTIONS = ("pred", "h1", "h2", "h3")


@dataclass(frozen=True)
class Step:
    """A step of the grid. `earlier`: the sigmas before `start`, the latest first, one fewer than the order."""

    start: float
    stop: float
    earlier: tuple[float, ...]

    @property
    def order(self) -> int:
        return 1 + len(self.earlier)

    @property
    def h(self) -> float:
        return math.inf if self.stop == 0 else math.log(self.start / self.stop)

    @property
    def alphas(self) -> tuple[float, float]:
        """At stop and at start."""
        return alpha(self.stop), alpha(self.start)


def alpha(sigma: float) -> float:
    return 1 / math.sqrt(sigma**2 + 1)


def dpmpp_2m(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> Table:
    """DPM-Solver++ multistep on the clean sample: Lu et al. 2022b, algorithm 2."""
    return _multistep(settings, config, options, to_x0, lambda step: _dpmpp(step, options.solver_type))


def dpmpp_2m_sde(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> Table:
    """DPM-Solver++ on the reverse stochastic equation: Lu et al. 2022b, appendix A; k-diffusion's `dpmpp_2m_sde`."""
    return _multistep(settings, config, options, to_x0, lambda step: _sde_dpmpp(step, options.solver_type))


def deis(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> Table:
    """Diffusion exponential integrator, multistep in log rho, to the lowest sigma: Zhang & Chen 2022, section 3.3."""
    options = SimpleNamespace(**vars(options), final_sigmas_type="sigma_min", euler_at_final=False)
    return _multistep(settings, config, options, to_epsilon, _deis)


def _multistep(
    settings: SamplerSettings,
    config: SchedulerConfig,
    options: SimpleNamespace,
    convert: Callable[[float, str], tuple[float, float]],
    combine: Callable[[Step], dict[str, float]],
) -> Table:
    timesteps, sigmas = solver_grid(settings, config, options)
    n, few = len(timesteps), len(timesteps) + options.first_step < FEW_STEPS and options.lower_order_final
    rows = []
    for i, t in enumerate(timesteps):
        order = min(options.solver_order, i + 1)
        if i == n - 1 and (options.euler_at_final or few or sigmas[-1] == 0):
            order = 1
        elif i == n - 2 and few:
            order = min(order, 2)
        step = Step(sigmas[i], sigmas[i + 1], tuple(sigmas[i - k] for k in range(1, order)))
        x = {"x": 1.0} if step.h == 0 else combine(step)
        rows.append(row(t=t, pred=convert(alpha(step.start) ** 2, options.prediction_type), x=x))
    return table(rows, [level_of(alpha(sigma) ** 2) for sigma in sigmas[:-1]])


def _dpmpp(step: Step, solver_type: str) -> dict[str, float]:
    """x, with the clean sample as prediction: the integrals of exp(-u) over 0..h times the powers of u."""
    alpha_t, alpha_s = step.alphas
    h, phi = step.h, -math.expm1(-step.h)
    x = {"x": step.stop / step.start * alpha_t / alpha_s, "pred": alpha_t * phi}
    if step.order == 2:
        _add(x, _first_difference(step), alpha_t * (phi / 2 if solver_type == "midpoint" else 1 - phi / h))
    elif step.order == 3:
        _add(x, _first_difference(step), alpha_t * (1 - phi / h))
        _add(x, _second_difference(step), alpha_t * (0.5 - (h - phi) / h**2))
    return x


def _sde_dpmpp(step: Step, solver_type: str) -> dict[str, float]:
    """_dpmpp at twice the rate, with noise that restores the variance."""
    alpha_t, alpha_s = step.alphas
    h, phi = 2 * step.h, -math.expm1(-2 * step.h)
    x = {
        "x": step.stop / step.start * alpha_t / alpha_s * math.exp(-step.h),
        "pred": alpha_t * phi,
        "noise": step.stop * alpha_t * math.sqrt(phi),
    }
    if step.order == 2:
        _add(x, _first_difference(step), alpha_t * (phi / 2 if solver_type == "midpoint" else 1 - phi / h))
    elif step.order == 3:
        _add(x, _first_difference(step), alpha_t * (1 - phi / h))
        _add(x, _second_difference(step), alpha_t * ((phi - h) / h**2 - 0.5))
    return x


def _deis(step: Step) -> dict[str, float]:
    """x, with epsilon as prediction: integrals over sigma of the polynomials in log sigma through the last ones."""
    alpha_t, alpha_s = step.alphas
    known = (step.start, *step.earlier)
    weights = [_log_lagrange_integral(known, j, step.start, step.stop) for j in range(len(known))]
    return {
        "x": alpha_t / alpha_s,
        **{name: alpha_t * weight for name, weight in zip(PREDICTIONS, weights, strict=False)},
    }


def _first_difference(step: Step) -> tuple[float, ...]:
    """Weights of m0, m1 (, m2) in h times the derivative of the prediction by lambda, at start."""
    r0 = math.log(step.earlier[0] / step.start) / step.h
    if step.order == 2:
        return 1 / r0, -1 / r0
    r1 = math.log(step.earlier[1] / step.earlier[0]) / step.h
    near, far = np.array([1 / r0, -1 / r0, 0]), np.array([0, 1 / r1, -1 / r1])
    return tuple(near + r0 / (r0 + r1) * (near - far))


def _second_difference(step: Step) -> tuple[float, ...]:
    """Weights of m0, m1, m2 in half of h**2 times the second derivative, as in diffusers."""
    r0 = math.log(step.earlier[0] / step.start) / step.h
    r1 = math.log(step.earlier[1] / step.earlier[0]) / step.h
    near, far = np.array([1 / r0, -1 / r0, 0]), np.array([0, 1 / r1, -1 / r1])
    return tuple((near - far) / (r0 + r1))


def _add(x: dict[str, float], weights: tuple[float, ...], scale: float) -> None:
    for name, weight in zip(PREDICTIONS, weights, strict=False):
        x[name] = x.get(name, 0.0) + scale * weight


def _log_lagrange_integral(known: tuple[float, ...], j: int, start: float, stop: float) -> float:
    """The integral over sigma, start to stop, of the polynomial in log sigma that is 1 at known[j], 0 at the others."""
    others = np.log([sigma for k, sigma in enumerate(known) if k != j])

    def antiderivative(sigma: float) -> float:
        u = math.log(sigma)
        if len(others) == 0:
            return sigma
        if len(others) == 1:
            return sigma * (u - 1 - float(others[0]))
        return sigma * (u**2 - 2 * u + 2 - float(others.sum()) * (u - 1) + float(others.prod()))

    return (antiderivative(stop) - antiderivative(start)) / float(np.prod(math.log(known[j]) - others))


_DPMPP: dict[str, OptionValue] = {
    **SOLVER,
    "rescale_betas_zero_snr": False,
    "use_lu_lambdas": False,
    "final_sigmas_type": "zero",
    "solver_type": "midpoint",
    "euler_at_final": False,
    "lambda_min_clipped": -math.inf,
    "timesteps": None,
}
_DPMPP_CHOICES: dict[str, tuple[OptionValue, ...]] = {"solver_type": ("midpoint", "heun"), "solver_order": ORDERS}
SAMPLERS = (
    Sampler(
        name="dpmpp_2m",
        a1111="DPM++ 2M",
        table=dpmpp_2m,
        defaults=_DPMPP,
        choices=_DPMPP_CHOICES,
        diffusers="DPMSolverMultistepScheduler",
        paper="[Lu et al. 2022](https://arxiv.org/abs/2211.01095), algorithm 2",
    ),
    Sampler(
        name="dpmpp_2m_sde",
        a1111="DPM++ 2M SDE",
        table=dpmpp_2m_sde,
        defaults=_DPMPP,
        choices=_DPMPP_CHOICES,
        diffusers="DPMSolverMultistepScheduler",
        diffusers_options={"algorithm_type": "sde-dpmsolver++"},
        paper="[Lu et al. 2022](https://arxiv.org/abs/2211.01095), appendix A",
    ),
    Sampler(
        name="deis",
        a1111="DEIS",
        table=deis,
        defaults=SOLVER,
        choices={"solver_order": ORDERS},
        diffusers="DEISMultistepScheduler",
        paper="[Zhang & Chen 2022](https://arxiv.org/abs/2204.13902)",
    ),
)
