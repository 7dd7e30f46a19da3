"""AutoencoderKL: pixels <-> latents (Rombach et al. 2022, section 3.1).

The scaling factor and the conversion to uint8 are not done here. The order of the layers follows the published state
dicts of CompVis/stable-diffusion and their diffusers configs.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Unpack

import jax
import jax.numpy as jnp
from annotated_types import Interval
from flax import nnx
from jax.typing import DTypeLike

from tpusd.networks.attention.dispatch import dot_product_attention
from tpusd.networks.config import EMA_FIELDS, HeightAndWidth, Number, NumberPerLevel, Real, read_config
from tpusd.networks.layers import LayerArgs, conv1x1, conv3x3, group_norm, upsample_by_transposed_conv, upsample_nearest
from tpusd.networks.target import V5E, V5P, V6E, tpu_kind

NORM_EPS = 1e-6  # of every norm in the VAE; the UNet's resnets have 1e-5
# shift_factor is of Stable Diffusion 3 and Flux; diffusers' pipelines of the models here do not read it.
_HARMLESS = EMA_FIELDS | {"shift_factor"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Fields of vae/config.json that shape the network or scale its latents; defaults are diffusers'."""

    in_channels: Number = 3
    out_channels: Number = 3
    latent_channels: Number = 4
    block_out_channels: NumberPerLevel = (64,)
    layers_per_block: Annotated[int, Interval(ge=1, le=32)] = 1
    norm_num_groups: Number = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: Real = 0.18215
    sample_size: Number | HeightAndWidth = 32  # of the pictures in training; not used
    force_upcast: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "VAEConfig":
        """Reads vae/config.json. Raises UserError for a field that is not implemented."""
        channels = values.get("block_out_channels", (64,))
        levels = len(channels) if isinstance(channels, list | tuple) else 1
        only = {
            "act_fn": ("silu", "swish"),  # two names of one function
            "down_block_types": (("DownEncoderBlock2D",) * levels,),
            "up_block_types": (("UpDecoderBlock2D",) * levels,),
        }
        return read_config(
            cls, values, only=only, harmless=_HARMLESS, name="vae/config.json", uniform=frozenset({"layers_per_block"})
        )

    @property
    def num_blocks(self) -> int:
        """Resnets of encoder and decoder."""
        return len(self.block_out_channels) * (2 * self.layers_per_block + 1) + 4

    @property
    def downscale(self) -> int:
        """Pixels per latent along one side: 8 for Stable Diffusion."""
        return 1 << (len(self.block_out_channels) - 1)


