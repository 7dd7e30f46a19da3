"""CLIP's vision transformer (Radford et al. 2021, section 2.4; Dosovitskiy et al. 2021), with its projection.

The input is pixels that are preprocessed already; this module knows no pictures.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Unpack

import jax
import jax.numpy as jnp
from annotated_types import Interval
from flax import nnx
from jax.typing import DTypeLike

from tpusd.networks.clip_encoder import CLIPEncoder, check_encoder
from tpusd.networks.config import TRANSFORMERS_FIELDS, Number, Real, read_config
from tpusd.networks.layers import LayerArgs, OwnParam, layer_norm

MAX_PATCHES = 1 << 14  # of a picture; the largest published tower has 576


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig:
    """Fields of CLIPVisionConfig that shape the network; defaults are transformers'."""

    hidden_size: Number = 768
    intermediate_size: Number = 3072
    projection_dim: Number = 512
    num_hidden_layers: Annotated[int, Interval(ge=1, le=256)] = 12
    num_attention_heads: Number = 12
    image_size: Number = 224
    patch_size: Number = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Real = 1e-5

    def __post_init__(self) -> None:
        check_encoder(self)
        if not 0 < self.num_patches <= MAX_PATCHES:
            raise ValueError(
                f"image_size={self.image_size} and {self.patch_size=} give {self.num_patches} patches; must be 1 to "
                f"{MAX_PATCHES}"
            )

    @property
    def num_patches(self) -> int:
        """Patches of a picture. What remains at its right and lower edge is not seen."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_blocks(self) -> int:
        """Transformer layers."""
        return self.num_hidden_layers

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, name: str = "config.json") -> "CLIPVisionConfig":
        """Reads the fields of a vision tower. Raises UserError for a field that is not implemented.

        values: any JSON values. name: of the file, with which an error begins.
        """
        only = {"num_channels": (3,)}
        sizes = frozenset({"image_size", "patch_size"})
        return read_config(cls, values, only=only, harmless=TRANSFORMERS_FIELDS, name=name, uniform=sizes)


class CLIPVisionEmbeddings(nnx.Module):
    """The class token and the patches, with their positions. (b,H,W,3) -> (b,1+patches,c)."""

    def __init__(self, config: CLIPVisionConfig, **kw: Unpack[LayerArgs]) -> None:
        c, patch = config.hidden_size, (config.patch_size, config.patch_size)
        self.dtype = kw["dtype"]
        self.class_embedding = OwnParam(jnp.zeros((c,), kw["param_dtype"]))
        self.patch_embedding = nnx.Conv(3, c, patch, strides=patch, padding="VALID", use_bias=False, **kw)
        self.position_embedding = nnx.Embed(1 + config.num_patches, c, **kw)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        patches: jax.Array = self.patch_embedding(pixels)
        b, h, w, c = patches.shape
        first = jnp.broadcast_to(self.class_embedding[...].astype(self.dtype), (b, 1, c))
        tokens = jnp.concatenate([first, patches.reshape(b, h * w, c)], axis=1)
        placed: jax.Array = tokens + self.position_embedding(jnp.arange(1 + h * w))
        return placed


class CLIPVisionTransformer(nnx.Module):
    """Embeddings, encoder, and the normed state of the class token. (b,H,W,3) -> (b,c)."""

    def __init__(self, config: CLIPVisionConfig, **kw: Unpack[LayerArgs]) -> None:
        self.embeddings = CLIPVisionEmbeddings(config, **kw)
        self.pre_layrnorm = layer_norm(config.hidden_size, config.layer_norm_eps, **kw)  # so it is in all files
        self.encoder = CLIPEncoder(config, causal=False, **kw)
        self.post_layernorm = layer_norm(config.hidden_size, config.layer_norm_eps, **kw)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        *_, last = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        state: jax.Array = self.post_layernorm(last[:, 0])
        return state


class CLIPVisionModel(nnx.Module):
    """Pictures -> embeddings in the space that CLIP's texts share."""

    def __init__(
        self,
        config: CLIPVisionConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        kw = LayerArgs(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.vision_model = CLIPVisionTransformer(config, **kw)
        self.visual_projection = nnx.Linear(config.hidden_size, config.projection_dim, use_bias=False, **kw)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """pixels: (b,H,W,3), preprocessed, H and W the config's image_size. Returns (b,p)."""
        return self.visual_projection(self.vision_model(pixels))
