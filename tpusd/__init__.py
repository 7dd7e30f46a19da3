"""Declarative, reproducible Stable Diffusion image generation with JAX.

    import tpusd

    run = tpusd.generate(prompts="portraits", seed=0)
    run.images[0]
    run.frame

`import tpusd` loads none of the libraries that making images needs.
"""

import importlib
import importlib.util
import sys
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
_NEEDED = {  # module -> package
    "PIL": "pillow",
    "annotated_types": "annotated-types",
    "flax": "flax",
    "fsspec": "fsspec",
    "huggingface_hub": "huggingface-hub",
    "hydra": "hydra-core",
    "jax": "jax",
    "ml_dtypes": "ml_dtypes",
    "numpy": "numpy",
    "omegaconf": "omegaconf",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "tqdm": "tqdm",
    "transformers": "transformers",
    "yaml": "pyyaml",
}
_missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
if _missing:
    # With this name, `python -m tpusd.COMMAND` prints the message as one line, without a traceback.
    raise ImportError(
        f"tpusd needs {', '.join(_missing)}, which {sys.executable} does not have; activate the environment that tpusd "
        "is installed in (. .venv/bin/activate), or install it: pip install -e .",
        name=__name__,
    )
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
