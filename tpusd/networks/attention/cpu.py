"""Attention on CPUs: heads are merged into the batch, and the scores of one step fit into the cache.

XLA's CPU compiler turns einsums of two or three axes into fast matrix products, and those of four axes into slow loops.
Scores that do not fit into the cache take longer to write and read than to compute.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from tpusd.networks.attention.pieces import largest_divisor
from tpusd.networks.target import platform

TOGETHER = 512 * 512  # up to this many scores of one head, all heads are computed at once
SCORES = 1 << 20  # above that, scores of one head that are computed at once: 4 MiB in float32


def suits(query_shape: tuple[int, ...], key_shape: tuple[int, ...], dtype: DTypeLike) -> bool:
    """True on every CPU, for every shape."""
    return platform() == "cpu"


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v with scores and softmax in float32.

    query (b,q,n,d), key and value (b,k,n,d) -> (b,q,n,d).
    """
    b, q_len, n, d = query.shape
    k_len = key.shape[1]
    # There are fewer queries than scores, and XLA would broadcast the scalar to memory.
    scaled = query / math.sqrt(d)
    q, k, v = (x.swapaxes(1, 2).reshape(b * n, -1, d) for x in (scaled, key, value))
    if q_len * k_len <= TOGETHER:
        out = _attend(q, k, v)
    else:
        rows = largest_divisor(q_len, SCORES // k_len)
        pieces = q.reshape(b * n, q_len // rows, rows, d)
        out = jax.lax.map(lambda head: jax.lax.map(lambda piece: _attend(piece, *head[1:]), head[0]), (pieces, k, v))
    return out.reshape(b, n, q_len, d).swapaxes(1, 2)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(q k^T) v. query (...,q,d), key and value (...,k,d) -> (...,q,d).

    The division by the sums comes last, because the result has fewer values than the scores.
    """
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    out = jnp.einsum("...qk,...kd->...qd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)
