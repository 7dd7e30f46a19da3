"""The network of CompVis' safety checker (2022): CLIP's vision tower, and how near a picture is to given concepts.

It gives cosines. What they mean is decided elsewhere, in the arithmetic of the reference.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from tpusd.networks.clip_vision import CLIPVisionConfig, CLIPVisionModel
from tpusd.networks.layers import OwnParam

NUM_CONCEPTS, NUM_SPECIAL = 17, 3  # in every published checker
SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize


class Nearness(NamedTuple):
    """Cosines, float32: concepts (b,17) and special (b,3)."""

    concepts: jax.Array
    special: jax.Array


class SafetyCheckerModel(CLIPVisionModel):
    """A vision tower with the embeddings of 17 concepts, and of 3 that call for special care.

    The thresholds (`..._weights` in the files) are here to be read; the network does not use them.
    """

    def __init__(
        self,
        config: CLIPVisionConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        shape = (config.projection_dim,)
        self.concept_embeds = OwnParam(jnp.zeros((NUM_CONCEPTS, *shape), param_dtype))
        self.special_care_embeds = OwnParam(jnp.zeros((NUM_SPECIAL, *shape), param_dtype))
        self.concept_embeds_weights = OwnParam(jnp.zeros((NUM_CONCEPTS,), param_dtype))
        self.special_care_embeds_weights = OwnParam(jnp.zeros((NUM_SPECIAL,), param_dtype))

    def nearness(self, pixels: jax.Array) -> Nearness:
        """pixels: (b,H,W,3), preprocessed."""
        return self.compare(self(pixels))

    def compare(self, embeddings: jax.Array) -> Nearness:
        """embeddings: of pictures, (b,p)."""
        ours = normalized(embeddings.astype(jnp.float32))
        return Nearness(
            concepts=ours @ normalized(_wide(self.concept_embeds)).T,
            special=ours @ normalized(_wide(self.special_care_embeds)).T,
        )


def normalized(x: jax.Array) -> jax.Array:
    """(...,p), each of length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), SMALLEST_NORM)


def _wide(parameter: OwnParam) -> jax.Array:
    value: jax.Array = parameter[...].astype(jnp.float32)
    return value
