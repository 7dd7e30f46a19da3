"""Attention on NVIDIA GPUs by cuDNN's fused kernel, which does not write the scores to memory.

The kernel supports some shapes only, depending on the card and the version of cuDNN. It reports an error late, when a
program is compiled or run. So each shape is tried once on the card and compared with the definition, before a program
uses it.
"""

import functools
import math
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from tpusd.networks.target import platform

HALF = ("bfloat16", "float16")  # cuDNN has no kernel for float32
COMPARED = 128  # queries that a trial compares: all scores of an image would take too much memory


def suits(query_shape: tuple[int, ...], key_shape: tuple[int, ...], dtype: DTypeLike) -> bool:
    """Whether `attend` gives right results for these (b,length,n,d) on this machine's GPU."""
    name = jnp.dtype(dtype).name
    return platform() == "gpu" and name in HALF and _tried(query_shape[1:], key_shape[1:], name)


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v; query (b,q,n,d), key and value (b,k,n,d) -> (b,q,n,d). Raises cuDNN's errors."""
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


@functools.cache
def _tried(query_shape: tuple[int, ...], key_shape: tuple[int, ...], dtype: str) -> bool:
    # This thread is tracing a program, and the trial must not become a part of it. So it runs in another thread.
    with ThreadPoolExecutor(1, thread_name_prefix="cudnn") as pool:
        return pool.submit(_agrees, query_shape, key_shape, jnp.dtype(dtype)).result()


def _agrees(query_shape: tuple[int, ...], key_shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether the kernel equals the definition, up to four roundings, for random arrays of these shapes of one image.

    Shapes are (length,n,d), without the batch.
    """
    try:
        device = _gpu()
        rng = np.random.default_rng(0)
        query, key, value = (
            jax.device_put(jnp.asarray(rng.standard_normal((1, *shape)), dtype), device)
            for shape in (query_shape, key_shape, key_shape)
        )
        mapped = jax.pmap(attend, devices=[device])(
            query[None], key[None], value[None]
        )  # programs are mapped in the same way
        out = mapped.reshape(query.shape)[:, :COMPARED].astype(jnp.float32)
        few, wide_key, wide_value = (x.astype(jnp.float32) for x in (query[:, :COMPARED], key, value))
        scores = jnp.einsum("bqnd,bknd->bnqk", few, wide_key, precision="highest") / math.sqrt(query_shape[-1])
        exact = jnp.einsum("bnqk,bknd->bqnd", jax.nn.softmax(scores), wide_value, precision="highest")
        return bool(jnp.abs(out - exact).max() <= 2 * float(jnp.finfo(dtype).eps) * jnp.abs(exact).max())
    except Exception:  # no cuDNN, or an unsupported head size or card: each has its own exception
        return False


def _gpu() -> jax.Device:
    return jax.local_devices(backend="gpu")[0]
