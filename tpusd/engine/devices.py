"""The one place that maps a per-device function over devices.

`jax.pmap` is `jit(shard_map)` since JAX 0.8. Arguments are either the same on every device (weights, step bounds) or
carry a leading device axis. When JAX drops the name `pmap`, `Devices.lower` changes and nothing else does.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tpusd.engine.blueprint import ProgramSpec
from tpusd.engine.compiler_options import Options
from tpusd.engine.jax_settings import with_usual_settings
from tpusd.networks.target import compiling_for

AXIS = "device"
# What compilers say of an option that they do not know, of its value, and where it leaves too little vector memory.
OPTION_FAULTS = ("No such compile option", "not a valid enum value", "memory space vmem")


@dataclass(frozen=True)
class Program:
    """A compiled program over all devices. `fingerprint`: sha256 of what was handed to the compiler."""

    call: Callable[..., Any]  # of arrays, to a tree of arrays
    fingerprint: str


class Devices:
    """An ordered set of local devices and the two ways in which data lies on them."""

    def __init__(self, devices: Sequence[jax.Device]):
        self.devices = tuple(devices)
        mesh = Mesh(np.array(self.devices), (AXIS,))
        self.replicated = NamedSharding(mesh, PartitionSpec())  # the same array on each device, put there directly
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))

    def __len__(self) -> int:
        return len(self.devices)

    def compile(self, spec: ProgramSpec, *, check: Callable[[], object] = lambda: None) -> Program:
        """One call over all devices. In it, split arguments and all results have a leading device axis.

        check: called before the compiler, which may take minutes; may raise.
        """
        lowered = self.lower(spec)
        check()
        text = lowered.as_text() + "".join(f"{option}\n" for option in sorted(self.options(spec).items()))
        return Program(self.finish(spec, lowered), hashlib.sha256(text.encode()).hexdigest())

    @with_usual_settings
    def finish(
        self, spec: ProgramSpec, lowered: jax.stages.Lowered, more: Mapping[str, bool | str] | None = None
    ) -> jax.stages.Compiled:
        """Compiles with the source's options, or without them where this compiler cannot do with one. more: options
        that stay in either case."""
        options = self.options(spec)
        try:
            return lowered.compile(compiler_options=_for_jax({**options, **(more or {})}))
        except jax.errors.JaxRuntimeError as error:
            if not options or not any(fault in str(error) for fault in OPTION_FAULTS):
                raise
            return lowered.compile(compiler_options=_for_jax(more or {}))

    def options(self, spec: ProgramSpec) -> Options:
        """The options for these devices' compiler."""
        device = self.devices[0]
        return {**spec.options.get(device.platform, {}), **spec.options.get(device.device_kind, {})}

    @with_usual_settings
    def lower(self, spec: ProgramSpec) -> jax.stages.Lowered:
        """What `compile` hands to the compiler. The devices need not be there: those of a topology do."""
        n, shared = len(self), tuple(spec.shared)
        stacked = jax.tree.map(lambda s: jax.ShapeDtypeStruct((n, *s.shape), s.dtype), tuple(spec.split))
        mapped = jax.pmap(
            spec.function,
            axis_name=AXIS,
            in_axes=(None,) * len(shared) + (0,) * len(stacked),
            devices=self.devices,
            donate_argnums=tuple(len(shared) + i for i in spec.donate),
        )
        with compiling_for(self.devices[0]):
            lowered: jax.stages.Lowered = mapped.lower(*shared, *stacked)
        return lowered

    def put_shared(self, tree: Any) -> Any:
        """Places every array of a tree (a pytree of any kind, hence Any) on each device."""
        return jax.device_put(tree, self.replicated)

    def put_split(self, tree: Any) -> Any:
        """Splits the leading axis, devices x per device, of every array over the devices: (n*b,...) -> (n,b,...)."""
        n = len(self)
        return jax.device_put(jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), tree), self._split)

    def zeros(self, shape: jax.ShapeDtypeStruct) -> jax.Array:
        """Zeros of a program's split argument, made on the devices. shape: on one device."""
        return jnp.zeros((len(self), *shape.shape), shape.dtype, device=self._split)


def _for_jax(options: Options) -> dict[str, str | bool] | None:
    """JAX passes whole numbers and fractions on too, although its type does not say so. None: no options."""
    return dict(options) or None  # type: ignore[arg-type]


def gather(tree: Any) -> Any:
    """The inverse of `put_split`, to the host: (n,b,...) -> NumPy (n*b,...). Waits for the devices."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)
