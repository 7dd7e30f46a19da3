"""The device for which a network is being traced. Some layers are written differently for different compilers."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

# JAX's names for the kinds of TPU.
V2, V3, V5E, V5P, V6E = "TPU v2", "TPU v3", "TPU v5 lite", "TPU v5", "TPU v6 lite"

_device: contextvars.ContextVar[jax.Device | None] = contextvars.ContextVar("target device", default=None)


@contextlib.contextmanager
def compiling_for(device: jax.Device) -> Iterator[None]:
    """Sets the target device for all that is traced inside the block."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def platform() -> str:
    """The target's platform: "cpu", "gpu" or "tpu". Without a target, the platform of JAX's default devices."""
    device = _device.get()
    return device.platform if device is not None else jax.default_backend()


def tpu_kind() -> str | None:
    """The target's kind, such as "TPU v5 lite"; None if the target is not a TPU."""
    device = _device.get()
    return device.device_kind if device is not None and device.platform == "tpu" else None
