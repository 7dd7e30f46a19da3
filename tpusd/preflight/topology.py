"""A TPU slice that is not there: its devices, as the compiler knows them, for compiling on any x86-64 Linux machine."""

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from tpusd.engine.platforms import has_tpu_device
from tpusd.errors import UserError, show
from tpusd.preflight.chips import CHIPS, Chip

EXAMPLES = "v2:2x2x1, v3:2x2x1, v4:2x2x1, v5e:2x4, v5p:2x2x1, v6e:2x4"
_NAME = re.compile(r"(v\d\w*):(\d+)x(\d+)(?:x(\d+))?")
_COMPILER_NAMES = {"v5p": "v5"}  # where the compiler's name is not the product's
_CHIP_CONFIGS = {"v4": "megacore"}  # a chip's two cores as one device, as a TPU VM has them; not the compiler's default


@dataclass(frozen=True, kw_only=True)
class Topology:
    """name: version:chips. devices: for jax's compiler, not for data."""

    name: str
    version: str
    chip: Chip
    num_chips: int
    devices: Sequence[Any]


def check_topology(name: str) -> tuple[str, int]:
    """`v5e:2x4` -> v5e, 8 chips. Raises UserError for an unknown name."""
    found = _NAME.fullmatch(name)
    if found is None or found[1] not in CHIPS:
        raise UserError(f"topology={show(name)}: must be a TPU version and its chips; one of {EXAMPLES}")
    return found[1], int(found[2]) * int(found[3]) * int(found[4] or 1)


def prepare_compiler() -> None:
    """Sets what libtpu reads from the environment; call before jax is imported. Raises UserError without libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"the TPU compiler is not installed; install it with: pip install {_libtpu_requirement()}")
    if sys.platform != "linux":
        raise UserError(f"the TPU compiler runs on x86-64 Linux, not on {sys.platform}")
    os.environ["JAX_PLATFORMS"] = "cpu"
    if not has_tpu_device():  # on a TPU VM libtpu must ask for itself
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def open_topology(name: str) -> Topology:
    """The slice's devices. Raises UserError for one that the compiler does not know."""
    version, num_chips = check_topology(name)
    from jax.experimental import topologies

    asked = name.replace(version, _COMPILER_NAMES.get(version, version), 1)
    try:
        more = {"chip_config_name": _CHIP_CONFIGS[version]} if version in _CHIP_CONFIGS else {}
        devices = topologies.get_topology_desc(topology_name=asked, platform="tpu", **more).devices
    except Exception as error:  # jaxlib raises its own kinds, which have no base class in common
        reason = " ".join(str(error).split())
        raise UserError(
            f"topology={name}: the compiler has none of that shape ({show(reason)}); try {EXAMPLES}"
        ) from None
    return Topology(name=name, version=version, chip=CHIPS[version], num_chips=num_chips, devices=tuple(devices))


def _libtpu_requirement() -> str:
    """The version that this jax was released with, from the pins of its `tpu` extra."""
    pins = [line for line in metadata.requires("jax") or () if line.startswith("libtpu") and "tpu" in line]
    return re.split(r"\s*;", pins[0])[0].replace(" ", "") if pins else "'jax[tpu]'"
