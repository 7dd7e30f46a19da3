"""Plain values, as YAML and JSON give them, to frozen dataclasses and back. The one reader of typed values.

A field's type hint says what it accepts. `Any` accepts all, and `Mapping[str, X]` a group with any names.
`Annotated` adds its range (`annotated_types`), a `Help` and an `Advice`.
Reading is strict: a whole number passes for a float, a list for a tuple, and nothing else is converted. It stops at the
first fault, so a hostile value costs no more than it takes to find that fault. Knows no field's meaning.
"""

import dataclasses
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NoReturn,
    Protocol,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from annotated_types import Interval, Len, MultipleOf

from tpusd.errors import UserError, show, suggest

WORDS: Mapping[object, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_KINDS = {
    "str": "text",
    "NoneType": "null",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number with a point",
    "dict": "a group",
    "list": "a list",
}


class DataclassInstance(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


_T = TypeVar("_T", bound=DataclassInstance)


@runtime_checkable
class ReadsItself(Protocol):
    """A class that is not read field by field: it has a rule of its own."""

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str) -> Any:
        """Plain values -> an instance. Raises UserError that begins with `where`."""

    def to_values(self) -> dict[str, Any]:
        """The inverse."""
        ...


class AlreadyRead:
    """A value that was checked before: `read` and `plain` give it as it is. YAML and JSON cannot hold one."""


@dataclass(frozen=True)
class Help:
    """What a field does, in one line. The option tables of docs/ are printed from it."""

    text: str


@dataclass(frozen=True)
class SavedIfSet:
    """A field that `plain` leaves out while it has its default, so that configs without it stay as they were."""


@dataclass(frozen=True)
class Advice:
    """What to do when a value is out of its range: the end of the error line."""

    text: str


def read(cls: type[_T], values: object, *, where: str = "", advice: str = "") -> _T:
    """Checks plain values and builds dataclass `cls` from them.

    cls: a dataclass whose fields are numbers, text, booleans, Literals, tuples, dataclasses, or one of these or None.
    values: a mapping from field name to value. A field that is not in it takes the dataclass's default.
    where: what each error line has before a field's name, such as `sampler.`.
    advice: the end of an error line that has no other advice.

    Raises UserError for the first thing that is wrong: an unknown key, a missing field, a wrong type, a value out of
    its range.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where.rstrip('.') or 'config'}={show(values)}: must be a group of fields, not one value")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise UserError(
                f"{where}{show(key)}={show(values[key])}: no such field"
                f"{suggest(str(key), fields) or '; the fields are ' + ', '.join(fields)}"
            )
    for name, field in fields.items():
        if name not in values and field_default(field) is dataclasses.MISSING:
            raise UserError(f"{where}{name}: missing; set {where}{name}=...")
    hints = field_hints(cls)
    return cls(
        **{name: read_value(hints[name], values[name], where + name, advice) for name in fields if name in values}
    )


def check_known(cls: type[DataclassInstance], values: Mapping[str, Any], where: str = "") -> None:
    """Checks the values of those fields of `cls` that are there. Others may be there too, with any value.

    where: what each error line has before a field's name.

    Raises UserError.
    """
    for name, hint in field_hints(cls).items():
        if name in values:
            read_value(hint, values[name], where + name)


def read_value(hint: object, value: object, where: str, advice: str = "") -> Any:
    """Checks one plain value, and gives it as the type `hint` (hence the return type).

    hint: a type, or `Annotated` with its range.
    where: the field's name, as the error line has it.
    advice: the end of an error line that has no other advice.

    Raises UserError.
    """
    if isinstance(value, AlreadyRead):
        return value
    hint, notes = split_hint(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and NoneType in args:
            return None
        return read_value(join_hint(_member(args, value), notes), value, where, advice)
    if isinstance(hint, type) and issubclass(hint, ReadsItself):
        if not isinstance(value, Mapping):
            _refuse_type(where, value, "a group of fields, as in {prompt: text}", advice)
        return hint.from_values(value, where)
    if is_group(hint):
        return read(hint, value, where=where + ".", advice=advice)
    if origin is Literal:
        if value not in args:
            near = suggest(str(value), [str(arg) for arg in args]).removeprefix("; ")
            _refuse(where, value, f"must be one of {', '.join(map(str, args))}", near or advice)
        return value
    if origin in (tuple, Sequence):
        return _read_list(args[0], notes, value, where, advice)
    if origin is Mapping:
        return _read_mapping(args[1], value, where, advice)
    if hint is Any:
        return value
    return _read_scalar(hint, notes, value, where, advice)


def plain(value: object, *, whole: bool = False) -> Any:
    """The inverse of `read`: dataclasses, tuples and mappings as the dicts, lists and scalars of YAML and JSON.

    whole: with the fields that are saved only where they are set.
    """
    if isinstance(value, AlreadyRead):
        return value
    if isinstance(value, ReadsItself):
        return plain(value.to_values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = (field for field in dataclasses.fields(value) if whole or not _left_out(value, field))
        return {field.name: plain(getattr(value, field.name), whole=whole) for field in shown}
    if isinstance(value, Mapping):
        return {key: plain(item, whole=whole) for key, item in value.items()}
    return [plain(item, whole=whole) for item in value] if isinstance(value, list | tuple) else value


def _left_out(value: DataclassInstance, field: dataclasses.Field[Any]) -> bool:
    notes = split_hint(field_hints(type(value)).get(field.name))[1]
    return SavedIfSet() in notes and getattr(value, field.name) == field_default(field)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested groups (any JSON values), each with its dotted name, such as `sampler.name`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@functools.cache
def field_hints(cls: type) -> dict[str, object]:
    """The type hint of every field, with what `Annotated` adds."""
    hints: dict[str, object] = get_type_hints(cls, include_extras=True)
    return hints


def is_group(hint: object) -> TypeGuard[type[DataclassInstance]]:
    """Whether a hint is a dataclass: a group of fields."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def field_default(field: dataclasses.Field[Any]) -> object:
    """A field's default; dataclasses.MISSING if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def split_hint(hint: object) -> tuple[object, tuple[object, ...]]:
    """Annotated[X, a, b] -> X, (a, b)."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        return inner, tuple(notes)
    return hint, ()


def join_hint(hint: object, notes: tuple[object, ...]) -> object:
    """The inverse of split_hint."""
    return Annotated[hint, *notes] if notes else hint


def range_rule(notes: tuple[object, ...]) -> str | None:
    """`from 0 to 1`; None if the field has no range."""
    interval, step = _interval(notes), _step(notes)
    words = [] if step is None else [f"a multiple of {step}"]
    if interval is not None:
        words.append(f"from {_number(interval[0])} to {_number(interval[1])}")
    return " ".join(words) or None


def _member(args: tuple[object, ...], value: object) -> object:
    """The member of a union that `value` is meant for: the list for a list, else the first that is not None."""
    members = [arg for arg in args if arg is not NoneType]
    lists = [arg for arg in members if get_origin(split_hint(arg)[0]) in (tuple, Sequence)]
    return lists[0] if lists and isinstance(value, list | tuple) else members[0]


def _read_list(item: object, notes: tuple[object, ...], value: object, where: str, advice: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        _refuse_type(where, value, "a list, as in [a, b]", advice)
    for note in notes:
        if isinstance(note, Len) and not note.min_length <= len(value) <= (note.max_length or len(value)):
            _refuse(where, value, f"must have {note.min_length} to {note.max_length} entries", advice)
    return tuple(read_value(item, entry, f"{where}[{i}]", advice) for i, entry in enumerate(value))


def _read_mapping(item: object, value: object, where: str, advice: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        _refuse_type(where, value, "a group of fields", advice)
    for name in value:
        if not isinstance(name, str):
            _refuse(where, name, "must have names that are text", advice)
    return {name: read_value(item, entry, f"{where}.{show(name)}", advice) for name, entry in value.items()}


def _read_scalar(kind: object, notes: tuple[object, ...], value: object, where: str, advice: str) -> Any:
    if type(value) is not kind and not (kind is float and type(value) is int):
        _refuse_type(where, value, WORDS[kind], advice)
    if isinstance(value, int | float) and not _in_range(notes, value):
        own = next((note.text for note in notes if isinstance(note, Advice)), advice)
        _refuse(where, value, f"must be {range_rule(notes)}", _nearest(notes, value, where) or own)
    if type(value) is not int or kind is int:
        return value
    try:
        return float(value)
    except OverflowError:
        _refuse(where, value, "is too large", advice)


def _interval(notes: tuple[object, ...]) -> tuple[Any, Any] | None:
    """The lowest and the highest value: numbers of the field's type."""
    return next(((note.ge, note.le) for note in notes if isinstance(note, Interval)), None)


def _step(notes: tuple[object, ...]) -> Any:
    """The number of which a value must be a multiple, None if there is none: of the field's type."""
    return next((note.multiple_of for note in notes if isinstance(note, MultipleOf)), None)


def _in_range(notes: tuple[object, ...], value: float) -> bool:
    """Whether a number is in its field's range. False for nan, if there is a range."""
    interval, step = _interval(notes), _step(notes)
    return (interval is None or interval[0] <= value <= interval[1]) and (step is None or value % step == 0)


def _nearest(notes: tuple[object, ...], value: float, where: str) -> str:
    """Advice for a field with steps: the nearest value in its range."""
    interval, step = _interval(notes), _step(notes)
    if interval is None or step is None:
        return ""
    # Into the range first, because the quotient of a huge number would overflow.
    return f"try {where}={round(min(max(interval[0], value), interval[1]) / step) * step}"


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _refuse_type(where: str, value: object, rule: str, advice: str) -> NoReturn:
    kind = _KINDS.get(type(value).__name__, type(value).__name__)
    quote = f"quote it as '{where}=\"{show(value)}\"'" if rule == "text" and isinstance(value, int | float) else ""
    _refuse(where, value, f"must be {rule}, not {kind}", advice or quote)


def _refuse(where: str, value: object, rule: str, advice: str) -> NoReturn:
    raise UserError(f"{where}={show(value)}: {rule}" + (f"; {advice}" if advice else ""))
