"""A LoRA file, opened and fitted to a model: each tensor has its layer, or one error lists all that has none.

Reads names and shapes alone; `Lora.read` brings a layer's tensors into memory. Knows no devices.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from tpusd.checkpoints.adapters.aliases import Layer, layer_aliases
from tpusd.checkpoints.adapters.base_model import base_model
from tpusd.checkpoints.adapters.keys import ALPHA, BIAS, DIFF, StoredLayer, stored_layers
from tpusd.checkpoints.adapters.kinds import KINDS, Kind, find_kind, fits
from tpusd.checkpoints.adapters.scaling import AdapterScaling, read_scaling
from tpusd.checkpoints.adapters.source import AdapterFile
from tpusd.checkpoints.architecture import Architecture
from tpusd.checkpoints.fill import Parameter, listed, parameters
from tpusd.checkpoints.formats.safetensors import FLOATS, Safetensors
from tpusd.errors import UserError, show

_ROOM = 1 << 22  # values that a tensor may have however small its weight is: ranks of small layers may be large
_TIMES = 4  # a tensor has at most as many times the values of its weight, and the file those of the model
_MAX_NAMED = 3  # tensors that do not fit and that an error line names
_MAX_NAME = 160  # characters of a stored name in an error line
_FULL = next(kind for kind in KINDS if kind.name == "full")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a file does to one parameter.

    part: of the model.
    parameter: which one, in our layout.
    kind: of the difference.
    tensors: role -> stored name.
    factor: alpha / rank.
    """

    part: str
    parameter: Parameter
    kind: Kind
    tensors: Mapping[str, str]
    factor: float


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A file that fits a model."""

    file: AdapterFile
    source: Safetensors
    differences: tuple[Difference, ...]
    base: str | None  # the model that it was made for, where the file tells
    notes: tuple[str, ...] = ()  # what the user should know, a line each

    def read(self, difference: Difference) -> dict[str, np.ndarray]:
        """Role -> tensor as the file holds it. Raises UserError for NaN and infinity."""
        tensors = {}
        for role, name in difference.tensors.items():
            tensor = tensors[role] = self.source.read(name)
            if not np.isfinite(tensor.astype(np.float32)).all():
                raise UserError(f"{self.file.where}: {show(name, _MAX_NAME)} has NaN or infinity; get the file again")
        return tensors


@dataclass(kw_only=True)
class _Faults:
    """What does not fit, a line for each."""

    unknown: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    large: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A line for each kind with their number; the first few are named."""
        kinds = (  # with the tensors that a row names, roughly
            ("for which the model has no layer", self.unknown, 1),
            ("for a layer that has another", self.twice, 2),
            ("of a layer whose tensors are incomplete, or of a kind that is not implemented", self.incomplete, 1),
            ("of another shape", self.shapes, 3),
            ("larger than the weight that it changes", self.large, 1),
            (f"of a type other than {', '.join(FLOATS)}", self.dtypes, 1),
        )
        lines, left = [], _MAX_NAMED
        for kind, rows, size in kinds:
            if rows:
                most = min(left // size, len(rows))
                left -= most * size
                lines.append(listed(kind, rows, most))
        return lines


def open_lora(file: AdapterFile, architecture: Architecture, model_name: str) -> Lora:
    """Fits a file to a model by names and shapes. Raises one UserError that lists all that does not fit.

    model_name: as an error names the model.
    """
    source = Safetensors((file.path,))
    wanted = {part: parameters(architecture.abstract(part)) for part in _changed_parts(architecture)}
    paths = {part: list(dict.fromkeys(name.rpartition(".")[0] for name in own)) for part, own in wanted.items()}
    aliases = layer_aliases(architecture.family, paths)
    layers, unknown = stored_layers(source.tensors)
    shapes = {name: info.shape for name, info in source.tensors.items()}
    faults = _Faults(unknown=[_shown(name, shapes) for name in unknown])
    _check_types(source, faults)
    total, limit = sum(map(math.prod, shapes.values())), _TIMES * _num_values(wanted) + _ROOM
    if total > limit:
        raise UserError(f"{file.where}: has {total} values, and {limit} is the most for this model; get the file again")
    scaling = read_scaling(source.metadata, file.where)
    taken: dict[Layer, str] = {}
    differences: list[Difference] = []
    for name, stored in layers.items():
        faults.twice += [_shown(tensor, shapes) for tensor in stored.twice]
        layer = aliases.get(name)
        if layer is None:
            faults.unknown += [_shown(tensor, shapes) for tensor in stored.roles.values()]
        elif layer in taken:
            faults.twice.append(f"{show(name)} and {show(taken[layer])}")
        else:
            taken[layer] = name
            differences += _fitted(stored, layer, wanted[layer[0]], shapes, faults)
    base = base_model(source.metadata, shapes)
    if lines := faults.lines():
        made_for = "" if base is None else f" (it was made for {base})"
        raise UserError(
            f"{file.where}: does not fit model={show(model_name)}{made_for}; choose a LoRA for this model, or the "
            f"model that it was made for: {'; '.join(lines)}"
        )
    if not differences:
        raise UserError(f"{file.where}: changes no weight; it is not a LoRA")
    made = tuple(_scaled(each, source, shapes, scaling, file.where) for each in differences)
    return Lora(file=file, source=source, differences=made, base=base, notes=tuple(_notes(file, shapes, scaling)))


def _notes(file: AdapterFile, names: Iterable[str], scaling: AdapterScaling) -> Iterator[str]:
    names = list(names)
    has_alpha = bool(scaling.values) or any(name.endswith(".alpha") for name in names)
    if not has_alpha and any(name.startswith("base_model.") for name in names):
        yield (
            f"{file.where}: peft keeps alpha in adapter_config.json, which is not read: if lora_alpha and r differ "
            "there, multiply the scales by lora_alpha / r"
        )


def _changed_parts(architecture: Architecture) -> tuple[str, ...]:
    family = architecture.family
    return (*family.parts("encode"), *family.parts("denoise"))


def _num_values(wanted: Mapping[str, Mapping[str, Parameter]]) -> int:
    return sum(math.prod(parameter.shape) for own in wanted.values() for parameter in own.values())


def _check_types(source: Safetensors, faults: _Faults) -> None:
    faults.dtypes += [f"{show(n)} {show(info.dtype)}" for n, info in source.tensors.items() if info.dtype not in FLOATS]


def _fitted(
    stored: StoredLayer,
    layer: Layer,
    wanted: Mapping[str, Parameter],
    shapes: Mapping[str, tuple[int, ...]],
    faults: _Faults,
) -> list[Difference]:
    """The differences to a layer's weight and bias, with a factor of 1; what does not fit goes to `faults`.

    layer: which one.
    wanted: the parameters of its part, by PyTorch name.
    shapes: stored name -> shape.
    """
    part, path = layer
    roles = dict(stored.roles)
    bias, alpha = roles.pop(BIAS, None), roles.pop(ALPHA, None)
    plans: list[tuple[str, Kind, dict[str, str]]] = []
    if bias is not None:
        plans.append(("bias", _FULL, {DIFF: bias}))
    if roles or bias is None:
        kind = find_kind(frozenset(roles))
        if kind is None:
            names = [*roles.values(), *([] if alpha is None else [alpha])]
            faults.incomplete += [_shown(name, shapes) for name in names]
        else:
            plans.append(("weight", kind, roles))
    found = []
    for leaf, kind, tensors in plans:
        parameter = wanted.get(f"{path}.{leaf}")
        if parameter is None:
            faults.unknown += [_shown(name, shapes) for name in tensors.values()]
            continue
        target = parameter.stored_shapes("torch")[0]
        room = max(_ROOM, _TIMES * math.prod(target))
        large = [_shown(name, shapes) for name in tensors.values() if math.prod(shapes[name]) > room]
        if large:
            faults.large += large
        elif not fits(kind, {role: shapes[name] for role, name in tensors.items()}, target):
            listed = ", ".join(_shown(name, shapes) for name in tensors.values())
            faults.shapes.append(f"{listed}, and the weight is {target}")
        elif alpha is not None and math.prod(shapes[alpha]) != 1:
            faults.shapes.append(f"{_shown(alpha, shapes)}, and alpha is one number")
        else:
            own = tensors if alpha is None or leaf == "bias" else {**tensors, ALPHA: alpha}
            found.append(Difference(part=part, parameter=parameter, kind=kind, tensors=own, factor=1.0))
    return found


def _scaled(
    difference: Difference,
    source: Safetensors,
    shapes: Mapping[str, tuple[int, ...]],
    scaling: AdapterScaling,
    where: str,
) -> Difference:
    """The difference with its factor, alpha / rank, and without the tensor that holds alpha. Raises UserError."""
    tensors = dict(difference.tensors)
    stored = tensors.pop(ALPHA, None)
    rank = next((shapes[tensors[role]][0] for role in difference.kind.rank if role in tensors), None)
    factor = 1.0
    if rank is not None and stored is not None:
        factor = float(source.read(stored).astype(np.float64).reshape(())) / rank
        if not math.isfinite(factor):
            raise UserError(f"{where}: {show(stored, _MAX_NAME)} has NaN or infinity; get the file again")
    elif rank is not None:
        factor = scaling.factor(difference.part, _path(difference.parameter), rank)
    return Difference(
        part=difference.part, parameter=difference.parameter, kind=difference.kind, tensors=tensors, factor=factor
    )


def _path(parameter: Parameter) -> str:
    return ".".join(map(str, parameter.path[:-1]))


def _shown(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f"{show(name, _MAX_NAME)} {show(shapes[name])}"
