"""The random key of an image, and the noise drawn from it: a function of (seed, row, copy) and of nothing else.

Version 1 (tpusd.records.provenance.KEY_DERIVATION). Keys travel as raw key data, uint32 (2,), of JAX's threefry2x32,
which gives the same bits on every device, alone or vmapped. Knows nothing of batches, models or samplers.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpusd.config.limits import MAX_COPIES, MAX_ROWS, MAX_SEED
from tpusd.engine.jax_settings import with_usual_settings

IMPL = "threefry2x32"
# What is folded into an image's key beside 1 + k for the noise of step k, which is far below these.
PICTURE = 1 << 16  # for the sample of a picture's latents
MASKED_PICTURE = PICTURE + 1  # the same of the picture without its masked part


class GivenNoise(NamedTuple):
    """Noise that the host has drawn, in the place of keys.

    initial: (b,h,w,c) float32. steps: (b,n,h,w,c) float32, of the rows from `first` on. first: int32 (b,), all equal.
    On the host, on the devices, or as shapes.
    """

    initial: Any
    steps: Any
    first: Any


Keys = jax.Array | GivenNoise


@with_usual_settings
def image_key(seed: int, row: int, copy: int, row_seed: int | None = None) -> np.ndarray:
    """Key data uint32 (2,): fold_in(key(seed), row * 4096 + copy); for a row with a seed fold_in(key(row_seed), copy).

    At row 0 it equals jax.random.split(PRNGKey(seed), n)[copy].
    """
    assert 0 <= row < MAX_ROWS and 0 <= copy < MAX_COPIES, (row, copy)
    root, index = (seed, row * MAX_COPIES + copy) if row_seed is None else (row_seed, copy)
    assert 0 <= root <= MAX_SEED, root
    return np.asarray(_fold(np.uint32(root), np.uint32(index)))


def initial_latents(keys: Keys, shape: tuple[int, int, int]) -> jax.Array:
    """Keys uint32 (b, 2), shape (c, h, w) -> standard normal (b, h, w, c) float32, drawn channel-first per image."""
    if isinstance(keys, GivenNoise):
        given: jax.Array = keys.initial
        return given
    noise: jax.Array = _normal(keys, shape)
    return noise


def step_noise(keys: Keys, k: jax.Array | int, shape: tuple[int, int, int]) -> jax.Array:
    """The noise of step k of a stochastic sampler: (b, h, w, c) float32 from fold_in(key, 1 + k), channel-first too."""
    if isinstance(keys, GivenNoise):
        given: jax.Array = jax.lax.dynamic_index_in_dim(keys.steps, k - keys.first[0], axis=1, keepdims=False)
        return given
    return folded_noise(keys, 1 + k, shape)


def folded_noise(keys: jax.Array, index: jax.Array | int, shape: tuple[int, int, int]) -> jax.Array:
    """Standard normal (b, h, w, c) float32 from fold_in(key, index), channel-first too."""

    def fold(key: jax.Array) -> jax.Array:
        return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key, impl=IMPL), index))

    noise: jax.Array = _normal(jax.vmap(fold)(keys), shape)
    return noise


@jax.jit
def _fold(seed: jax.Array, index: jax.Array) -> jax.Array:
    # As jax.random.key(seed) makes it, without the offset that JAX_RANDOM_SEED_OFFSET adds.
    key = jax.random.wrap_key_data(jnp.stack([jnp.zeros_like(seed), seed]), impl=IMPL)
    return jax.random.key_data(jax.random.fold_in(key, index))


@partial(jax.jit, static_argnums=1)
def _normal(keys: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.wrap_key_data(key, impl=IMPL), shape, jnp.float32)

    with jax.threefry_partitionable(True):
        drawn = jax.vmap(draw)(keys)
    # Without the barrier, fusion with the rest of a program may round the last bit differently (seen with JAX 0.12).
    noise: jax.Array = jax.lax.optimization_barrier(drawn)
    return noise.transpose(0, 2, 3, 1)  # (b, c, h, w) -> (b, h, w, c)
