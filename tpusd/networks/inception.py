"""The InceptionV3 of FID: Szegedy et al. 2015 as TensorFlow's graph of 2015-12-05 has it, up to its 2048 features.

It differs from the usual InceptionV3: average pools do not count what lies beyond the edge, and the last block pools
by the maximum. Batch norms have the statistics of training. Parameters have PyTorch's names.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from tpusd.networks.layers import LayerArgs, OwnParam

SIZE = 299  # pixels of a picture's side
NUM_FEATURES = 2048
EPSILON = 0.001


class BatchNorm(nnx.Module):
    """Batch normalization with given statistics. (...,c) -> (...,c)."""

    def __init__(self, channels: int, param_dtype: DTypeLike) -> None:
        self.weight = OwnParam(jnp.ones((channels,), param_dtype))
        self.bias = OwnParam(jnp.zeros((channels,), param_dtype))
        self.running_mean = OwnParam(jnp.zeros((channels,), param_dtype))
        self.running_var = OwnParam(jnp.ones((channels,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.weight[...] * jax.lax.rsqrt(self.running_var[...] + EPSILON)
        shifted: jax.Array = x * scale + (self.bias[...] - self.running_mean[...] * scale)
        return shifted


class ConvNorm(nnx.Module):
    """A convolution, its batch norm, and a ReLU. (b,h,w,i) -> (b,h,w,o)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        kw: LayerArgs,
        *,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        self.conv = nnx.Conv(
            inputs, outputs, kernel, strides=stride, padding=[(one, one) for one in padding], use_bias=False, **kw
        )
        self.bn = BatchNorm(outputs, kw["param_dtype"])

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.bn(self.conv(x)))


def _one(inputs: int, outputs: int, kw: LayerArgs) -> ConvNorm:
    return ConvNorm(inputs, outputs, (1, 1), kw)


