"""Which images, and which of their model calls, need classifier-free guidance, and how much.

Pure Python, because the plan of a run asks it too.
"""

import functools
import math
from collections.abc import Sequence

from tpusd.config.sampler import GuidanceSchedule


def uses_cfg(guidance_scale: float) -> bool:
    """Whether the model must also predict without the prompt.

    At scale 1 that half cancels out (Ho & Salimans 2022). Below 1 it would weaken the prompt, which nobody means: 0 is
    what the cards of distilled models ask for. So every scale up to 1 is the prompt alone, as in diffusers.
    """
    return guidance_scale > 1


def guided_calls(guidance_scale: float, interval: Sequence[float], num_calls: int) -> range:
    """The model calls of an image that need guidance, of `num_calls`: those in the interval (Kynkäänniemi et al. 2024).

    interval: fractions of the model calls, from the first on, before the second.
    """
    return _within(*interval, num_calls) if uses_cfg(guidance_scale) else range(0)


@functools.lru_cache(1024)
def _within(start: float, stop: float, num_calls: int) -> range:
    calls = [call for call in range(num_calls) if start <= call / num_calls < stop]
    return range(calls[0], calls[-1] + 1) if calls else range(0)


def scale_at(guidance_scale: float, schedule: GuidanceSchedule, call: int, num_calls: int) -> float:
    """The guidance scale of a model call within the interval.

    What goes beyond 1 grows over the sampling and has the mean of `constant`: the linear and cosine schedules of Wang
    et al. 2024, at the middle of each call. call: from 0. num_calls: of the image.
    """
    if schedule == "constant":
        return guidance_scale
    progress = (call + 0.5) / num_calls
    return 1 + (guidance_scale - 1) * (2 * progress if schedule == "linear" else 1 - math.cos(math.pi * progress))
