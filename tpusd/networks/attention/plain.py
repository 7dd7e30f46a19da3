"""Attention as XLA compiles it, on any device, with or without a causal mask."""

import math

import jax
import jax.numpy as jnp

from tpusd.networks.attention import tpu
from tpusd.networks.attention.pieces import largest_divisor
from tpusd.networks.target import tpu_kind

# Above this many scores, queries are computed in pieces. The limit of one head is what a UNet needs at 512 pixels; the
# autoencoder's attention at 1024 pixels would need 16 times as many. All heads and rows have 1 GiB in float32.
MAX_SCORES_OF_HEAD = 4096 * 4096
MAX_SCORES = 16 * MAX_SCORES_OF_HEAD


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool, keep: jax.Array | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v with scores and softmax in float32.

    query (b,q,n,d), key and value (b,k,n,d) -> (b,q,n,d).

    causal: query i sees keys 0 to i.
    keep: bool (b,k), the keys that queries see, with `causal`; None: all.
    """
    q_len, k_len = query.shape[1], key.shape[1]
    scale = 1.0 / math.sqrt(query.shape[-1])
    # On TPUs without the kernel, the sum of the weights takes as long as a product. So one more column of the values,
    # filled with ones, gives the sum.
    sum_by_product = tpu_kind() is not None and not tpu.available()

    def attend_to_all(query: jax.Array) -> jax.Array:
        scores = jnp.einsum("bqnd,bknd->bnqk", query, key, preferred_element_type=jnp.float32) * scale
        if causal:
            seen = jnp.tri(q_len, dtype=bool)
            scores = jnp.where(seen if keep is None else seen & keep[:, None, None], scores, -jnp.inf)
        if not sum_by_product:
            weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
            return jnp.einsum("bnqk,bknd->bqnd", weights, value)
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True)).astype(value.dtype)
        values = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)
        out = jnp.einsum("bnqk,bknd->bqnd", weights, values, preferred_element_type=jnp.float32)
        return (out[..., :-1] / out[..., -1:]).astype(value.dtype)

    b, _, n, d = query.shape
    at_once = largest_divisor(q_len, min(MAX_SCORES_OF_HEAD // k_len, MAX_SCORES // (b * n * k_len)))
    if causal or at_once == q_len:
        return attend_to_all(query)
    split = query.reshape(b, q_len // at_once, at_once, n, d).swapaxes(0, 1)
    out: jax.Array = jax.lax.map(attend_to_all, split)
    return out.swapaxes(0, 1).reshape(b, q_len, n, d)
