"""What a run was made on and with, for run.json. Knows nothing of what is done with it."""

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from tpusd import __version__
from tpusd.errors import UserError

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "numpy", "transformers", "pillow")
KEY_DERIVATION = 1  # which rule tpusd.keys follows; it changes only with the noise of every image


def versions() -> dict[str, str | None]:
    """What is installed of all that may decide a pixel; None: not installed."""
    return {"tpusd": __version__, "python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def describe_devices(devices: Sequence[Any]) -> dict[str, Any]:
    return {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)}


def describe_checkpoint(checkpoint: Any, *, with_files: bool = False) -> dict[str, Any]:
    """Repository, commit and variant; with_files: the sha256 of each file too, which reads every weight."""
    identity = checkpoint.identity
    described = {"repo": identity.repo, "commit": identity.commit, "variant": identity.variant}
    if not with_files:
        return described
    try:
        return described | {"sha256": dict(identity.sha256)}
    except OSError as error:
        raise UserError(f"model: a file of the checkpoint went away while it was read: {error}") from None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
