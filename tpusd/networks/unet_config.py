"""The config of UNet2DConditionModel: which blocks it has, of how many resnets and transformer layers.

Distilled models leave blocks out: BK-SDM and tiny-sd the mid block, SSD-1B and Segmind-Vega single transformer layers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from annotated_types import Interval, Len, MultipleOf

from tpusd.networks.config import (
    EMA_FIELDS,
    MAX_BLOCKS,
    MAX_LEVELS,
    HeightAndWidth,
    NamePerLevel,
    Number,
    NumberPerLevel,
    Real,
    read_config,
)

DOWN_BLOCKS = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}  # name -> has attention
UP_BLOCKS = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
MID_BLOCKS = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)  # the second has one resnet and no attention

T = TypeVar("T")
NumberOfResnets = Annotated[int, Interval(ge=1, le=32)]
NumberOfLayers = Annotated[int, Interval(ge=0, le=128)]
# One number for a level, or a list with one for each of its resnets.
LayersOfLevel = NumberOfLayers | Annotated[tuple[NumberOfLayers, ...], Len(1, 33)]
LayersPerLevel = Annotated[tuple[LayersOfLevel, ...], Len(1, MAX_LEVELS)]

# diffusers writes these fields into config.json. Only these values of them are implemented.
ONLY = {
    "act_fn": ("silu", "swish"),  # two names of one function
    "center_input_sample": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1, 1.0),
    "only_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "resnet_out_scale_factor": (1.0, 1),
    "resnet_skip_time_act": (False,),
    "time_embedding_type": ("positional",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
}
# dropout is of training; addition_embed_type_num_heads is of addition embeddings other than text_time.
HARMLESS = EMA_FIELDS | {"addition_embed_type_num_heads", "dropout"}
# A list with an entry for each level may say these numbers, where all entries are equal.
UNIFORM = frozenset({"cross_attention_dim", "layers_per_block"})


def _each(value: T | tuple[T, ...], number: int) -> tuple[T, ...]:
    """One value for each level or layer. A published field has one value for all, or a list with one for each."""
    return tuple(value) if isinstance(value, tuple) else (value,) * number


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Fields of unet/config.json that shape the network; defaults are diffusers'."""

    sample_size: Number | HeightAndWidth | None = None  # of the latents; a list is height and width
    in_channels: Number = 4
    out_channels: Number = 4
    block_out_channels: NumberPerLevel = (320, 640, 1280, 1280)
    down_block_types: NamePerLevel = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: NamePerLevel = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    layers_per_block: NumberOfResnets | Annotated[tuple[NumberOfResnets, ...], Len(1, MAX_LEVELS)] = 2
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    attention_head_dim: Number | NumberPerLevel = 8  # a head COUNT if num_attention_heads is None: use `num_heads`
    num_attention_heads: Number | NumberPerLevel | None = None
    cross_attention_dim: Number = 1280
    transformer_layers_per_block: NumberOfLayers | LayersPerLevel = 1
    reverse_transformer_layers_per_block: LayersPerLevel | None = None  # of the up blocks; None: as the down blocks
    use_linear_projection: bool = False
    upcast_attention: bool | None = False  # scores are float32 here in any case
    norm_num_groups: Number = 32
    norm_eps: Real = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[int, Interval(ge=0, le=65536)] = 0
    time_cond_proj_dim: Annotated[int, Interval(ge=4, le=65536), MultipleOf(2)] | None = None  # guidance as an input
    addition_embed_type: str | None = None
    addition_time_embed_dim: Number | None = None
    projection_class_embeddings_input_dim: Number | None = None

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            types = getattr(self, name)
            if len(types) != levels:
                raise ValueError(f"{name} has {len(types)} entries, block_out_channels {levels}: they must be equal")
            if unknown := sorted(set(types) - set(known)):
                raise ValueError(f"{name}: {unknown[0]!r} is not implemented (implemented: {', '.join(known)})")
        if self.addition_embed_type not in (None, "text_time"):
            raise ValueError(
                f"addition_embed_type={self.addition_embed_type!r} is not implemented (implemented: text_time)"
            )
        if self.addition_embed_type and not (
            self.addition_time_embed_dim and self.projection_class_embeddings_input_dim
        ):
            raise ValueError(
                "addition_embed_type=text_time needs addition_time_embed_dim and projection_class_embeddings_input_dim"
            )
        if self.mid_block_type not in MID_BLOCKS:
            raise ValueError(
                f"mid_block_type={self.mid_block_type!r} is not implemented (implemented: "
                f"{', '.join(map(str, MID_BLOCKS))})"
            )
        for field in ("num_heads", "resnets", "transformer_layers", "up_transformer_layers"):
            if len(getattr(self, field)) != levels:
                raise ValueError(f"{field}: {len(getattr(self, field))} values for {levels} levels")
        self._check_layers()
        if self.num_blocks > MAX_BLOCKS:
            raise ValueError(
                f"describes {self.num_blocks} resnets and transformer layers, over {MAX_BLOCKS}: not a model of "
                "Stable Diffusion"
            )
        if bad := [c for c, n in zip(self.block_out_channels, self.num_heads, strict=True) if c % n]:
            raise ValueError(f"block_out_channels={bad[0]} is not a multiple of its number of attention heads")
        if bad := [c for c in self.block_out_channels if c % self.norm_num_groups]:
            raise ValueError(f"block_out_channels={bad[0]} is not a multiple of norm_num_groups={self.norm_num_groups}")

    def _check_layers(self) -> None:
        """Where a level has a list of transformer layers, it has one for each of its resnets."""
        down, up = self.transformer_layers, self.up_transformer_layers
        if self.reverse_transformer_layers_per_block is None and any(isinstance(n, tuple) for n in down):
            raise ValueError("transformer_layers_per_block has lists: reverse_transformer_layers_per_block is needed")
        for name, layers, resnets in (
            ("transformer_layers_per_block", down, self.resnets),
            ("reverse_transformer_layers_per_block", up, tuple(n + 1 for n in reversed(self.resnets))),
        ):
            for of_level, number in zip(layers, resnets, strict=True):
                if isinstance(of_level, tuple) and len(of_level) != number:
                    raise ValueError(f"{name}: a list of {len(of_level)} for {number} resnets of a block")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "UNetConfig":
        """Reads unet/config.json. Raises UserError for a field that is not implemented."""
        channels = values.get("block_out_channels", (320,))
        first = channels[0] if isinstance(channels, list | tuple) and channels else None
        usual = 4 * first if isinstance(first, int) else None  # of the timestep's embedding, where the file says None
        only = {**ONLY, "time_embedding_dim": (None, usual)}
        return read_config(cls, values, only=only, harmless=HARMLESS, name="unet/config.json", uniform=UNIFORM)

    @property
    def num_blocks(self) -> int:
        """Resnets and transformer layers."""
        levels = range(len(self.block_out_channels))
        in_down = sum(self.resnets) + sum(sum(self.down_attentions(level)) for level in levels)
        in_up = sum(self.up_resnets(i) + sum(self.up_attentions(i)) for i in levels)
        in_mid = {None: 0, "UNetMidBlock2D": 1}.get(self.mid_block_type, 2 + self.mid_layers)
        return in_down + in_mid + in_up

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Attention heads per level. `attention_head_dim: 8` in SD 1.x means eight heads of size c/8."""
        value = self.attention_head_dim if self.num_attention_heads is None else self.num_attention_heads
        return _each(value, len(self.block_out_channels))

    @property
    def resnets(self) -> tuple[int, ...]:
        """Resnets of a down block, per level; an up block has one more."""
        return _each(self.layers_per_block, len(self.block_out_channels))

    def up_resnets(self, index: int) -> int:
        """Resnets of an up block; these count from the lowest resolution."""
        return self.resnets[len(self.block_out_channels) - 1 - index] + 1

    @property
    def num_skips(self) -> int:
        """Skip connections, from the input of the first level to the last resnet on the way down."""
        return sum(n + 1 for n in self.resnets)

    def deep_shape(self, branch: int, height: int, width: int) -> tuple[int, int, int]:
        """(h,w,c) of what enters the layer on the way up that takes the skip connection `branch`.

        branch: from 0, the shallowest. height, width: of the latents.
        """
        channels, level, place = self.block_out_channels, 0, branch
        while place > self.resnets[level]:  # a level has the skips of its resnets, behind the one of its input
            place -= self.resnets[level] + 1
            level += 1
            height, width = -(-height // 2), -(-width // 2)
        from_below = place == self.resnets[level]  # the first layer of the level's up block
        return height, width, channels[min(level + from_below, len(channels) - 1)]

    @property
    def transformer_layers(self) -> tuple[int | tuple[int, ...], ...]:
        """Transformer layers of the attentions of the down blocks, per level."""
        return _each(self.transformer_layers_per_block, len(self.block_out_channels))

    @property
    def up_transformer_layers(self) -> tuple[int | tuple[int, ...], ...]:
        """Transformer layers of the attentions of the up blocks, from the lowest resolution."""
        reverse = self.reverse_transformer_layers_per_block
        return self.transformer_layers[::-1] if reverse is None else reverse

    @property
    def mid_layers(self) -> int:
        """Transformer layers of the mid block's attention."""
        return _each(self.transformer_layers[-1], 1)[0]

    def down_attentions(self, level: int) -> tuple[int, ...]:
        """Transformer layers of each attention of a down block; empty if it has no attention."""
        attends = DOWN_BLOCKS[self.down_block_types[level]]
        return _each(self.transformer_layers[level], self.resnets[level]) if attends else ()

    def up_attentions(self, index: int) -> tuple[int, ...]:
        """Transformer layers of each attention of an up block; empty if it has no attention."""
        attends = UP_BLOCKS[self.up_block_types[index]]
        return _each(self.up_transformer_layers[index], self.up_resnets(index)) if attends else ()
