"""What a run was made on and with, for run.json. Knows nothing of what is done with it."""

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from tpusd import __version__

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "numpy", "transformers", "pillow")
KEY_DERIVATION = 1  # which rule tpusd.keys follows; it changes only with the noise of every image


def versions() -> dict[str, str | None]:
    """What is installed of all that may decide a pixel; None: not installed."""
    return {"tpusd": __version__, "python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def describe_devices(devices: Sequence[Any]) -> dict[str, Any]:
    return {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)}


def describe_checkpoint(checkpoint: Any, *, with_files: bool = False) -> dict[str, Any]:
    """Repository and commit; with_files: the sha256 of each file too, which may read every weight."""
    identity = checkpoint.identity
    return {"repo": identity.repo, "commit": identity.commit} | ({"files": dict(identity.files)} if with_files else {})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
