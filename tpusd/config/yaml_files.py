"""YAML from anywhere -> plain values, with bounds on what a small file can expand to. Tags can only give data.

A document is read event by event, so what is out of bounds is refused before it is built. Knows nothing of what the
values mean.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import yaml

from tpusd.config.limits import MAX_ROWS
from tpusd.errors import UserError, show

MAX_DEPTH = 50
MAX_ALIASED = 10_000  # values that aliases may add: nine lines of aliases can expand to a billion
MAX_DIGITS = 4300  # of a number: reading more takes quadratic time, and Python refuses decimal ones
MAX_VALUES = 9_500_000  # as `_events` counts them: MAX_ROWS prompts that bring all seven values of their own
MAX_ENTRIES = MAX_ROWS  # of one list or group
MAX_SCALAR_BYTES = 16 << 20
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = yaml.resolver.Resolver()
_CONSTRUCTOR = yaml.constructor.SafeConstructor()
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_TAG = "tag:yaml.org,2002:"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
_SCALARS = (*_NUMBERS, *(f"{_TAG}{name}" for name in ("null", "bool", "binary", "timestamp")))


def parse_yaml(data: bytes | BinaryIO, where: str) -> Any:
    """The plain values of a YAML document, whatever they are. Raises UserError; its line begins with `where`."""
    builder = _Builder()
    try:
        for event in _events(data, where, MAX_VALUES):
            builder.add(event)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        kind = NotYaml if isinstance(error, yaml.MarkedYAMLError | yaml.reader.ReaderError) else UserError
        raise kind(f"{where}: is not YAML: {show(' '.join(str(error).split()))}") from None
    return builder.document


def check_yaml(data: bytes | BinaryIO, where: str, max_values: int = MAX_VALUES) -> None:
    """Raises UserError for a document that would grow out of bounds when another library loads it.

    Text that is not YAML passes: loading it gives the error.
    """
    try:
        for _ in _events(data, where, max_values):
            pass
    except (yaml.YAMLError, ValueError):
        return


def to_yaml(values: object, *, ascii_only: bool = False) -> str:
    """Plain values as a YAML document, the keys in their order. ascii_only: other characters as escapes."""
    text: str = yaml.dump(values, Dumper=_DUMPER, sort_keys=False, allow_unicode=not ascii_only, width=2**16)
    return text


class NotYaml(UserError):
    """The text is not YAML, for any reader."""


class _Pieces:
    """A stream that refuses a scalar that is too long while the parser gathers it."""

    def __init__(self, stream: BinaryIO, where: str):
        self._stream, self._where, self.since_event = stream, where, 0

    def read(self, size: int = -1, /) -> bytes:
        piece = self._stream.read(size)
        self.since_event += len(piece)
        if self.since_event > MAX_SCALAR_BYTES:
            raise UserError(f"{self._where}: holds a text of over {MAX_SCALAR_BYTES >> 20} MiB; shorten it")
        return piece


@dataclass
class _Open:
    """A list or a group whose end is not read yet. before: values of the document before it."""

    anchor: str | None
    before: int
    room: int  # for further entries; of a group, names and values
    is_group: bool


def _events(data: bytes | BinaryIO, where: str, max_values: int) -> Iterator[Any]:
    """The events of one document. Raises UserError where it is out of bounds, and YAMLError."""
    pieces = _Pieces(io.BytesIO(data) if isinstance(data, bytes) else data, where)
    sizes: dict[str, int] = {}  # anchor -> values under it
    names: set[str] = set()  # of fields: each takes memory once
    opened: list[_Open] = []
    values = aliased = 0
    for event in yaml.parse(pieces, Loader=_LOADER):
        pieces.since_event = 0
        if isinstance(event, yaml.AliasEvent):
            if any(one.anchor == event.anchor for one in opened):
                raise UserError(f"{where}: a value contains itself; write the values without aliases")
            size = sizes.get(event.anchor or "", 1)
            values, aliased = values + size, aliased + size
            if aliased > MAX_ALIASED:
                raise UserError(
                    f"{where}: its aliases expand to over {MAX_ALIASED} values; write the values without aliases"
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = opened.pop()
            if closed.anchor is not None:
                sizes[closed.anchor] = values - closed.before
        elif isinstance(event, yaml.NodeEvent):
            values += _weight(event, opened, names)
            if isinstance(event, yaml.ScalarEvent):
                if len(event.value) > MAX_DIGITS and event.implicit[0] and _tag_of(event) in _NUMBERS:
                    raise UserError(f"{where}: {show(event.value)}: has too many digits")
        if isinstance(event, yaml.NodeEvent):
            if values > max_values:
                raise UserError(f"{where}: holds over {max_values} values; put long prompt sets in files")
            if opened:
                opened[-1].room -= 1
                if opened[-1].room < 0:
                    raise UserError(f"{where}: has a list of over {MAX_ENTRIES} entries; a run has no more rows")
            if isinstance(event, yaml.CollectionStartEvent):
                entries = 2 * MAX_ENTRIES if isinstance(event, yaml.MappingStartEvent) else MAX_ENTRIES
                opened.append(_Open(event.anchor, values - 1, entries, isinstance(event, yaml.MappingStartEvent)))
                if len(opened) > MAX_DEPTH:
                    raise UserError(f"{where}: is nested over {MAX_DEPTH} deep; a config is nested less")
        yield event


def _weight(event: object, opened: list[_Open], names: set[str]) -> int:
    """As how many values a node counts: a group as two, because it takes that much memory; a name only once."""
    if isinstance(event, yaml.ScalarEvent) and opened and opened[-1].is_group and opened[-1].room % 2 == 0:
        known = event.value in names
        names.add(event.value)
        return 0 if known else 1
    return 2 if isinstance(event, yaml.MappingStartEvent) else 1


@dataclass
class _Collection:
    """A list or a group in the making. key: of a group, the name whose value comes next."""

    value: Any
    anchor: str | None
    key: Any = None
    has_key: bool = False
    merged: list[Any] = field(default_factory=list)  # what `<<` names


_MERGE = object()  # the name `<<`


class _Builder:
    """Events -> values, as PyYAML's safe loader makes them, without a tree of nodes between."""

    def __init__(self) -> None:
        self.document: Any = None
        self._open: list[_Collection] = []
        self._anchors: dict[str, Any] = {}
        self._names: dict[Any, Any] = {}  # of fields, each kept once
        self._documents = 0

    def add(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._put(_scalar(event), event.anchor)
        elif isinstance(event, yaml.CollectionStartEvent):
            is_group = isinstance(event, yaml.MappingStartEvent)
            if event.tag not in (None, "!", f"{_TAG}{'map' if is_group else 'seq'}"):
                raise yaml.YAMLError(f"the tag {event.tag} makes no plain value")
            self._open.append(_Collection({} if is_group else [], event.anchor))
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = self._open.pop()
            self._put(_with_merged(closed), closed.anchor)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise yaml.YAMLError(f"the alias {event.anchor} has no anchor")
            self._put(self._anchors[event.anchor], None)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise yaml.YAMLError("there is more than one document")

    def _put(self, value: object, anchor: str | None) -> None:
        """A whole value, where it belongs."""
        if anchor is not None:
            self._anchors[anchor] = value
        into = self._open[-1] if self._open else None
        if value is _MERGE and (into is None or isinstance(into.value, list) or into.has_key):
            raise yaml.YAMLError("<< is the name of a field, and not a value")
        if into is None:
            self.document = value
            return
        if isinstance(into.value, list):
            into.value.append(value)
        elif not into.has_key:
            if isinstance(value, dict | list):
                raise yaml.YAMLError("the name of a field is a list or a group")
            into.key, into.has_key = self._names.setdefault(value, value), True
        else:
            if into.key is _MERGE:
                into.merged += value if isinstance(value, list) else [value]
            else:
                into.value[into.key] = value
            into.has_key = False


def _scalar(event: yaml.ScalarEvent) -> Any:
    tag = _tag_of(event)
    if tag == f"{_TAG}str":
        return event.value
    if tag == f"{_TAG}merge":
        return _MERGE
    if tag not in _SCALARS:
        raise yaml.YAMLError(f"the tag {tag} makes no plain value")
    return yaml.SafeLoader.yaml_constructors[tag](_CONSTRUCTOR, yaml.ScalarNode(tag, event.value))


def _tag_of(event: yaml.ScalarEvent) -> str:
    """Of a scalar: its own, or what its text looks like."""
    if event.tag not in (None, "!"):
        return str(event.tag)
    return str(_RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit))  # type: ignore[no-untyped-call]


def _with_merged(closed: _Collection) -> Any:
    """A group with the fields of those that `<<` names; its own and the earlier ones win."""
    for other in closed.merged:
        if not isinstance(other, dict):
            raise yaml.YAMLError("<< names what is not a group")
        closed.value = other | closed.value
    return closed.value
