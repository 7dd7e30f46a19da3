"""DeepCache of its authors (the package DeepCache, Ma et al. 2024) on a pipeline of diffusers.

Of the package one file is used, which wraps the layers of any UNet; the others need an old diffusers.
"""

import contextlib
import importlib.util
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest


def helper_class() -> type:
    """The authors' class that switches the cache on and off. Skips the test where the package is not there."""
    package = importlib.util.find_spec("DeepCache")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs the package DeepCache")
    file = Path(package.submodule_search_locations[0]) / "extension" / "deepcache.py"
    spec = importlib.util.spec_from_file_location("deepcache_of_the_authors", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DeepCacheSDHelper


@contextlib.contextmanager
def deepcache(pipeline, branch: int, *, interval: int = 1, steps: Collection[int] | None = None) -> Iterator[None]:
    """The pipeline with the cache.

    branch: a skip connection of the UNet, from 0 for the shallowest. The authors' number counts three for each block,
        however many layers it has.
    interval: of the steps that compute all.
    steps: in its place, the steps that compute all.
    """
    cls = helper_class()

    class ByMask(cls):
        def is_skip_step(self, *where):
            self.params["cache_interval"] = 1 if self.cur_timestep in steps else self.cur_timestep + 1
            return super().is_skip_step(*where)

    helper = (cls if steps is None else ByMask)(pipe=pipeline)
    level, layer = place_of(branch, [len(block.resnets) + 1 for block in pipeline.unet.down_blocks])
    helper.set_params(cache_interval=interval, cache_branch_id=3 * level + layer)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()


def place_of(branch: int, skips: Collection[int]) -> tuple[int, int]:
    """Block and layer of a skip connection. skips: how many each block takes."""
    for level, number in enumerate(skips):
        if branch < number:
            return level, branch
        branch -= number
    raise ValueError(branch)
