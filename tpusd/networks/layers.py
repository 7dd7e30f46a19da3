"""Layers that two of the networks share to the letter.

Parameters have `param_dtype`, arithmetic runs in `dtype`; softmax and norm statistics are always float32.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx


class Identity(nnx.Module):
    """Holds the place of a PyTorch layer without parameters (dropout): list positions agree with the state dict."""

    def __call__(self, x):
        return x


class GroupNorm(nnx.GroupNorm):
    """GroupNorm (Wu & He 2018) with float32 statistics, of (b,h,w,c) that may come in parts of its channels.

    Statistics come from sums per channel: they run along whole vectors, and a compiler takes them where a part is made,
    once for all norms that read it.
    """

    def __call__(self, *parts):
        x = (parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)).astype(jnp.float32)
        b, h, w, c = x.shape

        def mean(parts):
            """Per group, for each of its channels: (b,h,w,...) -> (b,1,1,c)."""
            sums = jnp.concatenate([part.sum(axis=(1, 2)) for part in parts], axis=-1).reshape(b, self.num_groups, -1)
            means = sums.sum(axis=-1, keepdims=True) / (h * w * sums.shape[-1])
            return jnp.broadcast_to(means, sums.shape).reshape(b, 1, 1, c)

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


def group_norm(channels: int, num_groups: int, epsilon: float, *, dtype, param_dtype, rngs) -> GroupNorm:
    """`GroupNorm` by its usual arguments."""
    return GroupNorm(channels, num_groups, epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def layer_norm(features: int, epsilon: float, *, dtype, param_dtype, rngs) -> nnx.LayerNorm:
    """LayerNorm with float32 statistics."""
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_fast_variance=_one_pass(dtype),
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def _one_pass(dtype) -> bool:
    """Whether the variance is taken as E[x^2] - E[x]^2, in one reading of x instead of two.

    In float32 that loses digits where the mean m is large against the deviation s: a relative (m/s)^2 2^-24. Values
    that come in bfloat16 or float16 have lost more than that already, (m/s) 2^-9 or (m/s) 2^-12 each.
    """
    return jnp.dtype(dtype).itemsize < 4


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), Phi the normal distribution function (Hendrycks & Gimpel 2016).

    In half precision Phi is a logistic function of an odd polynomial, within 2.6e-5 of x Phi(x) everywhere, for the
    error function takes a TPU's vector unit several times as long; float32 has the error function.
    """
    if jnp.dtype(x.dtype).itemsize == 4:
        return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
    wide = x.astype(jnp.float32)
    square = jnp.minimum(wide * wide, 36.0)
    odd = wide * (1.595016 + square * (0.0740113 - 0.000703035 * square))
    return (wide * nnx.sigmoid(odd)).astype(x.dtype)


def conv3x3(in_channels: int, out_channels: int, *, dtype, param_dtype, rngs, stride: int = 1) -> nnx.Conv:
    """3x3 convolution padded by 1 on every side. XLA's "SAME" is not that at stride 2 on even sizes."""
    return nnx.Conv(
        in_channels, out_channels, (3, 3), strides=(stride, stride), padding=((1, 1), (1, 1)),
        dtype=dtype, param_dtype=param_dtype, rngs=rngs,
    )  # fmt: skip


def conv1x1(in_channels: int, out_channels: int, *, dtype, param_dtype, rngs) -> nnx.Conv:
    """1x1 convolution."""
    return nnx.Conv(in_channels, out_channels, (1, 1), dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def upsample_nearest(x: jax.Array, height: int, width: int) -> jax.Array:
    """Doubles (b,h,w,c) by repeating pixels, then crops to (height, width): 2h or 2h-1, 2w or 2w-1.

    For these sizes the crop equals PyTorch's `interpolate(size=..., mode="nearest")`.
    """
    b, h, w, c = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))  # one copy, where two repeats make two
    return doubled.reshape(b, 2 * h, 2 * w, c)[:, :height, :width]


def upsampling_taps(kernel: jax.Array) -> jax.Array:
    """(3,3,in,out) for an array whose pixels were doubled -> (4,4,in,out) float32 for the array with zeros between.

    A pixel and its copy under two taps are one pixel under the sum of the taps.
    """
    taps = kernel.astype(jnp.float32)
    for axis in (0, 1):
        before, after = ([(0, 0)] * 4 for _ in range(2))
        before[axis], after[axis] = (1, 0), (0, 1)
        taps = jnp.pad(taps, before) + jnp.pad(taps, after)
    return taps


def upsample_by_transposed_conv(conv: nnx.Conv, x: jax.Array) -> jax.Array:
    """conv of x with doubled pixels, as one transposed convolution: (b,h,w,in) -> (b,2h,2w,out).

    conv: a `conv3x3`. Faster only where the compiler passes over the zeros, which is for its caller to know.
    """
    taps = upsampling_taps(conv.kernel[...]).astype(conv.dtype)
    out = jax.lax.conv_general_dilated(
        x.astype(conv.dtype), taps, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return out + conv.bias[...].astype(conv.dtype)
