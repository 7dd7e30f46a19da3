"""Strict filling (contract 5): every stored tensor used or ignored for a reason, every parameter filled exactly once.

The type of the module that receives a leaf (Linear, Conv, norm, Embed) says how its axes are arranged, never the leaf's
shape or name; an OwnParam is stored as it is. Knows no files and no network in particular.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.typing import Key
from jax.typing import DTypeLike

from tpusd.checkpoints.formats.safetensors import FLOATS, TensorInfo, TensorSource
from tpusd.checkpoints.names import Naming, destination_name, ignored_reason
from tpusd.errors import UserError, show
from tpusd.networks.layers import GroupNorm, OwnParam

MAX_SHOWN = 8  # faults of one kind that an error lists; it counts the rest
# Module type -> {our leaf: PyTorch's leaf}.
_LEAVES = {
    nnx.Linear: {"kernel": "weight", "bias": "bias"},
    nnx.Conv: {"kernel": "weight", "bias": "bias"},
    GroupNorm: {"scale": "weight", "bias": "bias"},
    nnx.LayerNorm: {"scale": "weight", "bias": "bias"},
    nnx.Embed: {"embedding": "weight"},
}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of the abstract model: where it is, what it belongs to, and its shape in our layout."""

    path: tuple[Key, ...]  # as in nnx.State
    module: type  # a key of _LEAVES, or OwnParam for a parameter that is of no layer
    leaf: str
    shape: tuple[int, ...]

    def stored_shapes(self, layout: str) -> tuple[tuple[int, ...], ...]:
        """The shapes in which a file may hold it.

        A linear layer and a 1x1 convolution are the same arithmetic, and published files have either for the other.
        """
        if self.leaf != "kernel":
            return (self.shape,)
        if self.module is nnx.Linear:
            i, o = self.shape
            return ((o, i), (o, i, 1, 1)) if layout == "torch" else ((i, o), (1, 1, i, o))
        h, w, i, o = self.shape
        one = h == w == 1
        if layout == "torch":
            return ((o, i, h, w), (o, i)) if one else ((o, i, h, w),)
        return ((h, w, i, o), (i, o)) if one else ((h, w, i, o),)

    def arrange(self, stored: np.ndarray, layout: str) -> np.ndarray:
        """The stored array in our layout: a view if possible."""
        if self.leaf == "kernel" and layout == "torch":
            if stored.ndim == 4:
                stored = stored.transpose(2, 3, 1, 0)  # (o,i,h,w) -> (h,w,i,o)
            else:
                stored = stored.T
        return stored.reshape(self.shape)

    def to_torch(self, ours: np.ndarray) -> np.ndarray:
        """Our array in PyTorch's layout: the inverse of `arrange`."""
        if self.leaf != "kernel":
            return ours
        return ours.T if self.module is nnx.Linear else ours.transpose(3, 2, 0, 1)


def parameters(model: nnx.Module) -> dict[str, Parameter]:
    """Every parameter of an (abstract) model by its PyTorch name."""
    found = {}
    for path, module in nnx.iter_modules(model):
        for leaf, torch_leaf in _LEAVES.get(type(module), {}).items():
            value = getattr(module, leaf)
            if value is not None:
                name = ".".join(map(str, (*path, torch_leaf)))
                shape = tuple(value.get_value().shape)
                found[name] = Parameter(path=(*path, leaf), module=type(module), leaf=leaf, shape=shape)
        for leaf, value in vars(module).items():
            if isinstance(value, OwnParam):
                name, shape = ".".join(map(str, (*path, leaf))), tuple(value.get_value().shape)
                found[name] = Parameter(path=(*path, leaf), module=OwnParam, leaf=leaf, shape=shape)
    unknown = {path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))} - {p.path for p in found.values()}
    assert not unknown, f"parameters of a module type without a rule: {unknown}"
    return found


