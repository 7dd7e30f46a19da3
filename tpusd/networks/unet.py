"""UNet2DConditionModel: the denoiser of Stable Diffusion 1.x, 2.x and SDXL (Rombach et al. 2022; Podell et al. 2023).

One call is one prediction. Guidance, schedules and sampling are not done here.
"""

import math
from functools import partial
from typing import NamedTuple, TypeAlias, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from tpusd.networks.attention.dispatch import dot_product_attention
from tpusd.networks.layers import (
    Identity,
    LayerArgs,
    conv1x1,
    conv3x3,
    gelu,
    group_norm,
    layer_norm,
    upsample_by_transposed_conv,
    upsample_nearest,
)
from tpusd.networks.reuse import REUSED, Reuse
from tpusd.networks.target import V5E, tpu_kind
from tpusd.networks.unet_config import UNetConfig

TRANSFORMER_NORM_EPS = 1e-6  # of the GroupNorm before attention; resnets have norm_eps, which is 1e-5
LAYER_NORM_EPS = 1e-5


def timestep_embedding(timesteps: jax.Array, dim: int, *, flip_sin_to_cos: bool, freq_shift: int) -> jax.Array:
    """Sinusoids of the timesteps (Vaswani et al. 2017, section 3.5). (b,) -> (b,dim) float32."""
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(parts, axis=-1)


def guidance_embedding(scale: jax.Array, dim: int) -> jax.Array:
    """Sinusoids of the guidance scale, for a distilled UNet that reads it. (b,) -> (b,dim) float32.

    Luo et al. 2023, section 4.2, whose omega is the scale less one. It is multiplied by 1000, as timesteps are.
    """
    return timestep_embedding(1000 * (scale.astype(jnp.float32) - 1), dim, flip_sin_to_cos=False, freq_shift=1)


class TimestepEmbedding(nnx.Module):
    """Two-layer perceptron on an embedding vector. (b,in) -> (b,features).

    cond_features: of a second vector (b,cond_features), whose projection is added to the first; None: without it.
    """

    def __init__(
        self, in_features: int, features: int, cond_features: int | None = None, **kw: Unpack[LayerArgs]
    ) -> None:
        self.linear_1 = nnx.Linear(in_features, features, **kw)
        self.cond_proj = (
            nnx.Linear(cond_features, in_features, use_bias=False, **kw) if cond_features is not None else None
        )  # fmt: skip
        self.linear_2 = nnx.Linear(features, features, **kw)

    def __call__(self, x: jax.Array, cond: jax.Array | None = None) -> jax.Array:
        if self.cond_proj is not None and cond is not None:
            x = x + self.cond_proj(cond)
        return self.linear_2(nnx.silu(self.linear_1(x)))


class ResnetBlock2D(nnx.Module):
    """Norm, silu, conv; adds the time embedding; norm, silu, conv; adds the input.

    (b,h,w,in), (b,e) -> (b,h,w,out). The input may be several arrays, each with a part of the channels.
    """

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig, **kw: Unpack[LayerArgs]) -> None:
        groups, eps = config.norm_num_groups, config.norm_eps
        self.norm1 = group_norm(in_channels, groups, eps, **kw)
        self.conv1 = conv3x3(in_channels, out_channels, **kw)
        self.time_emb_proj = nnx.Linear(4 * config.block_out_channels[0], out_channels, **kw)
        self.norm2 = group_norm(out_channels, groups, eps, **kw)
        self.conv2 = conv3x3(out_channels, out_channels, **kw)
        self.conv_shortcut = conv1x1(in_channels, out_channels, **kw) if in_channels != out_channels else None

    def __call__(self, *parts: jax.Array, emb: jax.Array) -> jax.Array:
        x = jnp.concatenate(parts, axis=-1)
        h = self.conv1(nnx.silu(self.norm1(*parts)))
        h = h + self.time_emb_proj(nnx.silu(emb))[:, None, None, :]
        h = self.conv2(nnx.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nnx.Module):
    """Multi-head attention of x to context. (b,q,c), (b,k,e) -> (b,q,c)."""

    def __init__(self, channels: int, context_channels: int, num_heads: int, **kw: Unpack[LayerArgs]) -> None:
        self.num_heads = num_heads
        self.to_q = nnx.Linear(channels, channels, use_bias=False, **kw)
        self.to_k = nnx.Linear(context_channels, channels, use_bias=False, **kw)
        self.to_v = nnx.Linear(context_channels, channels, use_bias=False, **kw)
        self.to_out = nnx.List([nnx.Linear(channels, channels, **kw)])

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        b, q_len, c = x.shape
        d = c // self.num_heads
        q = self.to_q(x).reshape(b, q_len, self.num_heads, d)
        k = self.to_k(context).reshape(b, -1, self.num_heads, d)
        v = self.to_v(context).reshape(b, -1, self.num_heads, d)
        return self.to_out[0](dot_product_attention(q, k, v).reshape(b, q_len, c))


