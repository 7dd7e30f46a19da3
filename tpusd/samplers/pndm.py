"""PNDM in its PLMS form, the sampler of the first Stable Diffusion."""

import math
from types import SimpleNamespace

from tpusd.config.sampler import SamplerSettings
from tpusd.samplers.grid import whole_grid
from tpusd.samplers.registry import Sampler
from tpusd.samplers.rows import Table, level_of, row, table
from tpusd.samplers.schedule import SchedulerConfig

# Adams-Bashforth of orders 1 to 4 on the model's outputs, the latest first. Liu et al. 2022, equation 12.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def pndm(settings: SamplerSettings, config: SchedulerConfig, options: SimpleNamespace) -> Table:
    """Pseudo linear multistep: Liu et al. 2022, algorithm 2, with a second, corrected first step.

    The correction costs one more model call. The kept variable is the model's own output. Where that output is a
    velocity, the mean of the last ones becomes epsilon at the present sample, as in diffusers.

    From a picture, the steps that are left out are counted in calls, of which the first step has two. So the first call
    is a step earlier than another sampler's, and its corrected step passes over one step of the grid, as in diffusers.
    """
    alphas = config.alphas_cumprod()
    ratio = config.train_timesteps // settings.num_inference_steps

    def alpha(t: int) -> float:
        return alphas[t] if t >= 0 else 1.0 if options.set_alpha_to_one else alphas[0]

    def step(t: int, previous: int, sample: str, weights: dict[str, float]) -> dict[str, float]:
        on_sample, on_eps = _transfer(alpha(t), alpha(previous))
        scale = 1.0
        if options.prediction_type == "v_prediction":
            on_sample += on_eps * math.sqrt(1 - alpha(t))
            scale = math.sqrt(alpha(t))
        return {sample: on_sample} | {name: scale * on_eps * weight for name, weight in weights.items()}

    falling = whole_grid(settings, config, options, first_step=0)
    calls = [*falling[:2], *falling[1:]][options.first_step :]
    first = calls[0]
    rows = [row(t=first, x=step(first, first - ratio, "x", {"pred": 1.0}), y={"x": 1.0})]
    if len(calls) > 1:
        # Repeat the first step from the sample that y holds, with the mean of the outputs at its two ends.
        second = calls[1]
        mean = {"pred": 1 / 2, "h1": 1 / 2}
        rows.append(row(t=second, x=step(second + ratio, second, "y", mean), push=False))
    for count, t in enumerate(calls[2:], start=2):
        weights: dict[str, float] = dict(zip(("pred", "h1", "h2", "h3"), ADAMS_BASHFORTH[min(count, 4)], strict=False))
        rows.append(row(t=t, x=step(t, t - ratio, "x", weights)))
    return table(rows, [level_of(alpha(t)) for t in calls])


def _transfer(a: float, previous: float) -> tuple[float, float]:
    """From alpha product `a` to `previous`: coefficients of sample and epsilon. Liu et al. 2022, equation 11."""
    scale = math.sqrt(previous / a)
    return scale, -(previous - a) / (a * math.sqrt(1 - previous) + math.sqrt(a * (1 - a) * previous))


SAMPLERS = (
    Sampler(
        name="pndm",
        a1111="PLMS",
        table=pndm,
        defaults={
            "prediction_type": "epsilon",
            "timestep_spacing": "leading",
            "steps_offset": 0,
            "set_alpha_to_one": False,
        },
        prediction_types=("epsilon", "v_prediction"),
        diffusers="PNDMScheduler",
        diffusers_options={"skip_prk_steps": True},
        paper="[Liu et al. 2022](https://arxiv.org/abs/2202.09778)",
    ),
)
