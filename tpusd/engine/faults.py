"""JAX's errors that are the machine's, in one line for the user: no such device, and out of memory."""

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpusd.engine.platforms import leave_out_absent_tpu
from tpusd.errors import UserError, show
from tpusd.process.waiting import waiting

if TYPE_CHECKING:
    import jax

_GIB = 1 << 30


def local_devices() -> "list[jax.Device]":
    """The devices of this process. Raises UserError where JAX cannot use the platform that JAX_PLATFORMS asks for."""
    with waiting("loading JAX"):
        import jax

    leave_out_absent_tpu()
    try:
        with waiting("looking for devices"):
            return list(jax.local_devices())
    except (RuntimeError, AssertionError) as error:  # for a GPU, an assertion in JAX is all that there is
        chosen = os.environ.get("JAX_PLATFORMS")
        if not chosen:
            raise
        reason = f" ({show(_first_sentence(error), 160)})" if str(error) else ""
        raise UserError(
            f"JAX_PLATFORMS={show(chosen)}: JAX has no such device here{reason}; unset JAX_PLATFORMS, or install tpusd "
            "with [tpu] or [cuda]"
        ) from None


def out_of_memory(error: BaseException, devices: "Sequence[jax.Device]", batch_size_per_device: int) -> str | None:
    """What to do about an error that says that a device's memory is too small; None for any other error.

    error: of loading, compiling or running.
    devices: which had to hold it.
    batch_size_per_device: of the run.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return None
    stats = devices[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    there = f"; a device has {limit / _GIB:.1f} GiB" if limit else ""
    if batch_size_per_device > 1:
        remedy = f"batch_size_per_device={batch_size_per_device}: try {batch_size_per_device // 2}"
    else:
        remedy = "batch_size_per_device is 1: try precision=bf16, or smaller height and width"
    return (
        f"out of device memory ({show(_first_sentence(error), 200)}{there}); {remedy}; python -m tpusd.preflight says "
        "beforehand how much a TPU needs"
    )


def _first_sentence(error: BaseException) -> str:
    """Without the status in front, and without the list of buffers behind."""
    text = " ".join(str(error).split()).removeprefix("RESOURCE_EXHAUSTED: ")
    return re.split(r"(?<=[a-z)\d])\.(?: |$)", text, maxsplit=1)[0]
