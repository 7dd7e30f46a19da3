"""Every parameter as tpusd reads it and as PyTorch has it, compared by name, one at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from tpusd.checkpoints import Checkpoint, match_weights
from tpusd.checkpoints.fill import Matched, cast
from tpusd.checkpoints.names import destination_name, ignored_reason
from tpusd.families.base import Component
from tpusd.verify.compare import EQUAL, Stage, stage

if TYPE_CHECKING:
    import torch

ONLY_OURS, ONLY_THEIRS = "only in tpusd's model", "only in the reference's model"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """number: of parameters that were compared. different: those that are not equal. alone: what one side has."""

    number: int
    different: tuple[Stage, ...]
    alone: Mapping[str, str]

    @property
    def first(self) -> str | None:
        """The first parameter that differs; None: all are equal."""
        return next(iter([*(one.name for one in self.different), *self.alone]), None)


def compare_weights(checkpoint: Checkpoint, modules: Mapping[str, "torch.nn.Module"]) -> Weights:
    """modules: part -> the network in PyTorch, in float32. Raises UserError where our own do not fit."""
    number, different, alone = 0, [], {}
    for part, component in checkpoint.family.components.items():
        matched = match_weights(checkpoint, part, param_dtype=jnp.float32)
        theirs = _named(component, modules[part].state_dict())
        for name in matched.wanted:
            if name not in theirs:
                alone[f"{part}.{name}"] = ONLY_OURS
                continue
            number += 1
            found = stage(f"{part}.{name}", *_pair(matched, name, theirs.pop(name)), EQUAL)
            if not found.same:
                different.append(found)
        alone |= {f"{part}.{name}": ONLY_THEIRS for name in theirs}
    return Weights(number=number, different=tuple(different), alone=alone)


def _named(component: Component, tensors: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """PyTorch's tensors by our names, without those that no network needs."""
    return dict(_rename(component, tensors))


def _rename(component: Component, tensors: Mapping[str, "torch.Tensor"]) -> Iterator[tuple[str, "torch.Tensor"]]:
    for name, tensor in tensors.items():
        if ignored_reason(component, name) is None:
            yield destination_name(component, "torch", name), tensor


def _pair(matched: Matched, name: str, tensor: "torch.Tensor") -> tuple[np.ndarray, np.ndarray]:
    """Our values in PyTorch's layout, and PyTorch's. A 1x1 convolution may be a linear layer there."""
    parameter, source = matched.wanted[name], matched.source
    stored = parameter.arrange(source.read(matched.chosen[name]), source.layout)
    ours = parameter.to_torch(cast(stored, np.dtype(np.float32), f"{matched.where}: {name}"))
    theirs: np.ndarray = tensor.detach().float().cpu().numpy()
    return (ours.reshape(theirs.shape) if ours.size == theirs.size else ours), theirs
