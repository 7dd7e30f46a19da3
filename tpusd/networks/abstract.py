"""Models as shapes only: what a checkpoint must fill, and what a compiler needs."""

import jax
from flax import nnx


class _OneKey:
    """Stands in for nnx.Rngs where no number is drawn: its counters make abstract construction quadratic."""

    def params(self):
        return jax.random.key(0)


def abstract_model(cls, config, *, dtype, param_dtype):
    """`cls(config)` with jax.ShapeDtypeStruct parameters: nothing is allocated, SDXL's UNet takes about a second."""
    return nnx.eval_shape(lambda: cls(config, dtype=dtype, param_dtype=param_dtype, rngs=_OneKey()))
