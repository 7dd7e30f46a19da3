"""Step caching: which model calls compute the whole denoiser, and which reuse its deep half (Ma et al. 2024)."""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import Interval, Len

from tpusd.config.limits import MAX_STEPS
from tpusd.config.typed import Advice, Help
from tpusd.errors import UserError, show

DEFAULT_INTERVAL = 3
MAX_BRANCH = 255
MAX_CALL = 2 * MAX_STEPS - 1  # Heun makes two calls a step


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Which steps reuse what an earlier one computed. A step is a model call: a row of the sampler's table."""

    name: Annotated[
        Literal["none", "deepcache"],
        Help("`none`: every step computes the whole UNet; `deepcache`: some reuse its deep half (Ma et al. 2024)"),
    ] = "none"
    interval: Annotated[
        int | None,
        Interval(ge=1, le=MAX_STEPS),
        Advice("1 reuses nothing"),
        Help("one step of so many computes the whole UNet: with 3, steps 0, 3, 6, ...; null: 3, or as `steps` says"),
    ] = None
    branch: Annotated[
        int,
        Interval(ge=0, le=MAX_BRANCH),
        Advice("0 reuses the most"),
        Help(
            "the deepest skip connection whose layers every step computes; 0, the shallowest, is the fastest, and a "
            "deeper one is nearer to the picture without a cache"
        ),
    ] = 0
    steps: Annotated[
        tuple[Annotated[int, Interval(ge=0, le=MAX_CALL)], ...] | None,
        Len(1, MAX_STEPS),
        Help("in place of `interval`: the steps that compute the whole UNet, counted from 0, as in `[0, 1, 2, 5, 10]`"),
    ] = None

    def computes(self, call: int) -> bool:
        """Whether the schedule has the whole denoiser computed at a model call, counted from 0."""
        if self.name == "none":
            return True
        if self.steps is not None:
            return call in self.steps
        return call % (self.interval or DEFAULT_INTERVAL) == 0


NO_CACHE = CacheConfig()


def with_interval(config: CacheConfig) -> CacheConfig:
    """The config with the interval that null means."""
    if config.name == "none" or config.steps is not None or config.interval is not None:
        return config
    return dataclasses.replace(config, interval=DEFAULT_INTERVAL)


def check_cache(config: CacheConfig) -> None:
    """The rules between the fields. Raises UserError."""
    if config.name == "none":
        for name in ("interval", "branch", "steps"):
            value = getattr(config, name)
            if value != getattr(NO_CACHE, name):
                raise UserError(f"cache.{name}={_shown(value)}: is for a cache; add cache=deepcache")
    steps = config.steps
    if steps is None:
        return
    if config.interval is not None:
        raise UserError(
            f"cache.steps={_shown(steps)}: says which steps are computed, and so does "
            f"cache.interval={config.interval}; remove one of them (cache.interval=null)"
        )
    if steps[0] != 0 or any(a >= b for a, b in pairwise(steps)):
        raise UserError(
            f"cache.steps={_shown(steps)}: must be growing numbers that begin with 0, because the first step has "
            "nothing to reuse; write them as in [0, 1, 2, 5, 10]"
        )


def _shown(value: object) -> str:
    return show(list(value) if isinstance(value, tuple) else value)
