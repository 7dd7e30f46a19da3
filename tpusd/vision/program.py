"""A network as one compiled program over some devices: rows in, rows out, the last batch padded.

Arithmetic is float32 with full products on every device: a score and a decision must not depend on a chip's usual
precision, and the towers are small beside what makes the pictures.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from tpusd.checkpoints.fill import Matched, fill
from tpusd.engine.blueprint import ProgramSpec, leaves
from tpusd.engine.devices import Devices, Program, gather
from tpusd.engine.jax_settings import with_usual_settings

_Tree = TypeVar("_Tree")


class BatchProgram:
    """Reads the weights when it is made, and compiles with its first batch."""

    @with_usual_settings
    def __init__(
        self,
        matched: Matched,
        call: Callable[[Any, jax.Array], Any],
        devices: Devices,
        *,
        batch_size_per_device: int,
    ):
        """matched: the network, and the tensors that fill it.
        call: of the network and a batch (b,...), to a pytree of arrays (b,...); is traced.
        batch_size_per_device: rows.

        Raises UserError.
        """
        graph, empty = nnx.split(matched.model)
        structure = jax.tree.structure(empty)

        def function(weights: tuple[Any, ...], rows: jax.Array) -> Any:
            return call(nnx.merge(graph, jax.tree.unflatten(structure, weights)), rows)

        self._function, self._devices, self._per_device = function, devices, batch_size_per_device
        self._program: Program | None = None
        self.weights = leaves(fill(matched, dtype=np.float32, sharding=devices.replicated))

    @property
    def batch_size(self) -> int:
        """Rows of a full batch."""
        return self._per_device * len(self._devices)

    def __call__(self, rows: Iterable[np.ndarray]) -> Iterator[Any]:
        """The results of each batch, as pytrees of NumPy arrays (rows,...). rows: of one shape and type."""
        remaining = iter(rows)
        while batch := list(islice(remaining, self.batch_size)):
            padded = np.stack([*batch, *[batch[-1]] * (self.batch_size - len(batch))])
            yield _first(self._call(padded), len(batch))

    @with_usual_settings
    def _call(self, rows: np.ndarray) -> Any:
        if self._program is None:
            split = jax.ShapeDtypeStruct((self._per_device, *rows.shape[1:]), rows.dtype)
            shared = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.weights)
            with jax.default_matmul_precision("highest"):
                self._program = self._devices.compile(
                    ProgramSpec(function=self._function, shared=(shared,), split=(split,))
                )
        return gather(self._program.call(self.weights, self._devices.put_split(rows)))


def _first(tree: _Tree, number: int) -> _Tree:
    """The first rows of every array of a pytree."""
    first: _Tree = jax.tree.map(lambda x: x[:number], tree)
    return first
