"""Networks as shapes only: what a checkpoint must fill, and what a compiler needs."""

from typing import Protocol, TypeVar, cast

import jax
from flax import nnx
from jax.typing import DTypeLike

_Config = TypeVar("_Config", contravariant=True)
_Network = TypeVar("_Network", bound=nnx.Module, covariant=True)


class _Constructor(Protocol[_Config, _Network]):
    """A class of networks, as its constructor is called."""

    def __call__(self, config: _Config, /, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> _Network: ...


class _OneKey:
    """Replaces nnx.Rngs where no random number is drawn. Its counters make the time quadratic in the layers."""

    def params(self) -> jax.Array:
        """The same key for every parameter."""
        return jax.random.key(0)


def abstract_model(
    cls: _Constructor[_Config, _Network], config: _Config, *, dtype: DTypeLike, param_dtype: DTypeLike
) -> _Network:
    """Builds `cls(config)` with a jax.ShapeDtypeStruct for each parameter; allocates nothing.

    SDXL's UNet takes about a second.
    """

    def build() -> _Network:
        rngs = cast(nnx.Rngs, _OneKey())  # the layers of the networks call only params()
        return cls(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    return nnx.eval_shape(build)
