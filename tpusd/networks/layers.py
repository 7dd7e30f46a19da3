"""Layers that are identical in two or more networks.

Parameters have `param_dtype`, and arithmetic runs in `dtype`. Softmax and norm statistics are always float32.
"""

import math
from collections.abc import Sequence
from typing import TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class LayerArgs(TypedDict):
    """Arguments that every layer passes on to its parts.

    dtype: of arithmetic and results.
    param_dtype: of parameters.
    rngs: source of the random numbers for new parameters.
    """

    dtype: DTypeLike
    param_dtype: DTypeLike
    rngs: nnx.Rngs


class OwnParam(nnx.Param[jax.Array]):
    """A parameter of a network itself, and of no layer of it. A file holds it with the axes that it has here."""


class Identity(nnx.Module):
    """Replaces a PyTorch layer without parameters (dropout), so that list positions equal those of the state dict."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class GroupNorm(nnx.GroupNorm):
    """GroupNorm (Wu & He 2018) with float32 statistics.

    Statistics are computed from sums per channel. Such a sum runs along whole vectors. The compiler can fuse it with
    the operation that makes the array, and use it for every norm that reads the array.
    """

    # The base class takes one array and a mask.
    def __call__(self, *parts: jax.Array) -> jax.Array:  # type: ignore[override]
        """Normalizes the parts, concatenated along their channels: (b,h,w,c1), (b,h,w,c2), ... -> (b,h,w,c)."""
        x = (parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)).astype(jnp.float32)
        b, h, w, c = x.shape

        def mean(parts: Sequence[jax.Array]) -> jax.Array:
            """Mean of each group, repeated for each of its channels: (b,h,w,c1), (b,h,w,c2), ... -> (b,1,1,c)."""
            sums = jnp.concatenate([part.sum(axis=(1, 2)) for part in parts], axis=-1).reshape(b, self.num_groups, -1)
            means = sums.sum(axis=-1, keepdims=True) / (h * w * sums.shape[-1])
            return jnp.broadcast_to(means, sums.shape).reshape(b, 1, 1, c)

        assert self.scale is not None and self.bias is not None  # `group_norm` makes both
        scale, bias = self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        wide = [part.astype(jnp.float32) for part in parts]
        centre = mean(wide)
        if _one_pass(self.dtype):
            variance = mean([part * part for part in wide]) - centre * centre
            scale = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + self.epsilon) * scale
            return (x * scale + (bias - centre * scale)).astype(self.dtype)
        centred = x - centre
        scale = jax.lax.rsqrt(mean([centred * centred]) + self.epsilon) * scale
        return (centred * scale + bias).astype(self.dtype)


def group_norm(channels: int, num_groups: int, epsilon: float, **kw: Unpack[LayerArgs]) -> GroupNorm:
    """`GroupNorm` of (b,h,w,channels)."""
    return GroupNorm(channels, num_groups, epsilon=epsilon, **kw)


def layer_norm(features: int, epsilon: float, **kw: Unpack[LayerArgs]) -> nnx.LayerNorm:
    """LayerNorm of (...,features) with float32 statistics."""
    return nnx.LayerNorm(features, epsilon=epsilon, use_fast_variance=_one_pass(kw["dtype"]), **kw)


def _one_pass(dtype: DTypeLike | None) -> bool:
    """Whether to compute the variance as E[x^2] - E[x]^2, which reads x once instead of twice.

    In float32 this formula loses digits if the mean m is large compared to the deviation s: its relative error is
    (m/s)^2 2^-24. A value in bfloat16 or float16 has a larger error from its own rounding: (m/s) 2^-9 or (m/s) 2^-12.
    """
    return int(jnp.dtype(dtype).itemsize) < 4


def gelu(x: jax.Array) -> jax.Array:
    """GELU of an array of any shape: x Phi(x), where Phi is the normal distribution function (Hendrycks & Gimpel 2016).

    float32 uses the error function. In half precision, Phi is a logistic function of an odd polynomial, because the
    error function takes several times as long on a TPU's vector unit. The result differs from x Phi(x) by at most
    2.6e-5, for every x.
    """
    if jnp.dtype(x.dtype).itemsize == 4:
        return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
    wide = x.astype(jnp.float32)
    square = jnp.minimum(wide * wide, 36.0)
    odd = wide * (1.595016 + square * (0.0740113 - 0.000703035 * square))
    return (wide * nnx.sigmoid(odd)).astype(x.dtype)


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, **kw: Unpack[LayerArgs]) -> nnx.Conv:
    """3x3 convolution with a padding of 1 on every side. XLA's "SAME" pads otherwise at stride 2 on even sizes."""
    return nnx.Conv(
        in_channels, out_channels, (3, 3), strides=(stride, stride), padding=((1, 1), (1, 1)), **kw
    )  # fmt: skip


def conv1x1(in_channels: int, out_channels: int, **kw: Unpack[LayerArgs]) -> nnx.Conv:
    """1x1 convolution."""
    return nnx.Conv(in_channels, out_channels, (1, 1), **kw)


def upsample_nearest(x: jax.Array, height: int, width: int) -> jax.Array:
    """Doubles (b,h,w,c) by repeating pixels, then crops it to (b,height,width,c).

    height: 2h or 2h-1. width: 2w or 2w-1. For these sizes the crop equals PyTorch's
    `interpolate(size=..., mode="nearest")`.
    """
    b, h, w, c = x.shape
    doubled = jnp.broadcast_to(
        x[:, :, None, :, None], (b, h, 2, w, 2, c)
    )  # one copy; two calls of repeat would make two
    return doubled.reshape(b, 2 * h, 2 * w, c)[:, :height, :width]


def upsampling_taps(kernel: jax.Array) -> jax.Array:
    """Turns the kernel for doubled pixels into a kernel for pixels with zeros between them.

    kernel (3,3,in,out) -> (4,4,in,out) float32. Where two taps read a pixel and its copy, one tap reads the pixel, and
    its weight is their sum.
    """
    taps = kernel.astype(jnp.float32)
    for axis in (0, 1):
        before, after = ([(0, 0)] * 4 for _ in range(2))
        before[axis], after[axis] = (1, 0), (0, 1)
        taps = jnp.pad(taps, before) + jnp.pad(taps, after)
    return taps


def upsample_by_transposed_conv(conv: nnx.Conv, x: jax.Array) -> jax.Array:
    """Doubles the pixels of x and applies conv, as one transposed convolution: (b,h,w,in) -> (b,2h,2w,out).

    conv: a `conv3x3`. This is faster only if the compiler skips the zeros, so the caller must know the compiler.
    """
    assert conv.bias is not None  # `conv3x3` makes one
    taps = upsampling_taps(conv.kernel[...]).astype(conv.dtype)
    out = jax.lax.conv_general_dilated(
        x.astype(conv.dtype), taps, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return out + conv.bias[...].astype(conv.dtype)
