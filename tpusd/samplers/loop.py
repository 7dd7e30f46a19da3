"""The one loop that runs every sampler: each image follows its own table of coefficients.

Knows nothing of schedules or of samplers; the columns of a row are described in rows.py.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tpusd.samplers.rows import C_IN, HISTORY, NOISE, P_OUT, P_X, PUSH, TERMS, X, Y
from tpusd.samplers.rows import T as TIMESTEP

LANES = 128  # of a TPU's vector unit, which the four channels of a sample would fill with a thirty-second each


class LoopState(NamedTuple):
    """All that a sampler remembers between steps, float32 (b,h,w,c) each."""

    x: jax.Array  # the sample
    y: jax.Array  # one saved register
    h1: jax.Array  # earlier predictions, the latest first
    h2: jax.Array
    h3: jax.Array

    @classmethod
    def start(cls, noise: jax.Array) -> "LoopState":
        """noise (b,h,w,c): standard normal times the table's init_scale."""
        x = noise.astype(jnp.float32)
        return cls(x, *[jnp.zeros_like(x)] * (1 + HISTORY))


def run_steps(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    state: LoopState,
    table: jax.Array,
    start: jax.Array | int,
    stop: jax.Array | int,
    *,
    noise: Callable[[jax.Array], jax.Array],
    record: Callable[[jax.Array, jax.Array, Any], Any] = lambda k, x, log: log,
    log: Any = (),
) -> tuple[LoopState, Any]:
    """Rows [start, stop) of each image's table (b, rows, COLUMNS) float32. start, stop: whole numbers, may be traced.

    predict(x (b,h,w,c) float32, t (b,) float32): the model's output after guidance. noise(k): standard normal
    (b,h,w,c) of row k, called where some image's row k asks for noise. record(k, x, log): the log after row k; x has
    the sample in its order but another shape, (b,...). An image whose row is a padding row keeps its state bit for bit,
    whatever the model says. Returns the state and the log.
    """

    b, *shape = state.x.shape
    lanes = math.gcd(math.prod(shape), LANES)

    def flat(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32).reshape(b, -1, lanes)

    def step(k: jax.Array, carry: tuple[LoopState, Any]) -> tuple[LoopState, Any]:
        state, log = carry
        row = jax.lax.dynamic_index_in_dim(table, k, axis=1, keepdims=False)  # (b, COLUMNS)
        column = row[:, :, None, None]
        out = flat(predict((column[:, C_IN] * state.x).reshape(b, *shape), row[:, TIMESTEP]))
        pred = column[:, P_X] * state.x + column[:, P_OUT] * out
        fresh = jax.lax.cond(jnp.any(row[:, NOISE] != 0), lambda: flat(noise(k)), lambda: jnp.zeros_like(out))
        seen = (state.x, state.y, pred, state.h1, state.h2, state.h3, fresh)
        x = _dot(column[:, X : X + TERMS], seen)
        y = _dot(column[:, Y : Y + TERMS], seen)
        push = column[:, PUSH] != 0
        new = LoopState(
            x,
            y,
            jnp.where(push, pred, state.h1),
            jnp.where(push, state.h1, state.h2),
            jnp.where(push, state.h2, state.h3),
        )
        rests = jnp.all(column[:, X : X + TERMS] == 0, axis=1)
        kept = jax.tree.map(lambda old, new: jnp.where(rests, old, new), state, new)
        return kept, record(k, kept.x, log)

    end, log = jax.lax.fori_loop(start, stop, step, (jax.tree.map(flat, state), log))
    return jax.tree.map(lambda x: x.reshape(b, *shape), end), log


def _dot(coefficients: jax.Array, seen: tuple[jax.Array, ...]) -> jax.Array:
    """coefficients (b, TERMS, 1, 1). What a row does not use cannot spoil it, infinite or not."""
    terms = [jnp.where(coefficients[:, i] == 0, 0, coefficients[:, i] * v) for i, v in enumerate(seen)]
    return sum(terms[1:], start=terms[0])
