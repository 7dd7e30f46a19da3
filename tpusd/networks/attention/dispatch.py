"""Attention by whichever way suits the device and the shape."""

import math

import jax
import jax.numpy as jnp

from tpusd.networks.attention import cudnn as cudnn_attention
from tpusd.networks.attention import tpu as tpu_attention
from tpusd.networks.attention.cpu import cpu_attention
from tpusd.networks.attention.pieces import largest_divisor
from tpusd.networks.target import platform, tpu_kind

# Above this many scores queries go through in pieces. Of one head: what a 512 px UNet needs at once, of which the
# autoencoder's attention at 1024 px would need 16 times as many. Of all heads and rows: 1 GiB in float32.
MAX_SCORES_OF_HEAD = 4096 * 4096
MAX_SCORES = 16 * MAX_SCORES_OF_HEAD


def dot_product_attention(query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool = False) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v with scores and softmax in float32 (Vaswani et al. 2017, eq. 1).

    query (b,q,n,d), key and value (b,k,n,d) -> (b,q,n,d). Float32 scores make SD 2.x's `upcast_attention` a no-op.
    """
    if not causal and tpu_attention.available() and tpu_attention.suits(query.shape, key.shape, query.dtype):
        return tpu_attention.tpu_attention(query, key, value)
    if not causal and platform() == "cpu":
        return cpu_attention(query, key, value)
    if not causal and platform() == "gpu" and cudnn_attention.suits(query.shape, key.shape, query.dtype):
        return cudnn_attention.cudnn_attention(query, key, value)
    q_len, k_len = query.shape[1], key.shape[1]
    scale = 1.0 / math.sqrt(query.shape[-1])
    # On TPUs without the kernel adding the weights up takes as long as a product: it is one more column of the values.
    sum_by_product = tpu_kind() is not None and not tpu_attention.available()

    def attend(query):
        scores = jnp.einsum("bqnd,bknd->bnqk", query, key, preferred_element_type=jnp.float32) * scale
        if causal:
            scores = jnp.where(jnp.tri(q_len, dtype=bool), scores, -jnp.inf)
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
        return attend(query)
    split = query.reshape(b, q_len // at_once, at_once, n, d).swapaxes(0, 1)
    return jax.lax.map(attend, split).swapaxes(0, 1).reshape(b, q_len, n, d)
