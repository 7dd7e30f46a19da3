"""Whether this machine may have a TPU. Where it cannot, JAX is kept from asking libtpu for one.

`pip install libtpu` brings the TPU's compiler to a machine without a TPU, as `tpusd.preflight` needs it. JAX then asks
libtpu for devices at every start, and libtpu prints errors before it says that there are none.
"""

import glob
import importlib.util
import os

_DEVICE_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")
_PCI_DEVICES = "/sys/bus/pci/devices/*"
_GOOGLE = "0x1ae0"
_DISKS_AND_NETWORKS = ("0x01", "0x02")  # classes of PCI; machines in Google's cloud have such virtual devices
_SET_WITHOUT_TPU = (
    "TPU_LIBRARY_PATH",
    "TPU_SKIP_MDS_QUERY",
    "TPU_ML_PLATFORM",
    "TPU_ML_PLATFORM_VERSION",
)  # by libtpu and JAX


def has_tpu_device() -> bool:
    """Whether the system shows a TPU: a device file, or a device of Google on the PCI bus."""
    return any(map(glob.glob, _DEVICE_FILES)) or any(map(_is_tpu, glob.glob(_PCI_DEVICES)))


def leave_out_absent_tpu() -> None:
    """Keeps JAX to the CPU where libtpu is installed and nothing speaks of a TPU or a GPU.

    Call it before JAX opens its devices. The user's own choice, JAX_PLATFORMS, goes first. With a plugin for GPUs the
    choice stays with JAX, which knows whether the plugin works.
    """
    import jax

    if jax.config.values["jax_platforms"] or importlib.util.find_spec("libtpu") is None or _has_plugins():
        return
    if not (has_tpu_device() or _environment_names_tpu()):
        jax.config.update("jax_platforms", "cpu")


def _is_tpu(device: str) -> bool:
    """Whether a directory of /sys describes a device of Google's that is no disk and no network card."""
    return _read(f"{device}/vendor") == _GOOGLE and not _read(f"{device}/class").startswith(_DISKS_AND_NETWORKS)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def _environment_names_tpu() -> bool:
    """Whether a variable of a TPU VM, of a container on one, or of a user who wants one is set."""
    names = [name for name in os.environ if name.startswith("TPU_") and name not in _SET_WITHOUT_TPU]
    return bool(names) or "JAX_FORCE_TPU_INIT" in os.environ or os.environ.get("PJRT_DEVICE", "").upper() == "TPU"


def _has_plugins() -> bool:
    """Whether JAX finds a plugin other than libtpu. It looks in the namespace package jax_plugins."""
    return importlib.util.find_spec("jax_plugins") is not None
