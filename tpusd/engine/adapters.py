"""LoRAs merged into weights on the devices, by a small program for each shape of weight and difference.

The weights as they were read stay on the devices, and so do the differences. Another scale is another argument of those
programs, so it reads nothing again and compiles nothing. Beside the weights there is one merged copy of those that the
LoRAs change.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tpusd.checkpoints import Checkpoint
from tpusd.checkpoints.adapters import Difference, Lora
from tpusd.checkpoints.adapters.kinds import KINDS, Kind, Tensors, changed
from tpusd.checkpoints.fill import Parameter
from tpusd.engine.blueprint import Leaves, leaves
from tpusd.engine.devices import Devices
from tpusd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScaledLora:
    """A LoRA and how strong it is, in the UNet and in the text encoders."""

    lora: Lora
    scale: float
    text_encoder_scale: float

    @property
    def key(self) -> tuple[str, float, float]:
        """What tells one merged copy of the weights from another."""
        return self.lora.file.sha256, self.scale, self.text_encoder_scale


@dataclass(frozen=True)
class _Step:
    """A difference that is on the devices."""

    kind: Kind
    tensors: Tensors
    factor: float


class MergedWeights:
    """The weights of one checkpoint with LoRAs. Keeps the copy that was asked for last."""

    def __init__(self, checkpoint: Checkpoint, devices: Devices, base: Callable[[str], Leaves]):
        """base: part -> its weights as they were read; may wait for them."""
        self._checkpoint, self._devices, self._base = checkpoint, devices, base
        self._key: tuple[tuple[str, float, float], ...] = ()
        self._merged: dict[str, Leaves] = {}
        self._steps: dict[str, dict[tuple[str, int], _Step]] = {}  # sha256 of a LoRA -> (part, leaf) -> difference
        self._known_positions: dict[str, Mapping[tuple[Any, ...], int]] = {}
        self._merge = jax.jit(
            merge, static_argnames=("kinds", "parameter"), out_shardings=(devices.replicated, devices.replicated)
        )

    def parts(self, loras: Sequence[ScaledLora]) -> Callable[[str], Leaves]:
        """Part -> its weights with these LoRAs, in order. Raises UserError where a merged value does not fit."""
        key = tuple(lora.key for lora in loras)
        if key != self._key:
            self._merged.clear()  # first, so that the devices need not hold two copies
            self._key = ()
            self._merged = self._merge_all(loras)
            self._key = key
        return lambda part: self._merged[part] if part in self._merged else self._base(part)

    def _merge_all(self, loras: Sequence[ScaledLora]) -> dict[str, Leaves]:
        named = {lora.lora.file.sha256 for lora in loras}
        self._steps = {sha256: steps for sha256, steps in self._steps.items() if sha256 in named}
        wanted: dict[tuple[str, int], tuple[Parameter, list[tuple[_Step, float]]]] = {}
        text = self._checkpoint.family.parts("encode")
        for scaled in loras:
            sha256 = scaled.lora.file.sha256
            if sha256 not in self._steps:
                self._steps[sha256] = {self._place(d): self._put(scaled.lora, d) for d in scaled.lora.differences}
            for difference in scaled.lora.differences:
                place = self._place(difference)
                scale = scaled.text_encoder_scale if difference.part in text else scaled.scale
                wanted.setdefault(place, (difference.parameter, []))[1].append((self._steps[sha256][place], scale))
        merged: dict[str, list[Any]] = {}
        finite = {}
        for (part, index), (parameter, steps) in wanted.items():
            own = merged.setdefault(part, list(self._base(part)))
            own[index], finite[part, index] = self._merge(
                own[index],
                tuple(step.tensors for step, _ in steps),
                np.array([step.factor for step, _ in steps], np.float32),
                np.array([scale for _, scale in steps], np.float32),
                kinds=tuple(step.kind.name for step, _ in steps),
                parameter=dataclasses.replace(parameter, path=()),
            )
        for (part, index), is_finite in jax.device_get(finite).items():
            if not is_finite:
                name, dtype = ".".join(map(str, wanted[part, index][0].path)), merged[part][index].dtype
                raise UserError(
                    f"loras: the merged {part}.{name} has values that do not fit {dtype}; choose a smaller scale, or "
                    "precision=bf16 or precision=fp32"
                )
        return {part: tuple(own) for part, own in merged.items()}

    def _put(self, lora: Lora, difference: Difference) -> _Step:
        tensors = jax.device_put(lora.read(difference), self._devices.replicated)
        return _Step(difference.kind, tensors, difference.factor)

    def _place(self, difference: Difference) -> tuple[str, int]:
        return difference.part, self._positions(difference.part)[difference.parameter.path]

    def _positions(self, part: str) -> Mapping[tuple[Any, ...], int]:
        """A parameter's path -> its place among the part's weights."""
        if part not in self._known_positions:
            state = nnx.state(self._checkpoint.abstract(part), nnx.Param)
            variables = list(dict(nnx.to_flat_state(state)).items())
            for number, (_, variable) in enumerate(variables):
                variable.set_value(number)
            order = {number: place for place, number in enumerate(leaves(state))}
            self._known_positions[part] = {path: order[number] for number, (path, _) in enumerate(variables)}
        return self._known_positions[part]


def merge(
    weight: jax.Array,
    tensors: tuple[Tensors, ...],
    factors: jax.Array,
    scales: jax.Array,
    *,
    kinds: tuple[str, ...],
    parameter: Parameter,
) -> tuple[jax.Array, jax.Array]:
    """A weight with differences, in its own type and layout, and whether it is finite. Computed in float32.

    tensors: of each difference.
    factors, scales: (n,) float32; see `changed`.
    kinds: the name of each difference's kind.
    parameter: which layout the weight has; its path does not matter.
    """
    by_name: dict[str, Kind] = {kind.name: kind for kind in KINDS}
    wide = cast(jax.Array, parameter.to_torch(cast(np.ndarray, weight.astype(jnp.float32))))
    for i, (name, own) in enumerate(zip(kinds, tensors, strict=True)):
        wide = changed(wide, by_name[name], own, factors[i], scales[i])
    made = cast(jax.Array, parameter.arrange(cast(np.ndarray, wide), "torch")).astype(weight.dtype)
    return made, jnp.isfinite(made).all()
