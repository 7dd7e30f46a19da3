"""Attention on CPUs: heads merged into the batch, and few scores at a time, which stay in the cache.

XLA's CPU compiler makes a fast matrix product of two or three axes and a slow loop of four. Scores that do not fit the
cache cost more to write and read than to compute.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from tpusd.networks.attention.pieces import largest_divisor
from tpusd.networks.target import platform

TOGETHER = 512 * 512  # scores of a head up to which all heads go at once
SCORES = 1 << 20  # of a piece of one head's queries beyond that: 4 MiB in float32


def suits(query_shape: tuple[int, ...], key_shape: tuple[int, ...], dtype: DTypeLike) -> bool:
    """On every CPU, for every shape."""
    return platform() == "cpu"


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v, scores and softmax in float32.

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
    """softmax(q k^T) v of (...,q,d), (...,k,d). The sums are divided out last, from fewer values than scores are."""
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    out = jnp.einsum("...qk,...kd->...qd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)
