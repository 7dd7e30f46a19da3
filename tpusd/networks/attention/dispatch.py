"""Attention by the first back end that suits the device and the shape."""

from typing import Protocol

import jax
from jax.typing import DTypeLike

from tpusd.networks.attention import cpu, cudnn, plain, tpu


class BackEnd(Protocol):
    """One way to compute attention in which every query sees every key."""

    def suits(self, query_shape: tuple[int, ...], key_shape: tuple[int, ...], dtype: DTypeLike) -> bool:
        """Whether to use this back end for these (b,length,n,d) on the target device."""
        ...

    def attend(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        """softmax(q k^T / sqrt(d)) v; query (b,q,n,d), key and value (b,k,n,d) -> (b,q,n,d)."""
        ...


BACK_ENDS: tuple[BackEnd, ...] = (tpu, cpu, cudnn)


def dot_product_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool = False, keep: jax.Array | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v with scores and softmax in float32 (Vaswani et al. 2017, eq. 1).

    query (b,q,n,d), key and value (b,k,n,d) -> (b,q,n,d). Float32 scores make SD 2.x's `upcast_attention` a no-op.

    keep: bool (b,k), the keys that are seen, with `causal`; None: all.
    """
    if not causal:
        for back_end in BACK_ENDS:
            if back_end.suits(query.shape, key.shape, query.dtype):
                return back_end.attend(query, key, value)
    return plain.attend(query, key, value, causal=causal, keep=keep)
