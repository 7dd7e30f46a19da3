"""Attention on TPUs as one kernel: scores stay in the chip's vector memory, for every batch size.

The kernel works on arrays (b,n,d,length). The TPU compiler lays out the projections around it in the same order, so
nothing is copied, and heads of 40 features are not padded to 128 in memory. Scores are (k,q): the softmax reduces over
sublanes, and the weights are the stationary side of the second product without a transposition.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from tpusd.networks.attention.pieces import largest_divisor
from tpusd.networks.target import V2, V3, tpu_kind

LANES = 128
KEYS = 1024  # of one iteration of the loop over keys
SCORES = 1024 * KEYS  # of one iteration: 4 MiB in float32; with fewer keys, a grid step has more queries
VECTOR_MEMORY = 16 << 20
MAX_KEYS_BYTES = 2 << 20  # of one head; values take as much memory, and the pipeline buffers both twice
_WITHOUT = (V2, V3)  # their compiler refuses bfloat16 products in a kernel


def available() -> bool:
    """Whether the target device can run the kernel."""
    return tpu_kind() not in (None, *_WITHOUT)


def suits(query_shape: tuple[int, ...], key_shape: tuple[int, ...], dtype: DTypeLike) -> bool:
    """Whether `attend` supports these (b,length,n,d) and is faster.

    It needs whole tiles of queries, enough of them, and one head's keys in vector memory. The only dtype is bfloat16:
    the matrix units have no float16, and who chooses float32 wants the compiler's own arithmetic.
    """
    (_, q, _, d), k = query_shape, key_shape[1]
    return (
        available()
        and jnp.dtype(dtype) == jnp.bfloat16
        and d % 8 == 0
        and q % LANES == 0
        and q >= (8 if k % LANES else 2) * LANES  # with few scores, padding the keys takes longer than the kernel saves
        and k * d * 2 <= MAX_KEYS_BYTES
    )


def attend(query: jax.Array, key: jax.Array, value: jax.Array, *, interpret: bool = False) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v with scores and softmax in float32.

    query (b,q,n,d), key and value (b,k,n,d) -> (b,q,n,d). Keys are padded to whole tiles (77 to 128) and masked.

    interpret: run the kernel's operations one by one, on any device.
    """
    from jax.experimental import pallas as pl  # the import takes half a second
    from jax.experimental.pallas import tpu as pltpu

    b, q_len, n, d = query.shape
    k_len = key.shape[1]
    padded_k, padded_d = _whole(k_len), _whole(d)
    k_block = _tiles(padded_k, KEYS)
    q_block = _tiles(q_len, SCORES // k_block)
    q, k, v = (x.transpose(0, 2, 3, 1) for x in (query, key, value))
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, padded_k - k_len))) for x in (k, v))
    q_spec = pl.BlockSpec((1, 1, d, q_block), lambda i, j, t: (i, j, 0, t))
    k_spec = pl.BlockSpec((1, 1, d, padded_k), lambda i, j, t: (i, j, 0, 0))
    out: jax.Array = pl.pallas_call(
        functools.partial(_kernel, scale=1 / math.sqrt(d), k_len=k_len, k_block=k_block),
        grid=(b, n, q_len // q_block),
        in_specs=[q_spec, k_spec, k_spec],
        out_specs=q_spec,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        cost_estimate=pl.CostEstimate(
            flops=4 * b * n * q_len * padded_k * padded_d,  # including the padding, which the matrix units also compute
            transcendentals=b * n * q_len * padded_k,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (q, q, k, v)),
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3, vmem_limit_bytes=VECTOR_MEMORY),
        interpret=interpret,
    )(q, k, v)
    return out.transpose(0, 3, 1, 2)


def _kernel(
    q_ref: jax.Ref, k_ref: jax.Ref, v_ref: jax.Ref, out_ref: jax.Ref, *, scale: float, k_len: int, k_block: int
) -> None:
    """Attention of one head, block by block of its keys (Milakov & Gimelshein 2018).

    q_ref and out_ref: (1,1,d,q).
    k_ref and v_ref: (1,1,d,k), padded to whole tiles.
    scale: factor of the scores.
    k_len: number of keys without the padding.
    k_block: number of keys in a block.
    """
    from jax.experimental import pallas as pl

    query = q_ref[0, 0]
    d, q_len = query.shape
    padded_k = k_ref.shape[3]
    scale *= math.log2(math.e)  # exp(s) = 2^(s log2 e), and the chip computes powers of 2

    def block(i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Adds a block of keys to: highest score (1,q), sum of weights (1,q), weighted sum of values (d,q)."""
        top, total, out = carry
        part = (0, 0, slice(None), pl.ds(pl.multiple_of(i * k_block, k_block), k_block))
        scores = _dot(k_ref[part], query, 0)  # (k,q)
        if padded_k != k_len:
            position = i * k_block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
            scores = jnp.where(position < k_len, scores, -jnp.inf)
        new_top = jnp.maximum(top, scores.max(axis=0, keepdims=True) * scale)
        weights = jnp.exp2(scores * scale - new_top)
        shrink = jnp.exp2(top - new_top)
        total = total * shrink + weights.sum(axis=0, keepdims=True)
        return new_top, total, out * shrink + _dot(v_ref[part], weights.astype(v_ref.dtype), 1)

    start = (jnp.full((1, q_len), -jnp.inf), jnp.zeros((1, q_len)), jnp.zeros((d, q_len)))
    _, total, out = jax.lax.fori_loop(0, padded_k // k_block, block, start)
    out_ref[0, 0] = (out / total).astype(out_ref.dtype)


def _dot(left: jax.Array, right: jax.Array, axis: int) -> jax.Array:
    """Contracts `axis` of left with the first axis of right. Two 2-d arrays -> a 2-d array in float32."""
    return jax.lax.dot_general(left, right, (((axis,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _whole(length: int) -> int:
    """The length, rounded up to whole tiles."""
    return -(-length // LANES) * LANES


def _tiles(length: int, at_most: int) -> int:
    """The largest divisor of `length` in whole tiles that is not above `at_most`. `length` is a multiple of LANES."""
    return LANES * largest_divisor(length // LANES, at_most // LANES)