def _same(inputs: int, outputs: int, kernel: tuple[int, int], kw: LayerArgs) -> ConvNorm:
    """Of the size of its input."""
    height, width = kernel
    return ConvNorm(inputs, outputs, kernel, kw, padding=(height // 2, width // 2))


def _halving(inputs: int, outputs: int, kw: LayerArgs) -> ConvNorm:
    return ConvNorm(inputs, outputs, (3, 3), kw, stride=2)


def _through(x: jax.Array, layers: Sequence[ConvNorm]) -> jax.Array:
    for layer in layers:
        x = layer(x)
    return x


def _average(x: jax.Array) -> jax.Array:
    """Over 3x3 pixels, of which those beyond the edge do not count."""
    pooled: jax.Array = nnx.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)
    return pooled


def _highest(x: jax.Array, *, stride: int = 2) -> jax.Array:
    pooled: jax.Array = nnx.max_pool(x, (3, 3), strides=(stride, stride), padding="SAME" if stride == 1 else "VALID")
    return pooled


def _joined(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


class MixedA(nnx.Module):
    """Blocks of 35x35. (b,h,w,c) -> (b,h,w,224+pooled)."""

    def __init__(self, c: int, pooled: int, kw: LayerArgs) -> None:
        self.branch1x1 = _one(c, 64, kw)
        self.branch5x5_1 = _one(c, 48, kw)
        self.branch5x5_2 = _same(48, 64, (5, 5), kw)
        self.branch3x3dbl_1 = _one(c, 64, kw)
        self.branch3x3dbl_2 = _same(64, 96, (3, 3), kw)
        self.branch3x3dbl_3 = _same(96, 96, (3, 3), kw)
        self.branch_pool = _one(c, pooled, kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return _joined(
            self.branch1x1(x),
            _through(x, (self.branch5x5_1, self.branch5x5_2)),
            _through(x, (self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3)),
            self.branch_pool(_average(x)),
        )


class MixedB(nnx.Module):
    """From 35x35 to 17x17. (b,h,w,c) -> (b,h/2,w/2,480+c)."""

    def __init__(self, c: int, kw: LayerArgs) -> None:
        self.branch3x3 = _halving(c, 384, kw)
        self.branch3x3dbl_1 = _one(c, 64, kw)
        self.branch3x3dbl_2 = _same(64, 96, (3, 3), kw)
        self.branch3x3dbl_3 = _halving(96, 96, kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        double = _through(x, (self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3))
        return _joined(self.branch3x3(x), double, _highest(x))


class MixedC(nnx.Module):
    """Blocks of 17x17. (b,h,w,c) -> (b,h,w,768)."""

    def __init__(self, c: int, inner: int, kw: LayerArgs) -> None:
        self.branch1x1 = _one(c, 192, kw)
        self.branch7x7_1 = _one(c, inner, kw)
        self.branch7x7_2 = _same(inner, inner, (1, 7), kw)
        self.branch7x7_3 = _same(inner, 192, (7, 1), kw)
        self.branch7x7dbl_1 = _one(c, inner, kw)
        self.branch7x7dbl_2 = _same(inner, inner, (7, 1), kw)
        self.branch7x7dbl_3 = _same(inner, inner, (1, 7), kw)
        self.branch7x7dbl_4 = _same(inner, inner, (7, 1), kw)
        self.branch7x7dbl_5 = _same(inner, 192, (1, 7), kw)
        self.branch_pool = _one(c, 192, kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        double = (
            self.branch7x7dbl_1,
            self.branch7x7dbl_2,
            self.branch7x7dbl_3,
            self.branch7x7dbl_4,
            self.branch7x7dbl_5,
        )
        return _joined(
            self.branch1x1(x),
            _through(x, (self.branch7x7_1, self.branch7x7_2, self.branch7x7_3)),
            _through(x, double),
            self.branch_pool(_average(x)),
        )


class MixedD(nnx.Module):
    """From 17x17 to 8x8. (b,h,w,c) -> (b,h/2,w/2,512+c)."""

    def __init__(self, c: int, kw: LayerArgs) -> None:
        self.branch3x3_1 = _one(c, 192, kw)
        self.branch3x3_2 = _halving(192, 320, kw)
        self.branch7x7x3_1 = _one(c, 192, kw)
        self.branch7x7x3_2 = _same(192, 192, (1, 7), kw)
        self.branch7x7x3_3 = _same(192, 192, (7, 1), kw)
        self.branch7x7x3_4 = _halving(192, 192, kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        long = (self.branch7x7x3_1, self.branch7x7x3_2, self.branch7x7x3_3, self.branch7x7x3_4)
        return _joined(_through(x, (self.branch3x3_1, self.branch3x3_2)), _through(x, long), _highest(x))


class MixedE(nnx.Module):
    """Blocks of 8x8. (b,h,w,c) -> (b,h,w,2048). highest: pools by the maximum, not the average."""

    def __init__(self, c: int, kw: LayerArgs, *, highest: bool) -> None:
        self.highest = highest
        self.branch1x1 = _one(c, 320, kw)
        self.branch3x3_1 = _one(c, 384, kw)
        self.branch3x3_2a = _same(384, 384, (1, 3), kw)
        self.branch3x3_2b = _same(384, 384, (3, 1), kw)
        self.branch3x3dbl_1 = _one(c, 448, kw)
        self.branch3x3dbl_2 = _same(448, 384, (3, 3), kw)
        self.branch3x3dbl_3a = _same(384, 384, (1, 3), kw)
        self.branch3x3dbl_3b = _same(384, 384, (3, 1), kw)
        self.branch_pool = _one(c, 192, kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        single = self.branch3x3_1(x)
        double = _through(x, (self.branch3x3dbl_1, self.branch3x3dbl_2))
        pooled = _highest(x, stride=1) if self.highest else _average(x)
        return _joined(
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        )


class InceptionV3(nnx.Module):
    """Pictures -> features. Without the classes, which FID and KID do not use."""

    def __init__(self, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        kw = LayerArgs(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.Conv2d_1a_3x3 = _halving(3, 32, kw)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, (3, 3), kw)
        self.Conv2d_2b_3x3 = _same(32, 64, (3, 3), kw)
        self.Conv2d_3b_1x1 = _one(64, 80, kw)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, (3, 3), kw)
        self.Mixed_5b = MixedA(192, 32, kw)
        self.Mixed_5c = MixedA(256, 64, kw)
        self.Mixed_5d = MixedA(288, 64, kw)
        self.Mixed_6a = MixedB(288, kw)
        self.Mixed_6b = MixedC(768, 128, kw)
        self.Mixed_6c = MixedC(768, 160, kw)
        self.Mixed_6d = MixedC(768, 160, kw)
        self.Mixed_6e = MixedC(768, 192, kw)
        self.Mixed_7a = MixedD(768, kw)
        self.Mixed_7b = MixedE(1280, kw, highest=False)
        self.Mixed_7c = MixedE(2048, kw, highest=True)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """pixels: (b,299,299,3), from -1 to 1. Returns (b,2048)."""
        x = _through(pixels, (self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3))
        x = _through(_highest(x), (self.Conv2d_3b_1x1, self.Conv2d_4a_3x3))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_highest(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(axis=(1, 2))
