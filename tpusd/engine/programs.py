"""The programs as pure functions of one device's share: encode, denoise, decode; encode_picture, embed_control.

Weights, keys, sampler tables, guidance and step bounds are arguments, so none of them compiles anything again. What a
network computes is the family's. Knows nothing of devices, files or prompts as text.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from tpusd.config.schema import Weighting
from tpusd.engine import noise as image_keys
from tpusd.families.base import ChunkTokens, Conditioning, Control, Family, Guidance, Networks, Tokens
from tpusd.networks.reuse import Reuse
from tpusd.networks.unet import Features
from tpusd.samplers.loop import Kept, LoopState, run_steps
from tpusd.samplers.rows import MAX_ROWS

Made = TypeVar("Made")
TRACE_ROWS = 5  # latents are traced after row 1, 5, 10, 15, ... of the table
DECODED_AT_ONCE = 512  # positions of latents


class Trace(NamedTuple):
    """What is noted of each image in a call of the denoiser.

    Digests, uint32: noise (b,2); rows (b,n,2), the latents after row 1, 5, 10, ...; latents (b,2), as they are. Zeros
    for noise that was not drawn, and for rows that were not made, in this call.
    num_finite: int32 (b,), rows after which the latents were finite, counted from the table's first; MAX_ROWS where
    they are finite after the last row of this call.
    """

    noise: jax.Array
    rows: jax.Array
    latents: jax.Array
    num_finite: jax.Array


class Cache(NamedTuple):
    """Which rows compute the deep half of the denoiser.

    branch: the skip connection up to which every row computes all layers.
    full: bool (rows,), the same for all images; row 0 is True.
    """

    branch: int
    full: jax.Array


class Picture(NamedTuple):
    """What an image starts from.

    latents: (b,h,w,c) float32.
    scale: (b,), the factor on the latents before the first row; the noise has its `init_scale`.
    masked: bool (b,h,w,1), what is made; elsewhere the picture is put back after each row.
    levels: (b,rows,2) float32, the level after each row, as in Table.
    unmasked: (b,h,w,c) float32, the latents of the picture without its masked part, which the denoiser reads together
        with the mask; then nothing is put back. None: the denoiser reads neither.
    """

    latents: Any  # arrays of JAX, or shapes, as all of them
    scale: Any
    masked: Any
    levels: Any
    unmasked: Any = None

    def further(self) -> list[jax.Array]:
        """What the denoiser reads beside the latents."""
        return [] if self.unmasked is None else [self.masked.astype(jnp.float32), self.unmasked]


def encode(family: Family, networks: Networks, tokens: Tokens) -> tuple[Conditioning, jax.Array, jax.Array]:
    """Tokens -> text embeddings, their digest (b,2), and whether they are finite (b,)."""
    return _with_digests(family.encode(networks, tokens))


def encode_chunks(
    family: Family, networks: Networks, tokens: ChunkTokens, *, weighting: Weighting | None
) -> tuple[Conditioning, jax.Array, jax.Array]:
    """The same of prompts in chunks, with weights."""
    return _with_digests(family.encode_chunks(networks, tokens, weighting))


def _with_digests(made: Made) -> tuple[Made, jax.Array, jax.Array]:
    """A pytree of floats (b,...), one digest of all of them, and whether they are finite."""
    leaves = jax.tree.leaves(made)
    digests = functools.reduce(jnp.bitwise_xor, map(digest, leaves))
    return made, digests, functools.reduce(jnp.logical_and, map(is_finite, leaves))


def encode_picture(
    family: Family, networks: Networks, pixels: jax.Array, keys: jax.Array, masked: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array]:
    """Latents of pictures (b,h,w,c) float32, those without the masked parts, their digest (b,2), are all finite (b,).

    The latents are a sample of what the autoencoder gives, as in the reference; its noise is the image's own. Pictures
    are encoded one by one, as images are decoded.

    pixels: (b,H,W,3) uint8.
    keys: (b,2).
    masked: bool (b,H,W), which pixels are made; None: only the whole pictures are encoded.
    """

    def encoded(arguments: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        image, key, index = arguments
        mean, deviation = family.encode_picture(networks, image[None])
        _, h, w, c = mean.shape
        return (mean + deviation * image_keys.folded_noise(key[None], index, (c, h, w)))[0]

    b = pixels.shape[0]
    images = pixels.astype(jnp.float32) / 127.5 - 1
    indices = jnp.full(b, image_keys.PICTURE)
    if masked is not None:
        images = jnp.concatenate([images, jnp.where(masked[..., None], 0, images)])
        keys = jnp.concatenate([keys, keys])
        indices = jnp.concatenate([indices, jnp.full(b, image_keys.MASKED_PICTURE)])
    latents: jax.Array = jax.lax.map(encoded, (images, keys, indices))
    whole, unmasked = latents[:b], None if masked is None else latents[b:]
    together = whole if unmasked is None else jnp.concatenate([whole, unmasked], axis=-1)
    return whole, unmasked, digest(together), is_finite(together)


def embed_control(family: Family, network: nnx.Module, pixels: jax.Array) -> tuple[Features, jax.Array, jax.Array]:
    """What a ControlNet or a T2I-Adapter makes of its pictures (b,H,W,3) uint8, one by one.

    Some (b,h,w,c); their digest (b,2); are all finite (b,).
    """

    def one(image: jax.Array) -> Features:
        return tuple(feature[0] for feature in family.embed_control(network, image[None]))

    embedded: Features = jax.lax.map(one, pixels.astype(jnp.float32) / 255)
    return _with_digests(embedded)


def denoise(
    family: Family,
    networks: Networks,
    start: jax.Array,
    stop: jax.Array,
    state: LoopState,
    cond: Conditioning,
    uncond: Conditioning | None,
    rescale: jax.Array,
    table: jax.Array,
    init_scale: jax.Array,
    keys: image_keys.Keys,
    picture: Picture | None = None,
    control: Control | None = None,
    sizes: jax.Array | None = None,
    *,
    height: int,
    width: int,
    cache: Cache | None = None,
) -> tuple[LoopState, Trace]:
    """Steps [start, stop) of each image's own sampler table.

    family, networks: what predicts.
    start, stop: int32 scalars.
    state: LoopState of (b,h,w,c) float32; at start 0 its content does not matter, the noise is drawn here. `kept` is
        the deep half of the row before, where there is a cache.
    cond: what `encode` made of the prompts.
    uncond: the same of the negative prompts; None where these steps have no guidance.
    rescale: guidance_rescale (b,) float32; not read where uncond is None.
    table: (b,rows,columns) float32, with the guidance scale of each row.
    init_scale: (b,) float32.
    keys: (b,2) uint32, or the noise itself.
    picture: what the images start from; None: noise alone.
    control: what the ControlNets among the networks get; the table has a further column for each, its scale.
    sizes: size conditioning (b,2,6) float32, of the prompts and of the negative prompts; None: of the images' own size.
    height, width: pixels.
    cache: None: every row computes all.
    """
    b, h, w, c = state.x.shape

    def begin(before: LoopState) -> tuple[LoopState, jax.Array]:
        noise = image_keys.initial_latents(keys, (c, h, w))
        x = noise * init_scale[:, None, None, None]
        if picture is not None:
            x = picture.scale[:, None, None, None] * picture.latents + x
        return LoopState.start(x)._replace(kept=before.kept), digest(noise)

    state, drawn = jax.lax.cond(start == 0, begin, lambda state: (state, jnp.zeros((b, 2), jnp.uint32)), state)
    conditioning = family.prepare(cond, uncond, height=height, width=width, sizes=sizes)

    further = [] if picture is None else picture.further()

    def predict(
        k: jax.Array, x: jax.Array, t: jax.Array, scale: jax.Array, deep: Kept, control_scale: jax.Array | None = None
    ) -> tuple[jax.Array, Kept]:
        x = jnp.concatenate([x, *further], axis=-1)
        guidance = None if uncond is None else Guidance(scale, rescale)
        if cache is None or deep is None:
            step = None if control is None else control._replace(scale=control_scale)
            return family.predict(networks, x, t, conditioning, guidance, step), None
        return family.predict_reusing(networks, x, t, conditioning, guidance, Reuse(cache.branch, cache.full[k], deep))

    def record(k: jax.Array, x: jax.Array, log: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (rows, num_finite), done = log, k + 1

        def traced() -> jax.Array:
            new: jax.Array = jax.lax.dynamic_update_index_in_dim(rows, digest(x), done // TRACE_ROWS, axis=1)
            return new

        recorded: jax.Array = jax.lax.cond((done == 1) | (done % TRACE_ROWS == 0), traced, lambda: rows)
        return recorded, jnp.where(is_finite(x), num_finite, jnp.minimum(num_finite, k))

    log = jnp.zeros((b, 1 + MAX_ROWS // TRACE_ROWS, 2), jnp.uint32), jnp.full(b, MAX_ROWS, jnp.int32)
    state, (rows, num_finite) = run_steps(
        predict, state, table, start, stop,
        noise=lambda k: image_keys.step_noise(keys, k, (c, h, w)),
        record=record, log=log, after=None if picture is None or further else _put_back(picture, keys),
    )  # fmt: skip
    return state, Trace(drawn, rows, digest(state.x), num_finite)


def _put_back(picture: Picture, keys: image_keys.Keys) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """k, x -> x whose part that is not masked is the picture's, with the image's initial noise at the level after k."""
    _, h, w, c = picture.latents.shape
    noise = image_keys.initial_latents(keys, (c, h, w))

    def put_back(k: jax.Array, x: jax.Array) -> jax.Array:
        level = jax.lax.dynamic_index_in_dim(picture.levels, k, axis=1, keepdims=False)[:, :, None, None, None]
        return jnp.where(picture.masked, x, level[:, 0] * picture.latents + level[:, 1] * noise)

    return put_back


def traced_rows(total: int) -> Iterator[int]:
    """After which rows the latents of a table of `total` rows are traced: 1, 5, 10, ..., total."""
    yield from (row for row in (1, *range(TRACE_ROWS, total, TRACE_ROWS)) if row < total)
    yield total


def decode(family: Family, networks: Networks, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Latents (b,h,w,c) float32 -> pixels (b,H,W,3) uint8, and whether they were finite before the rounding (b,).

    Activations have 64 times the area, so images are decoded one by one, except very small ones.
    """

    def some(latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        images = family.decode(networks, latents)
        return jnp.round(jnp.clip(images / 2 + 0.5, 0.0, 1.0) * 255).astype(jnp.uint8), is_finite(images)

    b, h, w, _ = latents.shape
    at_once = next(n for n in range(b, 0, -1) if b % n == 0 and (n == 1 or n * h * w <= DECODED_AT_ONCE))
    made: tuple[jax.Array, jax.Array] = jax.lax.map(some, latents.reshape(b // at_once, at_once, *latents.shape[1:]))
    pixels, finite = made
    return pixels.reshape(b, *pixels.shape[2:]), finite.reshape(b)


def is_finite(x: jax.Array) -> jax.Array:
    """Floats (b,...) -> bool (b,): whether an image has neither NaN nor infinity."""
    return jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1)


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
