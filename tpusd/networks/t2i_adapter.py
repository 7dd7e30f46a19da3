"""T2IAdapter: a small network that reads a picture, and nothing else (Mou et al. 2023).

Its feature maps are added inside a UNet's first half. They are the same at every step. Scales are not done here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Unpack

import jax
import jax.numpy as jnp
from annotated_types import Interval
from flax import nnx
from jax.typing import DTypeLike

from tpusd.networks.config import Number, NumberPerLevel, read_config
from tpusd.networks.layers import LayerArgs, conv1x1, conv3x3

FULL, FULL_XL, LIGHT = "full_adapter", "full_adapter_xl", "light_adapter"
GRAY = (19595, 38470, 7471)  # of red, green and blue, in 1 / 65536: ITU-R 601-2 as Pillow rounds it


@dataclasses.dataclass(frozen=True, kw_only=True)
class T2IAdapterConfig:
    """Fields of a T2I-Adapter's config.json; defaults are diffusers'. channels: of the feature maps, by level."""

    in_channels: Number = 3  # 1: it reads the picture in gray
    channels: NumberPerLevel = (320, 640, 1280, 1280)
    num_res_blocks: Annotated[int, Interval(ge=1, le=32)] = 2
    downscale_factor: Annotated[int, Interval(ge=1, le=64)] = 8
    adapter_type: Literal["full_adapter", "full_adapter_xl", "light_adapter"] = "full_adapter"

    def __post_init__(self) -> None:
        if self.in_channels not in (1, 3):
            raise ValueError(f"in_channels={self.in_channels}: must be 1 or 3")
        if self.adapter_type == FULL_XL and len(set(self.channels[2:])) > 1:
            raise ValueError(f"channels={self.channels}: {FULL_XL} has equal ones from the third on")
        if self.adapter_type == LIGHT and any(width < 4 for width in self.channels):
            raise ValueError(f"channels={self.channels}: {LIGHT} has a quarter of them inside; must be at least 4")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "T2IAdapterConfig":
        """Reads a T2I-Adapter's config.json. Raises UserError for a field that is not implemented."""
        class_name = values.get("_class_name", "T2IAdapter")
        if class_name not in ("T2IAdapter", cls.__name__):
            raise ValueError(f"_class_name={class_name!r}: is not a T2IAdapter")
        return read_config(cls, values, only={}, harmless=frozenset(), name="config.json")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each feature map."""
        return (*self.channels, self.channels[-1]) if self.adapter_type == LIGHT else self.channels

    @property
    def halved(self) -> tuple[bool, ...]:
        """Whether height and width are halved before each feature map."""
        places = range(len(self.widths))
        return tuple(place == 2 if self.adapter_type == FULL_XL else place > 0 for place in places)

    @property
    def downscales(self) -> tuple[int, ...]:
        """Pixels of the picture along one side for each position of each feature map."""
        halvings = [sum(self.halved[: place + 1]) for place in range(len(self.widths))]
        return tuple(int(self.downscale_factor * 2**n) for n in halvings)

    @property
    def num_blocks(self) -> int:
        """Its resnets have half the parameters of a UNet's."""
        return len(self.widths) * self.num_res_blocks // 2


class AdapterResnetBlock(nnx.Module):
    """Convolution, ReLU, convolution; adds the input. (b,h,w,c) -> (b,h,w,c)."""

    def __init__(self, channels: int, *, light: bool, **kw: Unpack[LayerArgs]) -> None:
        self.block1 = conv3x3(channels, channels, **kw)
        self.block2 = conv3x3(channels, channels, **kw) if light else conv1x1(channels, channels, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.block2(nnx.relu(self.block1(x)))


class AdapterBlock(nnx.Module):
    """Halves height and width if `halved`, then resnets. (b,h,w,in) -> (b,h,w,out).

    A light one has a quarter of the channels inside.
    """

    def __init__(
        self, before: int, after: int, num_resnets: int, *, halved: bool, light: bool, **kw: Unpack[LayerArgs]
    ) -> None:
        inside = after // 4 if light else after
        self.halved = halved
        self.in_conv = conv1x1(before, inside, **kw) if light or before != after else None
        self.resnets = nnx.List([AdapterResnetBlock(inside, light=light, **kw) for _ in range(num_resnets)])
        self.out_conv = conv1x1(inside, after, **kw) if light else None

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.halved:
            x = mean_of_pairs(x)
        if self.in_conv is not None:
            x = self.in_conv(x)
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.out_conv is None else self.out_conv(x)


class _Body(nnx.Module):
    """The published names begin with `adapter.`."""

    def __init__(self, config: T2IAdapterConfig, **kw: Unpack[LayerArgs]) -> None:
        light, first = config.adapter_type == LIGHT, config.in_channels * config.downscale_factor**2
        self.conv_in = None if light else conv3x3(first, config.channels[0], **kw)
        inputs = (first if light else config.channels[0], *config.widths[:-1])
        self.body = nnx.List(
            [
                AdapterBlock(before, after, config.num_res_blocks, halved=halved, light=light, **kw)
                for before, after, halved in zip(inputs, config.widths, config.halved, strict=True)
            ]
        )


class T2IAdapter(nnx.Module):
    """A picture -> feature maps, one for each level of a UNet's first half, and for SDXL one for its mid block."""

    def __init__(
        self,
        config: T2IAdapterConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.dtype = config, dtype
        self.adapter = _Body(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def embed(self, picture: jax.Array) -> tuple[jax.Array, ...]:
        """The picture (b,H,W,3) in 0..1 as feature maps (b,h,w,c). H and W are multiples of downscale_factor."""
        if self.config.in_channels == 1:
            picture = gray(picture)
        x = space_to_depth(picture, self.config.downscale_factor).astype(self.dtype)
        if self.adapter.conv_in is not None:
            x = self.adapter.conv_in(x)
        features = []
        for block in self.adapter.body:
            x = block(x)
            features.append(x)
        return tuple(features)


def gray(picture: jax.Array) -> jax.Array:
    """(b,h,w,3) in 0..1, multiples of 1/255 -> (b,h,w,1), the values that Pillow gives in its mode L."""
    numbers = jnp.round(picture * 255).astype(jnp.int32)
    total = (numbers * jnp.array(GRAY)).sum(axis=-1)
    return (((total + 0x8000) >> 16).astype(jnp.float32) / 255)[..., None]


def space_to_depth(x: jax.Array, factor: int) -> jax.Array:
    """(b,H,W,c) -> (b,H/factor,W/factor,c*factor*factor), in the order of PyTorch's PixelUnshuffle."""
    b, height, width, c = x.shape
    parts = x.reshape(b, height // factor, factor, width // factor, factor, c).transpose(0, 1, 3, 5, 2, 4)
    return parts.reshape(b, height // factor, width // factor, c * factor * factor)


def mean_of_pairs(x: jax.Array) -> jax.Array:
    """Means of 2x2 positions; of an odd size, those at the end are means of fewer. (b,h,w,c) -> (b,h/2,w/2,c)."""
    _, h, w, _ = x.shape
    wide = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    b, height, width, c = wide.shape
    sums = wide.reshape(b, height // 2, 2, width // 2, 2, c).sum(axis=(2, 4))
    rows, columns = (jnp.minimum(2, n - 2 * jnp.arange((n + 1) // 2)) for n in (h, w))
    return (sums / (rows[:, None] * columns)[..., None]).astype(x.dtype)