def match(
    component: Naming,
    layout: str,
    tensors: Mapping[str, TensorInfo],
    wanted: Mapping[str, Parameter],
    where: str,
) -> dict[str, str]:
    """Finds the stored tensor of every parameter: parameter name -> stored name, one to one.

    component: says which names are renamed and which tensors are ignored.
    layout: "torch" or "flax", as a TensorSource has it.
    tensors: what the files hold.
    wanted: what the model needs, by PyTorch name.
    where: the file, as the error begins with it.

    Raises one UserError that lists everything that is wrong.
    """
    chosen: dict[str, str] = {}
    unknown, twice, shapes, dtypes = [], [], [], []
    for stored, info in tensors.items():
        if ignored_reason(component, stored) is not None:
            continue
        name = destination_name(component, layout, stored)
        if name not in wanted:
            unknown.append(f"{show(stored)} {show(info.shape)}")
            continue
        if name in chosen:
            twice.append(f"{show(stored)} and {show(chosen[name])}")
            continue
        chosen[name] = stored
        if info.shape not in (fits := wanted[name].stored_shapes(layout)):
            shapes.append(f"{show(stored)} {show(info.shape)}, the config asks for {' or '.join(map(str, fits))}")
        elif info.dtype not in FLOATS:
            dtypes.append(f"{show(stored)} {show(info.dtype)}")
    missing = [f"{name} {wanted[name].stored_shapes(layout)[0]}" for name in wanted if name not in chosen]
    faults = (
        ("missing", missing),
        ("that the model of config.json does not have", unknown),
        ("of another shape", shapes),
        ("stored twice", twice),
        (f"of a type other than {', '.join(FLOATS)}", dtypes),
    )
    if any(rows for _, rows in faults):
        lines = "; ".join(listed(kind, rows) for kind, rows in faults if rows)
        raise UserError(f"{where}: the weights do not fit: {lines}; get the checkpoint again, or edit its config.json")
    return chosen


def listed(kind: str, rows: list[str], most: int = MAX_SHOWN) -> str:
    """The faults of one kind, for an error line, which names `most` of them."""
    if not most:
        return f"{len(rows)} {kind}"
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return f"{len(rows)} {kind}: {', '.join(rows[:most])}{more}"


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A model and the stored tensors that fill it, which are not read yet.

    model: abstract (shapes only).
    source: the stored tensors.
    wanted: every parameter of the model, by PyTorch name.
    chosen: parameter name -> stored name.
    where: the file, as an error begins with it.
    """

    model: nnx.Module
    source: TensorSource
    wanted: Mapping[str, Parameter]
    chosen: Mapping[str, str]
    where: str

    @classmethod
    def of(cls, model: nnx.Module, component: Naming, source: TensorSource, where: str) -> "Matched":
        """component: says which names are renamed and which tensors are ignored. Raises UserError; see `match`."""
        wanted = parameters(model)
        chosen = match(component, source.layout, source.tensors, wanted, where)
        return cls(model=model, source=source, wanted=wanted, chosen=chosen, where=where)


def fill(matched: Matched, *, dtype: DTypeLike, sharding: jax.sharding.Sharding | None = None) -> nnx.State[Any, Any]:
    """The model's state, filled with the source's values. Host memory holds two tensors at most.

    dtype: of every parameter.
    sharding: as in jax.device_put; None: the default device.

    Raises UserError if a value does not fit `dtype`.
    """
    wanted, chosen, source, where = matched.wanted, matched.chosen, matched.source, matched.where
    state = nnx.state(matched.model, nnx.Param)
    variables = dict(nnx.to_flat_state(state))
    previous = None
    for name, stored in sorted(chosen.items(), key=lambda item: (str(source.tensors[item[1]].file), item[1])):
        parameter = wanted[name]
        array = cast(parameter.arrange(source.read(stored), source.layout), np.dtype(dtype), f"{where}: {name}")
        placed = jax.device_put(array, sharding)
        if previous is not None:
            previous.block_until_ready()  # else all tensors may be in host memory at once, waiting for the devices
        previous = placed
        variables[parameter.path].set_value(placed)
    return state


def cast(array: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    """The array as `dtype`, contiguous. Raises UserError (its line begins with `where`) if a value overflows."""
    with np.errstate(over="raise"):
        try:
            return np.ascontiguousarray(array, dtype=dtype)
        except FloatingPointError:
            raise UserError(f"{where}: a value does not fit {dtype}; choose precision=bf16 or precision=fp32") from None
