"""The device that a model is being traced for: the same arithmetic is written as suits its compiler."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

# Kinds of TPU as JAX has them.
V2, V3, V5E, V5P, V6E = "TPU v2", "TPU v3", "TPU v5 lite", "TPU v5", "TPU v6 lite"

_device = contextvars.ContextVar("the device that is compiled for", default=None)


@contextlib.contextmanager
def compiling_for(device: jax.Device) -> Iterator[None]:
    """Inside, what is traced goes to this device's compiler."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def platform() -> str:
    """The platform, "cpu", "gpu" or "tpu"; where nothing is said, that of JAX's own devices."""
    device = _device.get()
    return device.platform if device is not None else jax.default_backend()


def tpu_kind() -> str | None:
    """The TPU's kind, such as "TPU v5 lite"; None where no TPU is compiled for."""
    device = _device.get()
    return device.device_kind if device is not None and device.platform == "tpu" else None
