import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tpusd.networks import unet, vae
from tpusd.networks.attention import cpu, cudnn, plain, tpu
from tpusd.networks.attention.dispatch import dot_product_attention
from tpusd.networks.layers import gelu, group_norm, layer_norm
from tpusd.networks.target import V5E, V5P, V6E, compiling_for

GPU = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100")
TPU = SimpleNamespace(platform="tpu", device_kind=V5E)


def normed(x: np.ndarray, groups: int, epsilon: float) -> np.ndarray:
    """x (b,h,w,c) in float64, by the definition."""
    b, h, w, c = x.shape
    grouped = x.reshape(b, h * w, groups, c // groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)


# Mean over deviation, and what the output may be off by: its own rounding, with a little for the input's.
@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "ratio", "bound"), [("float32", 1000, 2e-3), ("bfloat16", 30, 0.02), ("float16", 100, 0.01)]
)
def test_norms_keep_their_digits_where_the_mean_is_large(dtype, ratio, bound):
    kw = dict(dtype=jnp.dtype(dtype), param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 17, 19, 12)) + ratio * np.array([1, -1])[:, None, None, None]
    x = jnp.asarray(x, dtype)
    exact = np.asarray(x, np.float64)  # the values as they come in: their own rounding is not the norm's
    out = np.asarray(group_norm(12, 3, 1e-5, **kw)(x), np.float64)
    np.testing.assert_allclose(out, normed(exact, 3, 1e-5), atol=bound)
    parts = group_norm(12, 3, 1e-5, **kw)(x[..., :5], x[..., 5:])  # a group may lie in two parts
    np.testing.assert_allclose(np.asarray(parts, np.float64), normed(exact, 3, 1e-5), atol=bound)
    out = np.asarray(layer_norm(12, 1e-5, **kw)(x), np.float64)
    rows = exact.reshape(-1, 1, 1, 12)
    np.testing.assert_allclose(out, normed(rows, 1, 1e-5).reshape(x.shape), atol=bound)


# The logistic form is within 2.6e-5; what is more is the rounding of the result, half a unit of the last place.
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "unit"), [("float32", 2**-21), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_gelu_is_x_times_the_normal_distribution_function(dtype, unit):
    x = jnp.asarray(np.linspace(-12, 12, 20001), dtype)
    exact = np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in np.float64(x)])
    off = np.abs(np.float64(gelu(x)) - exact)
    assert (off <= (1e-6 if dtype == "float32" else 2.6e-5) + unit * np.abs(exact)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "layer", "batch", "size", "transposed"),
    [
        (V5E, unet.Upsample2D, 16, (10, 14), True),
        (V5E, unet.Upsample2D, 16, (9, 14), False),
        (V5E, unet.Upsample2D, 8, (10, 14), False),
        (V6E, unet.Upsample2D, 16, (10, 14), False),
        (V5E, vae.Upsample2D, 1, (), True),
        (V5P, vae.Upsample2D, 1, (), True),
        ("TPU v4", vae.Upsample2D, 1, (), False),
    ],
)
def test_upsampling_is_a_transposed_convolution_where_that_is_faster(kind, layer, batch, size, transposed):
    up = layer(6, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    up.conv.bias[...] = jnp.arange(6.0)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((batch, 5, 7, 6)), jnp.float32)
    with compiling_for(SimpleNamespace(platform="tpu", device_kind=kind)):
        assert ("lhs_dilation=(2, 2)" in str(jax.make_jaxpr(lambda x: up(x, *size))(x))) == transposed
        out = up(x, *size)
    np.testing.assert_allclose(out, up(x, *size), atol=1e-5)  # here there is no TPU


def attention_inputs(b: int, q: int, k: int, n: int, d: int, dtype) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(2 * rng.standard_normal((b, length, n, d)), dtype) for length in (q, k, k))


def exact_attention(query, key, value) -> np.ndarray:
    """In float64, by the definition."""
    query, key, value = (np.float64(x) for x in (query, key, value))
    scores = np.einsum("bqnd,bknd->bnqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bnqk,bknd->bqnd", weights, value)


# Heads of SD 1.x; lengths of one block and of several, in whole tiles, and which 1024 does not divide (SD 2.1 at 768
# pixels); and a text's.
@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("q", "k", "d"), [(256, 256, 40), (384, 1280, 160), (2304, 2304, 8), (1024, 77, 40)])
def test_tpu_kernel_is_attention(q, k, d):
    query, key, value = attention_inputs(1, q, k, 3, d, jnp.bfloat16)
    with compiling_for(TPU):
        assert tpu.suits(query.shape, key.shape, query.dtype)
    exact = exact_attention(query, key, value)
    # Two roundings to the dtype, of the weights and of the result, each by half a unit of the last place.
    bound = 2 * 2**-8 * np.abs(exact).max()
    np.testing.assert_allclose(np.float64(tpu.attend(query, key, value, interpret=True)), exact, atol=bound)