class ResnetBlock2D(nnx.Module):
    """Twice norm, silu and conv, then adds the input. (b,h,w,in) -> (b,h,w,out)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, **kw: Unpack[LayerArgs]) -> None:
        self.norm1 = group_norm(in_channels, groups, NORM_EPS, **kw)
        self.conv1 = conv3x3(in_channels, out_channels, **kw)
        self.norm2 = group_norm(out_channels, groups, NORM_EPS, **kw)
        self.conv2 = conv3x3(out_channels, out_channels, **kw)
        self.conv_shortcut = conv1x1(in_channels, out_channels, **kw) if in_channels != out_channels else None

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = self.conv2(nnx.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nnx.Module):
    """Self-attention with one head over all positions, then adds the input. (b,h,w,c) -> (b,h,w,c)."""

    def __init__(self, channels: int, groups: int, **kw: Unpack[LayerArgs]) -> None:
        self.group_norm = group_norm(channels, groups, NORM_EPS, **kw)
        self.to_q = nnx.Linear(channels, channels, **kw)
        self.to_k = nnx.Linear(channels, channels, **kw)
        self.to_v = nnx.Linear(channels, channels, **kw)
        self.to_out = nnx.List([nnx.Linear(channels, channels, **kw)])

    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        y = self.group_norm(x).reshape(b, h * w, 1, c)
        y = dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y))
        return x + self.to_out[0](y).reshape(b, h, w, c)


class MidBlock(nnx.Module):
    """Resnet, attention, resnet at the lowest resolution. (b,h,w,c) -> (b,h,w,c)."""

    def __init__(self, channels: int, groups: int, add_attention: bool, **kw: Unpack[LayerArgs]) -> None:
        self.attentions = nnx.List([Attention(channels, groups, **kw)] if add_attention else [])
        self.resnets = nnx.List([ResnetBlock2D(channels, channels, groups, **kw) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Downsample2D(nnx.Module):
    """Halves height and width, rounding down. (b,h,w,c) -> (b,h/2,w/2,c).

    The padding is only below and on the right, because the VAE was trained so.
    """

    def __init__(self, channels: int, **kw: Unpack[LayerArgs]) -> None:
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=(2, 2), padding=((0, 1), (0, 1)), **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Doubles height and width, then convolves. (b,h,w,c) -> (b,2h,2w,c)."""

    def __init__(self, channels: int, **kw: Unpack[LayerArgs]) -> None:
        self.conv = conv3x3(channels, channels, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        if tpu_kind() in (V5E, V5P, V6E):  # older TPUs also multiply the zeros between the pixels (docs/log.md)
            return upsample_by_transposed_conv(self.conv, x)
        return self.conv(upsample_nearest(x, 2 * x.shape[1], 2 * x.shape[2]))


class DownEncoderBlock2D(nnx.Module):
    """Resnets, then downsampling, except at the last level. (b,h,w,in) -> (b,h/2,w/2,out), or (b,h,w,out)."""

    def __init__(
        self, in_channels: int, out_channels: int, layers: int, groups: int, downsample: bool, **kw: Unpack[LayerArgs]
    ) -> None:
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nnx.List([ResnetBlock2D(a, b, groups, **kw) for a, b in zip(widths, widths[1:], strict=False)])
        self.downsamplers = nnx.List([Downsample2D(out_channels, **kw)] if downsample else [])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpDecoderBlock2D(nnx.Module):
    """Resnets, then upsampling, except at the last level. (b,h,w,in) -> (b,2h,2w,out), or (b,h,w,out)."""

    def __init__(
        self, in_channels: int, out_channels: int, layers: int, groups: int, upsample: bool, **kw: Unpack[LayerArgs]
    ) -> None:
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nnx.List([ResnetBlock2D(a, b, groups, **kw) for a, b in zip(widths, widths[1:], strict=False)])
        self.upsamplers = nnx.List([Upsample2D(out_channels, **kw)] if upsample else [])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nnx.Module):
    """Pixels (b,H,W,3) -> mean and log variance side by side (b,h,w,2c)."""

    def __init__(self, config: VAEConfig, **kw: Unpack[LayerArgs]) -> None:
        channels, groups = config.block_out_channels, config.norm_num_groups
        last = len(channels) - 1
        self.conv_in = conv3x3(config.in_channels, channels[0], **kw)
        self.down_blocks = nnx.List(
            [
                DownEncoderBlock2D(channels[max(i - 1, 0)], c, config.layers_per_block, groups, i < last, **kw)
                for i, c in enumerate(channels)
            ]
        )
        self.mid_block = MidBlock(channels[-1], groups, config.mid_block_add_attention, **kw)
        self.conv_norm_out = group_norm(channels[-1], groups, NORM_EPS, **kw)
        self.conv_out = conv3x3(channels[-1], 2 * config.latent_channels, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latents (b,h,w,c) -> pixels (b,H,W,3)."""

    def __init__(self, config: VAEConfig, **kw: Unpack[LayerArgs]) -> None:
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        last = len(channels) - 1
        self.conv_in = conv3x3(config.latent_channels, channels[0], **kw)
        self.mid_block = MidBlock(channels[0], groups, config.mid_block_add_attention, **kw)
        self.up_blocks = nnx.List(
            [
                UpDecoderBlock2D(channels[max(i - 1, 0)], c, config.layers_per_block + 1, groups, i < last, **kw)
                for i, c in enumerate(channels)
            ]
        )
        self.conv_norm_out = group_norm(channels[-1], groups, NORM_EPS, **kw)
        self.conv_out = conv3x3(channels[-1], config.out_channels, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class AutoencoderKL(nnx.Module):
    """Encoder and decoder, with a 1x1 convolution after the encoder and one before the decoder."""

    def __init__(
        self, config: VAEConfig, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        kw = LayerArgs(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        c = config.latent_channels
        self.config, self.dtype = config, dtype
        self.encoder = Encoder(config, **kw)
        self.decoder = Decoder(config, **kw)
        self.quant_conv = conv1x1(2 * c, 2 * c, **kw) if config.use_quant_conv else None
        self.post_quant_conv = conv1x1(c, c, **kw) if config.use_post_quant_conv else None

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images (b,H,W,3) in -1..1 -> mean and log variance, (b,h,w,c) float32 each, without scaling_factor."""
        moments = self.encoder(images)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)  # in this range exp() is finite in float32

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents (b,h,w,c), divided by scaling_factor before -> images (b,H,W,3) float32, about -1..1, not clipped."""
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)
