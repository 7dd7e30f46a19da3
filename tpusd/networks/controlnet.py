"""ControlNetModel: a copy of a UNet's first half that also reads a picture (Zhang et al. 2023).

Its results are added to the UNet's skip connections and to its mid block. Scales and guidance are not done here.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Unpack

import jax
import jax.numpy as jnp
from annotated_types import Interval, Len
from flax import nnx
from jax.typing import DTypeLike

from tpusd.networks.config import MAX_LEVELS, NamePerLevel, Number, NumberPerLevel, Real, read_config
from tpusd.networks.layers import LayerArgs, conv1x1, conv3x3
from tpusd.networks.unet import DownBlock2D, MidBlock2D, Residuals, TimeEmbedded
from tpusd.networks.unet_config import (
    HARMLESS,
    ONLY,
    UNIFORM,
    LayersPerLevel,
    NumberOfLayers,
    NumberOfResnets,
    UNetConfig,
)

_OF_PARENT = {"CrossAttnDownBlock2D": "CrossAttnUpBlock2D"}  # a down block -> the up block that UNetConfig asks for
# Of UNetConfig, fields of its second half, and those that a ControlNet does not have.
_NOT_HERE = ("sample_size", "out_channels", "up_block_types", "reverse_transformer_layers_per_block",
             "time_cond_proj_dim")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlNetConfig:
    """Fields of a ControlNet's config.json that shape the network; defaults are diffusers'."""

    in_channels: Number = 4
    block_out_channels: NumberPerLevel = (320, 640, 1280, 1280)
    down_block_types: NamePerLevel = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    layers_per_block: NumberOfResnets = 2
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    attention_head_dim: Number | NumberPerLevel = 8  # a head count, as in UNetConfig
    num_attention_heads: Number | NumberPerLevel | None = None
    cross_attention_dim: Number = 1280
    transformer_layers_per_block: NumberOfLayers | LayersPerLevel = 1
    use_linear_projection: bool = False
    upcast_attention: bool | None = False  # scores are float32 here in any case
    norm_num_groups: Number = 32
    norm_eps: Real = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[int, Interval(ge=0, le=65536)] = 0
    addition_embed_type: str | None = None
    addition_time_embed_dim: Number | None = None
    projection_class_embeddings_input_dim: Number | None = None
    conditioning_embedding_out_channels: Annotated[tuple[Number, ...], Len(1, MAX_LEVELS)] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: Literal["rgb", "bgr"] = "rgb"
    global_pool_conditions: bool = False  # the results are means over the picture, as of the `shuffle` model

    def __post_init__(self) -> None:
        assert self.half.num_blocks > 0  # a UNet of these fields is checked where it is made

    @functools.cached_property
    def half(self) -> UNetConfig:
        """The UNet whose first half the network has. Raises ValueError for fields that do not fit each other."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(UNetConfig)
               if field.name not in _NOT_HERE}  # fmt: skip
        up = tuple(_OF_PARENT.get(name, "UpBlock2D") for name in reversed(self.down_block_types))
        return UNetConfig(**own, out_channels=self.in_channels, up_block_types=up)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ControlNetConfig":
        """Reads a ControlNet's config.json. Raises UserError for a field that is not implemented."""
        class_name = values.get("_class_name", cls.__name__)
        if class_name not in ("ControlNetModel", cls.__name__):
            raise ValueError(f"_class_name={class_name!r}: is not a ControlNetModel")
        only = {**ONLY, "conditioning_channels": (3,)}
        return read_config(cls, values, only=only, harmless=HARMLESS, name="config.json", uniform=UNIFORM)

    @classmethod
    def of_unet(cls, unet: UNetConfig) -> "ControlNetConfig":
        """The ControlNet that was made as a copy of this UNet's first half, as the published ones were."""
        fields = {field.name for field in dataclasses.fields(cls)}
        own = {f.name: getattr(unet, f.name) for f in dataclasses.fields(unet) if f.name in fields}
        return cls(**own | {"in_channels": unet.out_channels, "layers_per_block": unet.resnets[0]})

    @property
    def downscale(self) -> int:
        """Pixels of the picture along one side for each of the latents."""
        return int(2 ** (len(self.conditioning_embedding_out_channels) - 1))

    @property
    def num_blocks(self) -> int:
        """Resnets and transformer layers."""
        half = self.half
        in_down = sum(half.resnets) + sum(sum(half.down_attentions(i)) for i in range(len(self.block_out_channels)))
        return in_down + {None: 0, "UNetMidBlock2D": 1}.get(self.mid_block_type, 2 + half.mid_layers)


