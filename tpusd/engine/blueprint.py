"""What is compiled for a checkpoint at one precision, size and batch: three functions and their arguments as shapes.

Needs configs alone. Knows nothing of weights, and of devices only that each has a share of the batch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tpusd.checkpoints.architecture import Architecture
from tpusd.config.schema import PartPrecision, PrecisionConfig
from tpusd.engine import programs
from tpusd.engine.compiler_options import CPU_OPTIONS, HOIST, KEEP_ROWS, SHORT_STEP, vector_memory
from tpusd.networks.target import V6E
from tpusd.samplers.loop import LoopState
from tpusd.samplers.table import COLUMNS, MAX_ROWS


@dataclass(frozen=True, kw_only=True)
class Source:
    """A program to compile: `function(*shared, *split)`, as one device sees its arguments.

    shared: trees of jax.ShapeDtypeStruct that are the same on every device; split: those of which each device has its
    share. donate: positions among `split` whose buffers the results may take over. options: platform ("cpu", "gpu",
    "tpu") -> what its compiler is told; kind of device, such as V6E -> what it is told besides.
    """

    function: Callable
    shared: Sequence[Any]
    split: Sequence[Any]
    donate: Sequence[int] = ()
    options: Mapping[str, Mapping[str, int | float | str]] = field(default_factory=dict)


class _Network:
    """A network and its parameters apart. These are a tuple: a call would go through an nnx.State in Python."""

    def __init__(self, model: nnx.Module):
        self._graph, state = nnx.split(model)
        self._structure = jax.tree.structure(state)
        self.shapes = leaves(state)

    def model(self, weights: tuple[jax.Array, ...]) -> nnx.Module:
        return nnx.merge(self._graph, jax.tree.unflatten(self._structure, weights))


class Blueprint:
    """height, width: pixels, multiples of the checkpoint's factor (8)."""

    def __init__(
        self,
        architecture: Architecture,
        precision: PrecisionConfig,
        *,
        height: int,
        width: int,
        batch_size_per_device: int,
    ):
        self.architecture, self.per_device = architecture, batch_size_per_device
        vae, unet = architecture.vae_config, architecture.unet_config
        latents = (batch_size_per_device, height // vae.downscale, width // vae.downscale, unet.in_channels)
        self.state = jax.eval_shape(LoopState.start, jax.ShapeDtypeStruct(latents, jnp.float32))
        # Original size, crop's top and left, target size: a picture that was neither resized nor cropped.
        self._time_ids = (height, width, 0, 0, height, width) if architecture.kind == "sdxl" else None
        self._models = {
            part: _Network(architecture.abstract(part, dtype=jnp.dtype(p.dtype), param_dtype=jnp.dtype(p.param_dtype)))
            for part, p in part_precisions(architecture, precision).items()
        }
        self._vae_dtype = jnp.dtype(precision.vae.dtype)

    def weights(self, part: str) -> tuple[jax.ShapeDtypeStruct, ...]:
        """A network's parameters as shapes, in the order of `leaves`."""
        return self._models[part].shapes

    def encode(self) -> Source:
        """(weights of the encoders), token ids and which were given -> Conditioning, digest."""
        encoders = [self._models[part] for part in self.architecture.encoder_parts]

        def encode(weights, ids, given):
            models = [encoder.model(leaves) for encoder, leaves in zip(encoders, weights, strict=True)]
            return programs.encode(models, ids, given)

        shapes = tuple(encoder.shapes for encoder in encoders)
        return Source(function=encode, shared=[shapes], split=self._text_shapes())

    def denoise(self, *, guided: bool) -> Source:
        """(weights, start, stop), state, conditioning, guidance, tables and keys -> LoopState, Trace."""
        unet = self._models["unet"]
        b, time_ids = self.per_device, self._time_ids

        def denoise(weights, *arguments):
            return programs.denoise(unet.model(weights), *arguments, time_ids=time_ids)

        cond = self._conditioning
        per_image = jax.ShapeDtypeStruct((b,), jnp.float32)
        split = (
            self.state,
            cond,
            cond if guided else None,
            programs.Guidance(per_image, per_image),
            jax.ShapeDtypeStruct((b, MAX_ROWS, COLUMNS), jnp.float32),
            per_image,
            jax.ShapeDtypeStruct((b, 2), jnp.uint32),
        )
        bound = jax.ShapeDtypeStruct((), jnp.int32)
        _, h, w, _ = self.state.x.shape
        positions = b * (1 + guided) * h * w
        short = positions <= SHORT_STEP
        return Source(
            function=denoise,
            shared=(unet.shapes, bound, bound),
            split=split,
            donate=(0,),
            options={
                "cpu": CPU_OPTIONS,
                "tpu": KEEP_ROWS | HOIST | (vector_memory(8) if short else {}),
                V6E: vector_memory(12 if short else 16 if positions <= 2 * SHORT_STEP else 24),
            },
        )

    def decode(self) -> Source:
        """(weights), latents -> pixels uint8."""
        vae = self._models["vae"]
        config, dtype = self.architecture.vae_config, self._vae_dtype

        def decode(weights, latents):
            return programs.decode(
                vae.model(weights),
                latents,
                scaling_factor=config.scaling_factor,
                shift_factor=config.shift_factor or 0.0,
                dtype=dtype,
            )

        _, h, w, _ = self.state.x.shape
        short = h * w <= SHORT_STEP // 4  # decoding goes image by image
        options = {"cpu": CPU_OPTIONS, "tpu": vector_memory(4) if short else {}, V6E: vector_memory(8 if short else 16)}
        return Source(function=decode, shared=[vae.shapes], split=[self.state.x], options=options)

    def _text_shapes(self) -> tuple[Any, ...]:
        b = self.per_device
        lengths = [config.max_position_embeddings for config in self.architecture.text_encoder_configs]
        ids = tuple(jax.ShapeDtypeStruct((b, length), jnp.int32) for length in lengths)
        return ids, jax.ShapeDtypeStruct((b,), jnp.bool_)

    @functools.cached_property
    def _conditioning(self) -> programs.Conditioning:
        encode = self.encode()
        return jax.eval_shape(encode.function, *encode.shared, *encode.split)[0]


def leaves(state: nnx.State) -> tuple[Any, ...]:
    """A network's parameters as the programs take them."""
    return tuple(jax.tree.leaves(state))


def part_precisions(architecture: Architecture, precision: PrecisionConfig) -> dict[str, PartPrecision]:
    """Part -> its precision; SDXL's two text encoders share one."""
    return {part: getattr(precision, part.removesuffix("_2")) for part in architecture.parts}