class GEGLU(nnx.Module):
    """Gated linear unit with `layers.gelu` (Shazeer 2020): the second half of the projection gates the first.

    (b,q,c) -> (b,q,features).
    """

    def __init__(self, channels: int, features: int, **kw: Unpack[LayerArgs]) -> None:
        self.proj = nnx.Linear(channels, 2 * features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        if tpu_kind() is None:
            value, gate = jnp.split(self.proj(x), 2, axis=-1)
            return value * gelu(gate)
        # Two products, each with half of the weights: each result is read and written once, and the compiler fuses the
        # gate with its product.
        assert self.proj.bias is not None  # nnx.Linear makes one by default
        kernel, bias = self.proj.kernel[...].astype(self.proj.dtype), self.proj.bias[...].astype(self.proj.dtype)
        half = kernel.shape[1] // 2
        value, gate = (x @ kernel[:, part] + bias[part] for part in (slice(half), slice(half, None)))
        return value * gelu(gate)


class FeedForward(nnx.Module):
    """GEGLU to four times the channels, then a projection back. (b,q,c) -> (b,q,c)."""

    def __init__(self, channels: int, **kw: Unpack[LayerArgs]) -> None:
        self.net: nnx.List[GEGLU | Identity | nnx.Linear] = nnx.List(
            [GEGLU(channels, 4 * channels, **kw), Identity(), nnx.Linear(4 * channels, channels, **kw)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention to the text, feed-forward; each is pre-norm and residual.

    (b,q,c), (b,l,e) -> (b,q,c).
    """

    def __init__(self, channels: int, context_channels: int, num_heads: int, **kw: Unpack[LayerArgs]) -> None:
        self.norm1 = layer_norm(channels, LAYER_NORM_EPS, **kw)
        self.attn1 = Attention(channels, channels, num_heads, **kw)
        self.norm2 = layer_norm(channels, LAYER_NORM_EPS, **kw)
        self.attn2 = Attention(channels, context_channels, num_heads, **kw)
        self.norm3 = layer_norm(channels, LAYER_NORM_EPS, **kw)
        self.ff = FeedForward(channels, **kw)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


def _projection(channels: int, *, linear: bool, **kw: Unpack[LayerArgs]) -> nnx.Linear | nnx.Conv:
    """SD 2.x and SDXL project with linear layers, SD 1.x with 1x1 convolutions: the same arithmetic."""
    return nnx.Linear(channels, channels, **kw) if linear else conv1x1(channels, channels, **kw)


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the positions of a feature map, then adds the input. (b,h,w,c), (b,l,e) -> (b,h,w,c)."""

    def __init__(self, channels: int, num_heads: int, layers: int, config: UNetConfig, **kw: Unpack[LayerArgs]) -> None:
        self.norm = group_norm(channels, config.norm_num_groups, TRANSFORMER_NORM_EPS, **kw)
        self.proj_in = _projection(channels, linear=config.use_linear_projection, **kw)
        self.transformer_blocks = nnx.List(
            [BasicTransformerBlock(channels, config.cross_attention_dim, num_heads, **kw) for _ in range(layers)]
        )
        self.proj_out = _projection(channels, linear=config.use_linear_projection, **kw)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        y = self.proj_in(self.norm(x)).reshape(b, h * w, c)
        for block in self.transformer_blocks:
            y = block(y, context)
        return x + self.proj_out(y.reshape(b, h, w, c))


class Downsample2D(nnx.Module):
    """Halves height and width, rounding up, with a padding of 1 on every side. (b,h,w,c) -> (b,h/2,w/2,c)."""

    def __init__(self, channels: int, **kw: Unpack[LayerArgs]) -> None:
        self.conv = conv3x3(channels, channels, stride=2, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Enlarges to the height and width of the next skip connection, then convolves. (b,h,w,c) -> (b,height,width,c)."""

    def __init__(self, channels: int, **kw: Unpack[LayerArgs]) -> None:
        self.conv = conv3x3(channels, channels, **kw)

    def __call__(self, x: jax.Array, height: int, width: int) -> jax.Array:
        b, h, w, _ = x.shape
        # On other TPUs, and with fewer images, the compiler also multiplies the zeros between the pixels (docs/log.md).
        if tpu_kind() == V5E and b >= 16 and (height, width) == (2 * h, 2 * w):
            return upsample_by_transposed_conv(self.conv, x)
        return self.conv(upsample_nearest(x, height, width))


class DownBlock2D(nnx.Module):
    """Resnets, each followed by attention if the level has it, then downsampling, except at the last level."""

    def __init__(self, config: UNetConfig, level: int, **kw: Unpack[LayerArgs]) -> None:
        channels = config.block_out_channels
        out = channels[level]
        widths = [channels[max(level - 1, 0)]] + [out] * config.resnets[level]
        heads = config.num_heads[level]
        self.resnets = nnx.List([ResnetBlock2D(a, b, config, **kw) for a, b in zip(widths, widths[1:], strict=False)])
        self.attentions = nnx.List(
            [Transformer2DModel(out, heads, layers, config, **kw) for layers in config.down_attentions(level)]
        )
        self.downsamplers = nnx.List([Downsample2D(out, **kw)] if level < len(channels) - 1 else [])

    @property
    def num_layers(self) -> int:
        """Each gives a skip connection."""
        return len(self.resnets) + len(self.downsamplers)

    def layer(self, i: int, x: jax.Array, emb: jax.Array, context: jax.Array) -> jax.Array:
        """Layer i: x (b,h,w,in), emb (b,e), context (b,l,f) -> (b,h,w,out), or half the size at the last one."""
        if i == len(self.resnets):
            return self.downsamplers[0](x)
        x = self.resnets[i](x, emb=emb)
        return self.attentions[i](x, context) if self.attentions else x


class MidBlock2D(nnx.Module):
    """Resnet, attention, resnet at the lowest resolution, or one resnet. (b,h,w,c), (b,e), (b,l,f) -> (b,h,w,c)."""

    def __init__(self, config: UNetConfig, **kw: Unpack[LayerArgs]) -> None:
        c = config.block_out_channels[-1]
        attends = config.mid_block_type == "UNetMidBlock2DCrossAttn"
        layers = (config.mid_layers,) if attends else ()
        self.attentions = nnx.List([Transformer2DModel(c, config.num_heads[-1], n, config, **kw) for n in layers])
        self.resnets = nnx.List([ResnetBlock2D(c, c, config, **kw) for _ in range(1 + attends)])

    def __call__(self, x: jax.Array, emb: jax.Array, context: jax.Array) -> jax.Array:
        x = self.resnets[0](x, emb=emb)
        for attention, resnet in zip(self.attentions, list(self.resnets)[1:], strict=True):
            x = resnet(attention(x, context), emb=emb)
        return x


class UpBlock2D(nnx.Module):
    """Resnets, each followed by attention if the level has it, then upsampling, except at the last level.

    Every resnet also gets the output of a layer of the down blocks, through a skip connection.
    """

    def __init__(self, config: UNetConfig, index: int, **kw: Unpack[LayerArgs]) -> None:
        channels = config.block_out_channels
        level = len(channels) - 1 - index  # up blocks count from the lowest resolution
        out, before = channels[level], channels[min(level + 1, len(channels) - 1)]
        n = config.up_resnets(index)
        inputs = [before] + [out] * (n - 1)
        skips = [out] * (n - 1) + [channels[max(level - 1, 0)]]
        heads = config.num_heads[level]
        self.resnets = nnx.List([ResnetBlock2D(a + s, out, config, **kw) for a, s in zip(inputs, skips, strict=True)])
        self.attentions = nnx.List(
            [Transformer2DModel(out, heads, layers, config, **kw) for layers in config.up_attentions(index)]
        )
        self.upsamplers = nnx.List([Upsample2D(out, **kw)] if level > 0 else [])

    @property
    def num_layers(self) -> int:
        """Each takes a skip connection."""
        return len(self.resnets)

    def layer(self, i: int, x: jax.Array, skips: list[jax.Array], emb: jax.Array, context: jax.Array) -> jax.Array:
        """Layer i, the last one with upsampling: x (b,h,w,in), emb (b,e), context (b,l,f) -> (b,height,width,out).

        Takes its skip from the list's end.
        """
        x = self.resnets[i](x, skips.pop(), emb=emb)
        if self.attentions:
            x = self.attentions[i](x, context)
        if i == len(self.resnets) - 1:
            for upsample in self.upsamplers:
                x = upsample(x, *skips[-1].shape[1:3])
        return x


def _added_embedding(config: UNetConfig, **kw: Unpack[LayerArgs]) -> TimestepEmbedding:
    assert config.projection_class_embeddings_input_dim is not None  # families/sdxl.py checks its value
    return TimestepEmbedding(config.projection_class_embeddings_input_dim, 4 * config.block_out_channels[0], **kw)


class Residuals(NamedTuple):
    """What a ControlNet adds to a UNet: down, to each skip connection, (b,h,w,c) of its shape; mid, to the mid block.

    Height and width may be 1: then the same is added everywhere.
    """

    down: tuple[jax.Array, ...]
    mid: jax.Array


Features: TypeAlias = tuple[jax.Array, ...]  # what T2I-Adapters add: (b,h,w,c) for each level, then to the mid block


class TimeEmbedded(nnx.Module):
    """A network that reads the timestep, and for SDXL the pooled text and the sizes. config: of the UNet."""

    def __init__(self, config: UNetConfig, **kw: Unpack[LayerArgs]) -> None:
        channels = config.block_out_channels[0]
        self.time_config, self.dtype = config, kw["dtype"]
        self.time_embedding = TimestepEmbedding(channels, 4 * channels, config.time_cond_proj_dim, **kw)
        self.add_embedding = (
            _added_embedding(config, **kw) if config.addition_embed_type == "text_time" else None
        )  # fmt: skip

    def embed_time(
        self,
        timesteps: jax.Array,
        text_embeds: jax.Array | None,
        time_ids: jax.Array | None,
        guidance_scale: jax.Array | None = None,
    ) -> jax.Array:
        """Time embedding (b,e), plus SDXL's embedding of pooled text and sizes (Podell et al. 2023, section 2.2)."""
        config = self.time_config
        sinusoids = partial(timestep_embedding, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift)
        cond = None
        if config.time_cond_proj_dim is not None:
            scale = jnp.ones_like(timesteps) if guidance_scale is None else guidance_scale
            cond = guidance_embedding(scale, config.time_cond_proj_dim).astype(self.dtype)
        emb = self.time_embedding(sinusoids(timesteps, config.block_out_channels[0]).astype(self.dtype), cond)
        if self.add_embedding is None:
            return emb
        assert text_embeds is not None and time_ids is not None and config.addition_time_embed_dim is not None
        b, n = time_ids.shape
        sizes = sinusoids(time_ids.reshape(b * n), config.addition_time_embed_dim).reshape(b, -1)
        return emb + self.add_embedding(
            jnp.concatenate([text_embeds.astype(self.dtype), sizes.astype(self.dtype)], axis=-1)
        )


class UNet2DConditionModel(TimeEmbedded):
    """Noisy latents, timesteps and text embeddings -> epsilon, v or x0: the checkpoint's config says which."""

    def __init__(
        self,
        config: UNetConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        kw = LayerArgs(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        channels = config.block_out_channels
        self.config = config
        self.conv_in = conv3x3(config.in_channels, channels[0], **kw)
        super().__init__(config, **kw)
        self.down_blocks = nnx.List([DownBlock2D(config, level, **kw) for level in range(len(channels))])
        self.mid_block = MidBlock2D(config, **kw) if config.mid_block_type is not None else None
        self.up_blocks = nnx.List([UpBlock2D(config, index, **kw) for index in range(len(channels))])
        self.conv_norm_out = group_norm(channels[0], config.norm_num_groups, config.norm_eps, **kw)
        self.conv_out = conv3x3(channels[0], config.out_channels, **kw)

    def __call__(
        self,
        sample: jax.Array,
        timesteps: jax.Array,
        encoder_hidden_states: jax.Array,
        text_embeds: jax.Array | None = None,
        time_ids: jax.Array | None = None,
        guidance_scale: jax.Array | None = None,
        residuals: Residuals | None = None,
        features: Features = (),
    ) -> jax.Array:
        """One prediction: (b,h,w,c) float32.

        sample: noisy latents (b,h,w,c).
        timesteps: (b,), also fractional ones.
        encoder_hidden_states: of the text, (b,l,e).
        text_embeds: pooled text (b,p), for SDXL only.
        time_ids: (b,6), for SDXL only: original height and width, crop top and left, target height and width, in
            pixels.
        guidance_scale: (b,), for a UNet with time_cond_proj_dim only; None: 1.
        residuals: what ControlNets add; None: there are none.
        features: what T2I-Adapters add, for some levels, the first ones, or for all of them and the mid block.
        """
        return self._predict(
            sample, timesteps, encoder_hidden_states, text_embeds, time_ids, guidance_scale, None, residuals, features
        )[0]

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The layer of each level whose result T2I-Adapters change: counted as the skip connections are, less one."""
        places, total = [], 0
        for block in self.down_blocks:
            # Where a level has attention, it is the last layer before downsampling, and the very last one elsewhere.
            places.append(total + (len(block.resnets) if block.attentions else block.num_layers) - 1)
            total += block.num_layers
        return tuple(places)

    def reusing(
        self,
        reuse: Reuse,
        sample: jax.Array,
        timesteps: jax.Array,
        encoder_hidden_states: jax.Array,
        text_embeds: jax.Array | None = None,
        time_ids: jax.Array | None = None,
        guidance_scale: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """One prediction that may reuse the deep half of an earlier one, and the deep half that it used.

        The other arguments are those of a call.
        """
        return self._predict(sample, timesteps, encoder_hidden_states, text_embeds, time_ids, guidance_scale, reuse)

    def _predict(
        self,
        sample: jax.Array,
        timesteps: jax.Array,
        encoder_hidden_states: jax.Array,
        text_embeds: jax.Array | None,
        time_ids: jax.Array | None,
        guidance_scale: jax.Array | None,
        reuse: Reuse | None,
        residuals: Residuals | None = None,
        features: Features = (),
    ) -> tuple[jax.Array, jax.Array]:
        """The prediction, and what enters the layer that takes the skip connection `reuse.branch`."""
        sample = sample.astype(self.dtype)
        context = encoder_hidden_states.astype(self.dtype)
        emb = self.embed_time(timesteps, text_embeds, time_ids, guidance_scale)
        down = [partial(block.layer, i) for block in self.down_blocks for i in range(block.num_layers)]
        up = [partial(block.layer, i) for block in self.up_blocks for i in range(block.num_layers)]
        branch = 0 if reuse is None else reuse.branch
        inside = dict(zip(self.feature_layers, features, strict=False))

        def downwards(number: int, x: jax.Array) -> jax.Array:
            y = down[number](x, emb, context)
            return y + inside[number].astype(self.dtype) if number in inside else y

        skips = [self.conv_in(sample)]
        for number in range(branch):
            skips.append(downwards(number, skips[-1]))

        def controlled(skips: list[jax.Array]) -> list[jax.Array]:
            if residuals is None:
                return skips
            return [skip + more.astype(self.dtype) for skip, more in zip(skips, residuals.down, strict=False)]

        def compute_deep() -> jax.Array:
            x, all_skips = skips[-1], list(skips)
            for number in range(branch, len(down)):
                x = downwards(number, x)
                all_skips.append(x)
            all_skips = controlled(all_skips)
            if self.mid_block is not None:
                x = self.mid_block(x, emb, context)
            for feature in features[len(inside) :]:
                x = x + feature.astype(self.dtype)
            if residuals is not None:
                x = x + residuals.mid.astype(self.dtype)
            for up_layer in up[: len(down) - branch]:
                x = up_layer(x, all_skips, emb, context)
            return x

        if reuse is None:
            deep = compute_deep()
        else:
            with jax.named_scope(REUSED):
                deep = jax.lax.cond(reuse.full, compute_deep, lambda: reuse.deep)
        x, skips = deep, controlled(skips)
        for up_layer in up[len(down) - branch :]:
            x = up_layer(x, skips, emb, context)
        return self.conv_out(nnx.silu(self.conv_norm_out(x))).astype(jnp.float32), deep
