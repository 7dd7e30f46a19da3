"""The one loop that runs every sampler: each image follows its own table of coefficients.

Knows no schedule and no sampler; rows.py describes the columns of a row.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from tpusd.samplers.rows import C_IN, COLUMNS, GUIDANCE, HISTORY, NOISE, P_OUT, P_X, PUSH, TERMS, X, Y
from tpusd.samplers.rows import T as TIMESTEP

LANES = 128  # of a TPU's vector unit; the four channels of a sample alone would fill 4 of them

Log = TypeVar("Log")  # any pytree: what the caller records after each row
Kept = jax.Array | None


class LoopState(NamedTuple):
    """The state of a sampler between steps, float32 (b,h,w,c) each.

    kept: what the model keeps from one call to the next, any array; None: nothing.
    """

    x: jax.Array  # the sample
    y: jax.Array  # one saved register
    h1: jax.Array  # earlier predictions, the latest first
    h2: jax.Array
    h3: jax.Array
    kept: jax.Array | None = None

    @classmethod
    def start(cls, noise: jax.Array) -> "LoopState":
        """noise (b,h,w,c): standard normal times the table's init_scale."""
        x = noise.astype(jnp.float32)
        return cls(x, *[jnp.zeros_like(x)] * (1 + HISTORY))


def run_steps(
    predict: Callable[..., tuple[jax.Array, Kept]],
    state: LoopState,
    table: jax.Array,
    start: jax.Array | int,
    stop: jax.Array | int,
    *,
    noise: Callable[[jax.Array], jax.Array],
    record: Callable[[jax.Array, jax.Array, Log], Log],
    log: Log,
    after: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> tuple[LoopState, Log]:
    """Runs rows [start, stop) of each image's table.

    Args:
        predict: k, x (b,h,w,c), t (b,) and guidance scale (b,), float32, and what the model kept -> the model's output
            after guidance, (b,h,w,c), and what it keeps now.
            Where the table has further columns, it gets those of the row too, (b, columns).
        state: the state before row `start`.
        table: (b, rows, COLUMNS or more) float32. A padding row leaves the state of its image exactly as it is.
        start: the first row, a whole number, which may be traced.
        stop: the row after the last one, a whole number, which may be traced.
        noise: k -> standard normal (b,h,w,c) of row k; called only if some image's row k uses noise.
        record: k, x and the log -> the log after row k. x holds the samples in their order, in another shape (b,...).
        log: the log before row `start`.
        after: k and x (b,h,w,c) after row k -> what replaces x. None: x stays.

    Returns:
        The state and the log after the last row.
    """

    b, *shape = state.x.shape
    lanes = math.gcd(math.prod(shape), LANES)

    def flat(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32).reshape(b, -1, lanes)

    def step(k: jax.Array, carry: tuple[LoopState, Log]) -> tuple[LoopState, Log]:
        state, log = carry
        row = jax.lax.dynamic_index_in_dim(table, k, axis=1, keepdims=False)  # (b, COLUMNS or more)
        column = row[:, :, None, None]
        further = [row[:, COLUMNS:]] if row.shape[1] > COLUMNS else []
        x = (column[:, C_IN] * state.x).reshape(b, *shape)
        out, kept = predict(k, x, row[:, TIMESTEP], row[:, GUIDANCE], state.kept, *further)
        out = flat(out)
        pred = column[:, P_X] * state.x + column[:, P_OUT] * out
        fresh = jax.lax.cond(jnp.any(row[:, NOISE] != 0), lambda: flat(noise(k)), lambda: jnp.zeros_like(out))
        seen = (state.x, state.y, pred, state.h1, state.h2, state.h3, fresh)
        x = _dot(column[:, X : X + TERMS], seen)
        y = _dot(column[:, Y : Y + TERMS], seen)
        x = x if after is None else flat(after(k, x.reshape(b, *shape)))
        push = column[:, PUSH] != 0
        new = LoopState(
            x,
            y,
            jnp.where(push, pred, state.h1),
            jnp.where(push, state.h1, state.h2),
            jnp.where(push, state.h2, state.h3),
        )
        rests = jnp.all(column[:, X : X + TERMS] == 0, axis=1)
        after_row = _map_samples(lambda old, new: jnp.where(rests, old, new), state, new)._replace(kept=kept)
        return after_row, record(k, after_row.x, log)

    end, log = jax.lax.fori_loop(start, stop, step, (_map_samples(flat, state), log))
    return _map_samples(lambda x: x.reshape(b, *shape), end), log


def _map_samples(function: Callable[..., jax.Array], state: LoopState, *others: LoopState) -> LoopState:
    """jax.tree.map over all but `kept`, which is that of `state`."""
    bare = [one._replace(kept=None) for one in (state, *others)]
    mapped: LoopState = jax.tree.map(function, *bare)
    return mapped._replace(kept=state.kept)


def _dot(coefficients: jax.Array, seen: tuple[jax.Array, ...]) -> jax.Array:
    """coefficients (b, TERMS, 1, 1). A term with coefficient 0 has no effect, even if it is infinite."""
    terms = [jnp.where(coefficients[:, i] == 0, 0, coefficients[:, i] * v) for i, v in enumerate(seen)]
    return sum(terms[1:], start=terms[0])
