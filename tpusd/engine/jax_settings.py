"""JAX's own settings, which an environment or a Python program may have changed for its own purposes.

What could change a bit of an image is set here while JAX works for tpusd (SET), refused (REFUSED), or noted in
run.json, so that resume and reproduce say it (NOTED). `tests/engine/test_jax_settings.py` walks over all options of
the installed JAX: each is in one of these, or is known to have no effect.
"""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax

from tpusd.errors import UserError, show

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Option -> its value here. Others change types and noise, or stop a sound program.
SET: Mapping[str, tuple[Callable[[Any], contextlib.AbstractContextManager[Any]], Any]] = {
    "jax_enable_x64": (jax.enable_x64, False),
    "jax_numpy_dtype_promotion": (jax.numpy_dtype_promotion, "standard"),
    "jax_numpy_rank_promotion": (jax.numpy_rank_promotion, "allow"),
    "jax_threefry_partitionable": (jax.threefry_partitionable, True),
    "jax_default_prng_impl": (jax.default_prng_impl, "threefry2x32"),
    "jax_legacy_prng_key": (jax.legacy_prng_key, "allow"),
    "jax_debug_key_reuse": (jax.debug_key_reuse, False),
    "jax_debug_nans": (jax.debug_nans, False),
    "jax_debug_infs": (jax.debug_infs, False),
    "jax_disable_jit": (jax.disable_jit, False),
    "jax_no_tracing": (jax.no_tracing, False),
    "jax_no_execution": (jax.no_execution, False),
    "jax_transfer_guard": (jax.transfer_guard, "allow"),
}
# Option -> the only value that is accepted: others change the noise of every image, or its pixels without a trace.
# JAX before 0.12 has no jax_accurate_erf_inv: jax.random.normal is an inverse of erf.
REFUSED: Mapping[str, object] = {"jax_disable_most_optimizations": False, "jax_accurate_erf_inv": False}
# Words of XLA_FLAGS that change the noise of every image -> the values that do not (docs/log.md).
REFUSED_FLAGS: Mapping[str, str] = {
    "--xla_cpu_enable_fast_math": "false|0",
    "--xla_backend_optimization_level": "[1-3]",
    "--xla_cpu_max_isa": "AVX2|AVX512|AMX|NEON|SVE.*",  # the others have no fused multiplication and addition
    "--xla_disable_hlo_passes": "|rematerialization",
}
# Option -> its usual value. Others compile other programs, whose pixels may differ in their last bits.
NOTED: Mapping[str, object] = {
    "jax_default_matmul_precision": None,
    "jax_allow_f16_reductions": True,
    "jax_compiler_enable_remat_pass": True,
    "jax_enable_pgle": False,
    "jax_exec_time_optimization_effort": 0.0,
    "jax_memory_fitting_effort": 0.0,
    "jax_memory_fitting_level": "O2",
    "jax_optimization_level": "UNKNOWN",
    "jax_use_shardy_partitioner": True,
    "jax_use_hlo_logistic_lowering": None,
    "jax_use_magma": "auto",
    "jax_xla_profile_version": 0,
    "jax_pallas_use_mosaic_gpu": True,
    "jax_pallas_poison_buffers": False,
    "jax_threefry_gpu_kernel_lowering": False,
}


def usual_settings() -> contextlib.ExitStack:
    """A context in which the options of SET have their values here, for this thread."""
    stack = contextlib.ExitStack()
    for context, value in SET.values():
        stack.enter_context(context(value))
    return stack


def with_usual_settings(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function, called within `usual_settings`."""

    @functools.wraps(function)
    def within(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with usual_settings():
            return function(*args, **kwargs)

    return within


def check_settings(environ: Mapping[str, str] = os.environ) -> None:
    """Raises UserError for a setting of JAX or XLA with which the noise of every image would be another one."""
    for name, only in REFUSED.items():
        value = jax.config.values.get(name, only)
        if value != only:
            raise UserError(
                f"{name.upper()}={show(value)}: changes the noise of every image; unset it, or set it to {only}"
            )
    for word in environ.get("XLA_FLAGS", "").split():
        name, sign, value = word.partition("=")
        accepted = REFUSED_FLAGS.get(name)
        if accepted is not None and not re.fullmatch(accepted, value if sign else "true", re.IGNORECASE):
            raise UserError(f"XLA_FLAGS={show(word)}: changes the noise of every image; take it out of XLA_FLAGS")


def noted_settings() -> dict[str, Any]:
    """The options of NOTED that do not have their usual values: for run.json."""
    values = {name: jax.config.values.get(name, usual) for name, usual in NOTED.items()}
    return {name: value for name, value in values.items() if value != NOTED[name]}