class ControlNetConditioningEmbedding(nnx.Module):
    """Convolutions from pixels to the first feature map. (b,H,W,3) -> (b,h,w,channels)."""

    def __init__(self, channels: int, widths: tuple[int, ...], **kw: Unpack[LayerArgs]) -> None:
        self.conv_in = conv3x3(3, widths[0], **kw)
        blocks = []
        for before, after in zip(widths, widths[1:], strict=False):
            blocks += [conv3x3(before, before, **kw), conv3x3(before, after, stride=2, **kw)]
        self.blocks = nnx.List(blocks)
        self.conv_out = conv3x3(widths[-1], channels, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.silu(self.conv_in(x))
        for block in self.blocks:
            x = nnx.silu(block(x))
        return self.conv_out(x)


class ControlNetModel(TimeEmbedded):
    """Noisy latents, timesteps, text embeddings and an embedded picture -> what is added to a UNet's feature maps."""

    def __init__(
        self,
        config: ControlNetConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        kw = LayerArgs(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        half = config.half
        super().__init__(half, **kw)
        self.config = config
        channels = half.block_out_channels
        self.conv_in = conv3x3(half.in_channels, channels[0], **kw)
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            channels[0], config.conditioning_embedding_out_channels, **kw
        )
        self.down_blocks = nnx.List([DownBlock2D(half, level, **kw) for level in range(len(channels))])
        widths = [channels[0]]
        for level, width in enumerate(channels):
            widths += [width] * (half.resnets[level] + (level < len(channels) - 1))
        self.controlnet_down_blocks = nnx.List([conv1x1(width, width, **kw) for width in widths])
        self.mid_block = MidBlock2D(half, **kw) if half.mid_block_type is not None else None
        self.controlnet_mid_block = conv1x1(channels[-1], channels[-1], **kw)

    def embed(self, picture: jax.Array) -> jax.Array:
        """The picture (b,H,W,3) in 0..1 as a feature map (b,h,w,c), which is the same at every step."""
        if self.config.controlnet_conditioning_channel_order == "bgr":
            picture = picture[..., ::-1]
        return self.controlnet_cond_embedding(picture.astype(self.dtype))

    def __call__(
        self,
        sample: jax.Array,
        timesteps: jax.Array,
        encoder_hidden_states: jax.Array,
        text_embeds: jax.Array | None = None,
        time_ids: jax.Array | None = None,
        *,
        picture: jax.Array,
    ) -> Residuals:
        """What the network adds, before any scale. picture: as `embed` gives it. Others: as of the UNet."""
        context = encoder_hidden_states.astype(self.dtype)
        emb = self.embed_time(timesteps, text_embeds, time_ids)
        x = self.conv_in(sample.astype(self.dtype)) + picture
        skips = [x]
        for block in self.down_blocks:
            for i in range(block.num_layers):
                x = block.layer(i, x, emb, context)
                skips.append(x)
        if self.mid_block is not None:
            x = self.mid_block(x, emb, context)
        down = [conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        made = Residuals(tuple(down), self.controlnet_mid_block(x))
        if not self.config.global_pool_conditions:
            return made
        pooled: Residuals = jax.tree.map(lambda y: y.mean(axis=(1, 2), keepdims=True), made)
        return pooled