# Heads together; one after the other; and in pieces of their queries, also where 1024 does not divide them.
@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("q", "k", "d"), [(256, 77, 40), (1024, 1024, 8), (1900, 1024, 4)])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-6), ("bfloat16", 3 * 2**-8)])
def test_cpu_attention_is_attention(q, k, d, dtype, bound):
    inputs = attention_inputs(2, q, k, 3, d, jnp.dtype(dtype))
    exact = exact_attention(*inputs)
    for attention in (cpu.attend, dot_product_attention):  # the latter takes the former here
        np.testing.assert_allclose(np.float64(attention(*inputs)), exact, atol=bound * np.abs(exact).max())


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("platform", "kind"), [("gpu", "NVIDIA H100"), ("tpu", "TPU v2")])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-6), ("bfloat16", 2 * 2**-8)])
@pytest.mark.parametrize(
    ("limits", "queries"), [({}, 96), ({"MAX_SCORES_OF_HEAD": 4096}, 48), ({"MAX_SCORES": 8192}, 16)]
)
def test_attention_elsewhere_is_attention(platform, kind, dtype, bound, limits, queries, monkeypatch):
    """GPUs, and TPUs without the kernel: queries in pieces where a head's scores, or all of them, are too many."""
    inputs = attention_inputs(2, 96, 77, 3, 8, jnp.dtype(dtype))
    exact = exact_attention(*inputs)
    for name, most in limits.items():
        monkeypatch.setattr(plain, name, most)
    with compiling_for(SimpleNamespace(platform=platform, device_kind=kind)):
        lowered = jax.jit(lambda *x: dot_product_attention(*x)).lower(*inputs)  # a new function: JAX keeps traces
    assert max(map(int, re.findall(r"tensor<2x3x(\d+)x77xf32>", lowered.as_text()))) == queries
    np.testing.assert_allclose(np.float64(lowered.compile()(*inputs)), exact, atol=bound * np.abs(exact).max())


def _raises(*inputs):
    raise NotImplementedError("The head dim must be <= 128 and a multiple of 8, but got 512.")


def _attends(query, key, value):
    scores = jnp.einsum("bqnd,bknd->bnqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores / math.sqrt(query.shape[-1])).astype(value.dtype)
    return jnp.einsum("bnqk,bknd->bqnd", weights, value)


def _forgets_the_scale(query, key, value):
    return _attends(query * math.sqrt(query.shape[-1]), key, value)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "used"), [(_raises, False), (_forgets_the_scale, False), (_attends, True)])
def test_gpu_kernel_is_used_where_a_trial_agrees(kernel, used, monkeypatch):
    """There is no GPU here: the kernel's place is taken by others. Their trial leaves nothing in the program."""
    calls = []
    monkeypatch.setattr(cudnn, "_gpu", lambda: jax.devices()[0])
    monkeypatch.setattr(cudnn, "attend", lambda *qkv: calls.append(qkv[0].shape) or kernel(*qkv))
    cudnn._tried.cache_clear()
    inputs = attention_inputs(2, 160, 77, 3, 8, jnp.bfloat16)
    with compiling_for(GPU):
        out = [jax.jit(lambda *qkv: dot_product_attention(*qkv))(*inputs) for _ in range(2)]
    cudnn._tried.cache_clear()
    assert calls == [(1, 160, 3, 8), *[(2, 160, 3, 8)] * 2 * used]  # tried once
    exact = exact_attention(*inputs)
    for each in out:
        np.testing.assert_allclose(np.float64(each), exact, atol=2 * 2**-8 * np.abs(exact).max())


def test_gpu_kernel_is_not_used_without_a_gpu_or_in_float32(monkeypatch):
    like = (2, 256, 8, 40)
    cudnn._tried.cache_clear()
    with compiling_for(GPU):
        assert not cudnn.suits(like, like, jnp.bfloat16)  # the trial finds no GPU
    monkeypatch.setattr(cudnn, "_tried", lambda *shapes: True)
    with compiling_for(GPU):
        assert cudnn.suits(like, like, jnp.bfloat16) and not cudnn.suits(like, like, jnp.float32)
    assert not cudnn.suits(like, like, jnp.bfloat16)  # this process's own devices are CPUs


def test_tpu_kernel_is_not_for_few_scores_or_odd_lengths():
    like = (2, 256, 8, 40)
    with compiling_for(TPU):
        assert tpu.suits(like, like, jnp.bfloat16)
        assert not tpu.suits(like, (2, 77, 8, 40), jnp.bfloat16)
        assert not tpu.suits((2, 300, 8, 40), (2, 300, 8, 40), jnp.bfloat16)
        assert not tpu.suits(like, like, jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "kind", "kernel"), [("tpu", "TPU v5 lite", True), ("tpu", "TPU v2", False), ("cpu", "cpu", False)]
)
def test_kernel_is_for_the_devices_that_are_compiled_for(platform, kind, kernel):
    like = jnp.zeros((1, 256, 2, 40), jnp.bfloat16)
    with compiling_for(SimpleNamespace(platform=platform, device_kind=kind)):
        traced = str(jax.make_jaxpr(lambda x: dot_product_attention(x, x, x))(like))
    assert ("pallas_call" in traced) == kernel
    assert "pallas_call" not in str(jax.make_jaxpr(lambda x: dot_product_attention(x, x, x))(like))
