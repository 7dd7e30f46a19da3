"""What is compiled for a checkpoint at one precision, size and batch: three functions and their arguments as shapes.

Needs configs alone. Knows nothing of weights, and of devices only that each has a share of the batch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from tpusd.checkpoints.architecture import Architecture
from tpusd.config.schema import PrecisionConfig
from tpusd.engine import programs
from tpusd.engine.compiler_options import OptionsByTarget, decode_options, denoise_options
from tpusd.engine.drawn_noise import ROWS_AT_ONCE
from tpusd.engine.noise import GivenNoise
from tpusd.families.base import ChunkTokens, Conditioning, Control, ProgramName, Tokens
from tpusd.networks.unet import Features
from tpusd.samplers.loop import LoopState
from tpusd.samplers.table import COLUMNS, MAX_ROWS
from tpusd.syntax.rules import TextShape

Leaves: TypeAlias = tuple[Any, ...]  # a network's parameters, as arrays or as shapes
Shapes: TypeAlias = object  # a pytree of jax.ShapeDtypeStruct


@dataclass(frozen=True, kw_only=True)
class ProgramSpec:
    """A program to compile: `function(*shared, *split)`, as one device sees its arguments.

    function: traced by JAX.
    shared: arguments that are the same on every device.
    split: arguments of which each device has its share.
    donate: positions among `split` whose buffers the results may take over.
    options: for each compiler.
    """

    function: Callable[..., Any]  # any pytree of arrays
    shared: Sequence[Shapes]
    split: Sequence[Shapes]
    donate: Sequence[int] = ()
    options: OptionsByTarget = field(default_factory=dict)


class _Network:
    """A network and its parameters apart. These are a tuple: a call would go through an nnx.State in Python."""

    def __init__(self, model: nnx.Module):
        self._graph, state = nnx.split(model)
        self._structure = jax.tree.structure(state)
        self.shapes = leaves(state)

    def model(self, weights: Leaves) -> nnx.Module:
        return nnx.merge(self._graph, jax.tree.unflatten(self._structure, weights))


class Blueprint:
    """The programs of one checkpoint.

    architecture: the networks.
    precision: of each of them.
    height, width: pixels, multiples of the family's factor (8).
    batch_size_per_device: images.
    """

    def __init__(
        self,
        architecture: Architecture,
        precision: PrecisionConfig,
        *,
        height: int,
        width: int,
        batch_size_per_device: int,
    ):
        self.per_device = batch_size_per_device
        self._family, self._configs, self._size = architecture.family, architecture.configs, (height, width)
        self._precision, self._controls = precision, architecture.controls
        latents = (batch_size_per_device, *self._family.latent_shape(self._configs, height, width))
        self.state = jax.eval_shape(LoopState.start, jax.ShapeDtypeStruct(latents, jnp.float32))
        self._networks = {
            part: _Network(architecture.abstract(part, dtype=jnp.dtype(p.dtype), param_dtype=jnp.dtype(p.param_dtype)))
            for part, p in self._family.precisions(precision, architecture.parts).items()
        }

    @property
    def inpaints(self) -> bool:
        """Whether the denoiser reads a mask and the rest of the picture."""
        return self._family.inpaints(self._configs)

    def parts(self, program: ProgramName, controls: Sequence[int] = ()) -> tuple[str, ...]:
        """The networks that a program uses. controls: its ControlNets, by their places."""
        return (*self._family.parts(program), *(self._controls[place] for place in controls))

    def weights(self, program: ProgramName, controls: Sequence[int] = ()) -> tuple[Leaves, ...]:
        """The parameters of `parts` as shapes, each in the order of `leaves`."""
        return tuple(self._networks[part].shapes for part in self.parts(program, controls))

    def encode(self) -> ProgramSpec:
        """(weights), tokens -> conditioning, digest (b,2), finite (b,)."""
        family, networks = self._family, self._merge("encode")

        def encode(weights: tuple[Leaves, ...], tokens: Tokens) -> tuple[Conditioning, jax.Array, jax.Array]:
            return programs.encode(family, networks(weights), tokens)

        b = self.per_device
        ids = tuple(jax.ShapeDtypeStruct((b, n), jnp.int32) for n in family.token_lengths(self._configs))
        tokens = Tokens(ids, jax.ShapeDtypeStruct((b,), jnp.bool_))
        return ProgramSpec(function=encode, shared=[self.weights("encode")], split=[tokens])

    def encode_chunks(self, text: TextShape) -> ProgramSpec:
        """(weights), tokens of prompts in chunks -> conditioning, digest (b,2), finite (b,)."""
        family, networks = self._family, self._merge("encode")

        def encode_chunks(
            weights: tuple[Leaves, ...], tokens: ChunkTokens
        ) -> tuple[Conditioning, jax.Array, jax.Array]:
            return programs.encode_chunks(family, networks(weights), tokens, weighting=text.weighting)

        tokens = family.chunk_shapes(self._configs, self.per_device, text)
        return ProgramSpec(function=encode_chunks, shared=[self.weights("encode")], split=[tokens])

    def encode_picture(self) -> ProgramSpec:
        """(weights), pixels (b,H,W,3) uint8, keys, masked -> latents, unmasked ones, digest (b,2), finite (b,).

        masked, and latents without the masked part: only for a denoiser that inpaints.
        """
        family, networks = self._family, self._merge("encode_picture")

        def encode_picture(
            weights: tuple[Leaves, ...], *arguments: Any
        ) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array]:
            return programs.encode_picture(family, networks(weights), *arguments)

        b, (height, width) = self.per_device, self._size
        pixels = jax.ShapeDtypeStruct((b, height, width, 3), jnp.uint8)
        keys = jax.ShapeDtypeStruct((b, 2), jnp.uint32)
        masked = [jax.ShapeDtypeStruct((b, height, width), jnp.bool_)] if self.inpaints else []
        return ProgramSpec(
            function=encode_picture, shared=[self.weights("encode_picture")], split=[pixels, keys, *masked]
        )

    def embed_control(self, place: int) -> ProgramSpec:
        """(weights), pixels (b,H,W,3) uint8 -> what a ControlNet makes of them, digest (b,2), finite (b,)."""
        family, networks = self._family, self._merge("embed_control", [place])

        def embed_control(weights: tuple[Leaves, ...], pixels: jax.Array) -> tuple[Features, jax.Array, jax.Array]:
            (network,) = networks(weights).values()
            return programs.embed_control(family, network, pixels)

        pixels = jax.ShapeDtypeStruct((self.per_device, *self._size, 3), jnp.uint8)
        return ProgramSpec(function=embed_control, shared=[self.weights("embed_control", [place])], split=[pixels])

    def denoise(
        self,
        *,
        guided: bool,
        given_noise: bool = False,
        from_picture: bool = False,
        controls: Sequence[int] = (),
        sized: bool = False,
        text: TextShape | None = None,
        branch: int | None = None,
    ) -> ProgramSpec:
        """(weights, start, stop), state, conditioning, guidance_rescale, tables, keys, picture, control, sizes
        -> LoopState, Trace.

        given_noise: the noise is an argument in the place of the keys.
        controls: the ControlNets that have an effect, by their places.
        sized: whether the size conditioning is an argument.
        text: of prompts in chunks; None: of plain ones.
        branch: of a cache; then the first shared argument says of each row whether it computes all, bool (MAX_ROWS,).
            None: every row does.
        """
        family, networks = self._family, self._merge("denoise", controls)
        height, width = self._size

        def denoise(weights: tuple[Leaves, ...], *arguments: Any) -> tuple[LoopState, programs.Trace]:
            return programs.denoise(family, networks(weights), *arguments, height=height, width=width)

        def denoise_cached(
            full: jax.Array, weights: tuple[Leaves, ...], *arguments: Any
        ) -> tuple[LoopState, programs.Trace]:
            cache = programs.Cache(branch or 0, full)
            return programs.denoise(family, networks(weights), *arguments, height=height, width=width, cache=cache)

        cond = self._conditioning(None if text is None else replace(text, weighting=None, versions=1, embedded=False))
        b, h, w, c = self.state.x.shape
        given = GivenNoise(
            self.state.x,
            jax.ShapeDtypeStruct((b, ROWS_AT_ONCE, h, w, c), jnp.float32),
            jax.ShapeDtypeStruct((b,), jnp.int32),
        )
        per_image = jax.ShapeDtypeStruct((b,), jnp.float32)
        deep = None if branch is None else self.deep_half(branch, guided=guided)
        split = (
            self.state._replace(kept=deep),
            cond,
            cond if guided else None,
            per_image,
            jax.ShapeDtypeStruct((b, MAX_ROWS, COLUMNS + len(controls)), jnp.float32),
            per_image,
            given if given_noise else jax.ShapeDtypeStruct((b, 2), jnp.uint32),
            *further_arguments(
                self._picture if from_picture else None,
                self._control(controls),
                jax.ShapeDtypeStruct((b, 2, 6), jnp.float32) if sized else None,
            ),
        )
        bound = jax.ShapeDtypeStruct((), jnp.int32)
        shared = (self.weights("denoise", controls), bound, bound)
        return ProgramSpec(
            function=denoise if branch is None else denoise_cached,
            shared=shared if branch is None else (jax.ShapeDtypeStruct((MAX_ROWS,), jnp.bool_), *shared),
            split=split,
            donate=(0,),
            options=denoise_options(b * (1 + guided) * h * w),
        )

    def deep_half(self, branch: int, *, guided: bool) -> jax.ShapeDtypeStruct:
        """What a denoiser with a cache keeps from one row to the next."""
        height, width = self._size
        return self._family.deep_half(
            self._configs, self._precision, branch, images=self.per_device, guided=guided, height=height, width=width
        )

    def decode(self) -> ProgramSpec:
        """(weights), latents (b,h,w,c) -> pixels (b,H,W,3) uint8, finite (b,)."""
        family, networks = self._family, self._merge("decode")

        def decode(weights: tuple[Leaves, ...], latents: jax.Array) -> tuple[jax.Array, jax.Array]:
            return programs.decode(family, networks(weights), latents)

        _, h, w, _ = self.state.x.shape
        return ProgramSpec(
            function=decode, shared=[self.weights("decode")], split=[self.state.x], options=decode_options(h * w)
        )

    @property
    def _picture(self) -> programs.Picture:
        b, h, w, _ = self.state.x.shape
        return programs.Picture(
            latents=self.state.x,
            scale=jax.ShapeDtypeStruct((b,), jnp.float32),
            masked=jax.ShapeDtypeStruct((b, h, w, 1), jnp.bool_),
            levels=jax.ShapeDtypeStruct((b, MAX_ROWS, 2), jnp.float32),
            unmasked=self.state.x if self.inpaints else None,
        )

    def _control(self, controls: Sequence[int]) -> Control | None:
        specs = [self.embed_control(place) for place in controls]
        pictures = tuple(jax.eval_shape(spec.function, *spec.shared, *spec.split)[0] for spec in specs)
        return Control(pictures, jax.ShapeDtypeStruct((self.per_device,), jnp.bool_)) if controls else None

    def _merge(
        self, program: ProgramName, controls: Sequence[int] = ()
    ) -> Callable[[tuple[Leaves, ...]], Mapping[str, nnx.Module]]:
        """A function from a program's weights to its networks."""
        networks = {part: self._networks[part] for part in self.parts(program, controls)}

        def merge(weights: tuple[Leaves, ...]) -> Mapping[str, nnx.Module]:
            return {part: net.model(own) for (part, net), own in zip(networks.items(), weights, strict=True)}

        return merge

    @functools.cache  # noqa: B019  (a blueprint lives as long as its programs)
    def _conditioning(self, text: TextShape | None) -> Conditioning:
        encode = self.encode() if text is None else self.encode_chunks(text)
        return jax.eval_shape(encode.function, *encode.shared, *encode.split)[0]


def further_arguments(picture: programs.Picture | None, control: Control | None, sizes: Any) -> tuple[Any, ...]:
    """The last arguments of `denoise`, as arrays or as shapes; without those that no image of a batch has."""
    given = [picture, control, sizes]
    while given and given[-1] is None:
        given.pop()
    return tuple(given)


def leaves(state: nnx.State[Any, Any]) -> Leaves:
    """A network's parameters as the programs take them."""
    return tuple(jax.tree.leaves(state))
