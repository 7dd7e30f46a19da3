import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tpusd.models.layers import group_norm, layer_norm


def normed(x: np.ndarray, groups: int, epsilon: float) -> np.ndarray:
    """x (b,h,w,c) in float64, by the definition."""
    b, h, w, c = x.shape
    grouped = x.reshape(b, h * w, groups, c // groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)


# Mean over deviation, and what the output may be off by: its own rounding, with a little for the input's.
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
    out = np.asarray(layer_norm(12, 1e-5, **kw)(x), np.float64)
    rows = exact.reshape(-1, 1, 1, 12)
    np.testing.assert_allclose(out, normed(rows, 1, 1e-5).reshape(x.shape), atol=bound)
