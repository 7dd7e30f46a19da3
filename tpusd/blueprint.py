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

from tpusd import programs
from tpusd.checkpoints.architecture import Architecture
from tpusd.config import PartPrecision, PrecisionConfig
from tpusd.samplers.loop import LoopState
from tpusd.samplers.table import COLUMNS, MAX_ROWS

# For a batch below eight the TPU compiler folds rows of the image into the batch, and in a UNet then spends more on
# cutting, padding and masking the pieces than its convolutions gain. In the decoder they do gain (docs/log.md).
KEEP_ROWS = {"xla_tpu_run_space_to_batch": False, "xla_tpu_run_space_to_batch_on_new_platforms": False}
# Positions of a whole batch, guided or not, up to which a step is so short that compiling it for long does not pay.
SHORT_STEP = 16384


def vector_memory(mebibytes: int) -> dict[str, int]:
    """What one operation may fill of the vector memory, by default 16 MiB of it. Less makes smaller blocks and so less
    code, which is what compiling takes its time for, and somewhat slower programs (docs/log.md)."""
    return {"xla_tpu_scoped_vmem_limit_kib": mebibytes * 1024}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A program to compile: `function(*shared, *split)`, as one device sees its arguments.

    shared: trees of jax.ShapeDtypeStruct that are the same on every device; split: those of which each device has its
    share. donate: positions among `split` whose buffers the results may take over. tpu_options: for the TPU compiler.
    """

    function: Callable
    shared: Sequence[Any]
    split: Sequence[Any]
    donate: Sequence[int] = ()
    tpu_options: Mapping[str, int] = field(default_factory=dict)


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
            part: nnx.split(architecture.abstract(part, dtype=jnp.dtype(p.dtype), param_dtype=jnp.dtype(p.param_dtype)))
            for part, p in part_precisions(architecture, precision).items()
        }
        self._vae_dtype = jnp.dtype(precision.vae.dtype)

    def weights(self, part: str) -> nnx.State:
        """A network's parameters as shapes."""
        return self._models[part][1]

    def encode(self) -> Source:
        """(weights of the encoders), token ids and which were given -> Conditioning, digest."""
        graphs = self._encoder_graphs

        def encode(weights, ids, given):
            return programs.encode(list(map(nnx.merge, graphs, weights)), ids, given)

        return Source(function=encode, shared=[self._encoder_weights], split=self._text_shapes())

    def denoise(self, *, guided: bool) -> Source:
        """(weights, start, stop), state, conditioning, guidance, tables and keys -> LoopState, Trace."""
        graph, weights = self._models["unet"]
        b, time_ids = self.per_device, self._time_ids

        def denoise(weights, *arguments):
            return programs.denoise(nnx.merge(graph, weights), *arguments, time_ids=time_ids)

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
        short = b * (1 + guided) * h * w <= SHORT_STEP
        return Source(
            function=denoise,
            shared=(weights, bound, bound),
            split=split,
            donate=(0,),
            tpu_options=KEEP_ROWS | (vector_memory(8) if short else {}),
        )

    def decode(self) -> Source:
        """(weights), latents -> pixels uint8."""
        graph, weights = self._models["vae"]
        config, dtype = self.architecture.vae_config, self._vae_dtype

        def decode(weights, latents):
            return programs.decode(
                nnx.merge(graph, weights),
                latents,
                scaling_factor=config.scaling_factor,
                shift_factor=config.shift_factor or 0.0,
                dtype=dtype,
            )

        _, h, w, _ = self.state.x.shape
        options = vector_memory(4) if h * w <= SHORT_STEP // 4 else {}  # decoding goes image by image
        return Source(function=decode, shared=[weights], split=[self.state.x], tpu_options=options)

    @property
    def _encoder_graphs(self) -> tuple[nnx.GraphDef, ...]:
        return tuple(self._models[part][0] for part in self.architecture.encoder_parts)

    @property
    def _encoder_weights(self) -> tuple[nnx.State, ...]:
        return tuple(self._models[part][1] for part in self.architecture.encoder_parts)

    def _text_shapes(self) -> tuple[Any, ...]:
        b = self.per_device
        lengths = [config.max_position_embeddings for config in self.architecture.text_encoder_configs]
        ids = tuple(jax.ShapeDtypeStruct((b, length), jnp.int32) for length in lengths)
        return ids, jax.ShapeDtypeStruct((b,), jnp.bool_)

    @functools.cached_property
    def _conditioning(self) -> programs.Conditioning:
        encode = self.encode()
        return jax.eval_shape(encode.function, *encode.shared, *encode.split)[0]


def part_precisions(architecture: Architecture, precision: PrecisionConfig) -> dict[str, PartPrecision]:
    """Part -> its precision; SDXL's two text encoders share one."""
    return {part: getattr(precision, part.removesuffix("_2")) for part in architecture.parts}
