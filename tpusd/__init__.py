"""Declarative, reproducible Stable Diffusion image generation with JAX.

    import tpusd

    run = tpusd.generate(prompts="portraits", seed=0)
    run.images[0]
    run.frame

`import tpusd` loads none of the libraries that making images needs.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpusd.api import Images as Images
    from tpusd.api import Run as Run
    from tpusd.api import Sweep as Sweep
    from tpusd.api import UserError as UserError
    from tpusd.api import generate as generate
    from tpusd.api import open_run as open_run
    from tpusd.api import open_sweep as open_sweep
    from tpusd.api import resume as resume
    from tpusd.api import sweep as sweep
    from tpusd.api import unload as unload

__version__ = "0.1.0"
_FROM_API = (
    "Images",
    "Run",
    "Sweep",
    "UserError",
    "generate",
    "open_run",
    "open_sweep",
    "resume",
    "sweep",
    "unload",
)


def __getattr__(name: str) -> object:
    if name in _FROM_API:
        return getattr(importlib.import_module("tpusd.api"), name)
    raise AttributeError(f"module 'tpusd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FROM_API])
