"""The three programs as pure functions of one device's share: encode, denoise, decode.

Weights, keys, sampler tables, guidance and step bounds are arguments, so none of them compiles anything again. Knows
nothing of devices, files or prompts as text.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpusd.engine import noise as image_keys
from tpusd.samplers.guidance import classifier_free_guidance
from tpusd.samplers.loop import LoopState, run_steps
from tpusd.samplers.rows import MAX_ROWS

TRACE_ROWS = 5  # latents are traced after row 1, 5, 10, 15, ... of the table
DECODED_AT_ONCE = 512  # positions of latents


class Conditioning(NamedTuple):
    """What the UNet is told of the text: hidden (b,l,e); pooled (b,p), None but for SDXL."""

    hidden: jax.Array
    pooled: jax.Array | None


class Guidance(NamedTuple):
    """Per image, float32 (b,): classifier-free guidance scale, and the share of guidance_rescale."""

    scale: jax.Array
    rescale: jax.Array


class Trace(NamedTuple):
    """Digests, uint32: noise (b,2); rows (b,n,2), the latents after row 1, 5, 10, ...; latents (b,2), as they are.

    Noise that was not drawn, and rows that were not made, in this call have zeros.
    """

    noise: jax.Array
    rows: jax.Array
    latents: jax.Array


def encode(encoders, input_ids, given) -> tuple[Conditioning, jax.Array]:
    """Token ids -> text embeddings and their digest (b,2).

    encoders: one CLIPTextModel, or SDXL's two. input_ids: per encoder (b,l) int32. given (b,) bool: where False the
    embeddings are zeros, which SDXL takes for a negative prompt that is not given (not for an empty one).
    """
    outputs = [encoder(ids) for encoder, ids in zip(encoders, input_ids, strict=True)]
    if len(outputs) == 1:
        cond = Conditioning(outputs[0].last_hidden_state, None)
    else:
        hidden = jnp.concatenate([output.penultimate_hidden_state for output in outputs], axis=-1)
        cond = Conditioning(hidden, outputs[-1].pooled)
    zeroed = jax.tree.map(lambda x: jnp.where(given.reshape(-1, *[1] * (x.ndim - 1)), x, 0), cond)
    return zeroed, functools.reduce(jnp.bitwise_xor, map(digest, jax.tree.leaves(zeroed)))


def denoise(
    unet, start, stop, state, cond, uncond, guidance, table, init_scale, keys, *, time_ids
) -> tuple[LoopState, Trace]:
    """Steps [start, stop) of each image's own sampler table.

    state: LoopState of (b,h,w,c) float32; at start 0 its content does not matter, the noise is drawn here. uncond: None
    where no image of the batch is guided, and then the unconditional half is not computed. table (b,rows,columns),
    init_scale (b,), keys (b,2) uint32. time_ids: SDXL's six sizes in pixels, None otherwise.
    """
    b, h, w, c = state.x.shape

    def begin(_):
        noise = image_keys.initial_latents(keys, (c, h, w))
        return LoopState.start(noise * init_scale[:, None, None, None]), digest(noise)

    state, drawn = jax.lax.cond(start == 0, begin, lambda state: (state, jnp.zeros((b, 2), jnp.uint32)), state)
    both = cond if uncond is None else jax.tree.map(lambda u, c: jnp.concatenate([u, c]), uncond, cond)
    sizes = None if time_ids is None else jnp.tile(jnp.asarray(time_ids, jnp.float32), (both.hidden.shape[0], 1))

    def predict(x, t):
        if uncond is None:
            return unet(x, t, both.hidden, both.pooled, sizes)
        out = unet(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both.hidden, both.pooled, sizes)
        return classifier_free_guidance(out[:b], out[b:], guidance.scale, guidance.rescale)

    def record(k, x, rows):
        done = k + 1

        def traced():
            return jax.lax.dynamic_update_index_in_dim(rows, digest(x), done // TRACE_ROWS, axis=1)

        return jax.lax.cond((done == 1) | (done % TRACE_ROWS == 0), traced, lambda: rows)

    state, rows = run_steps(
        predict, state, table, start, stop,
        noise=lambda k: image_keys.step_noise(keys, k, (c, h, w)),
        record=record, log=jnp.zeros((b, 1 + MAX_ROWS // TRACE_ROWS, 2), jnp.uint32),
    )  # fmt: skip
    return state, Trace(drawn, rows, digest(state.x))


def traced_rows(total: int) -> Iterator[int]:
    """After which rows the latents of a table of `total` rows are traced: 1, 5, 10, ..., total."""
    yield from (row for row in (1, *range(TRACE_ROWS, total, TRACE_ROWS)) if row < total)
    yield total


def decode(vae, latents, *, scaling_factor: float, shift_factor: float, dtype) -> jax.Array:
    """Latents (b,h,w,c) float32 -> pixels (b,H,W,3) uint8. Activations have 64 times the area, so it is done image by
    image, but for very small ones."""

    def some(latents):
        images = vae.decode((latents / scaling_factor + shift_factor).astype(dtype))
        return jnp.round(jnp.clip(images / 2 + 0.5, 0.0, 1.0) * 255).astype(jnp.uint8)

    b, h, w, _ = latents.shape
    at_once = next(n for n in range(b, 0, -1) if b % n == 0 and (n == 1 or n * h * w <= DECODED_AT_ONCE))
    pixels = jax.lax.map(some, latents.reshape(b // at_once, at_once, *latents.shape[1:]))
    return pixels.reshape(b, *pixels.shape[2:])


def digest(x: jax.Array) -> jax.Array:
    """Floats (b,...) -> uint32 (b,2): two sums, modulo 2**32, of a hash of each value's bits and position.

    Whole numbers add up alike in any order, so equal bits give equal digests on every device. The hash is one to one in
    the bits, so a change of one value always shows.
    """
    width = jnp.dtype(x.dtype).itemsize * 8
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32).reshape(x.shape[0], -1)
    position = jnp.arange(bits.shape[1], dtype=jnp.uint32)
    sums = [_mix(bits ^ _mix(position + jnp.uint32(salt))).sum(axis=1, dtype=jnp.uint32) for salt in (1, 0x9E3779B9)]
    return jnp.stack(sums, axis=1)


def _mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's 32-bit finalizer (Appleby 2011): one to one, every bit of the input reaches every bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
