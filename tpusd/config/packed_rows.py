"""The rows of a large prompt set, in little memory: the JSON line of each, and 12 bytes beside it."""

import functools
import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from tpusd.config.rows import ROW_FIELDS, Row, parse_row
from tpusd.config.typed import AlreadyRead

INLINE_ROWS = 1000  # a larger prompt set is packed, and a run directory keeps it in a file of its own
_OF_TEXT = ("prompt", "negative_prompt", "seed", "prompt_template", "negative_prompt_template")
_SETTINGS = tuple(name for name in ROW_FIELDS if name not in _OF_TEXT)
_ONLY_PROMPT = re.compile(rb'\{"prompt": "([^"\\\x00-\x1f]+)"\}')
NO_SETTINGS = (None, (), *(None for _ in _SETTINGS))  # of a row that has only a prompt
_encode = json.encoder.encode_basestring


class PackedRows(Sequence[Row], AlreadyRead):
    """Rows as the lines of a jsonl file. A row is made from its line when it is asked for.

    Rows of one kind differ only in their texts, in their seeds and in the values of further columns.
    """

    def __init__(self, data: bytes, ends: "array[int]", kinds: "array[int]"):
        """data: the lines. ends: of each line, behind its newline. kinds: of each row, a number."""
        self.data, self._ends, self._kinds = data, ends, kinds
        self.num_kinds = max(kinds, default=-1) + 1

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return pack(self[number] for number in range(*index.indices(len(self))))
        number = range(len(self))[index]
        return _row_of(self.data[self._ends[number - 1] if number else 0 : self._ends[number]])

    def __iter__(self) -> Iterator[Row]:
        start = 0
        for end in self._ends:
            yield _row_of(self.data[start:end])
            start = end

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedRows):
            return self is other or self.data == other.data
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.data)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the lines, in hexadecimal digits."""
        return hashlib.sha256(self.data).hexdigest()

    def kind(self, index: int) -> int:
        """The number of a row's kind."""
        return self._kinds[index]

    def first_of_each_kind(self, indices: range) -> list[int]:
        """Of the rows `indices`, the first one of each kind, in order."""
        seen: dict[int, int] = {}
        for index in indices:
            seen.setdefault(self._kinds[index], index)
            if len(seen) == self.num_kinds:
                break
        return list(seen.values())


class Packer:
    """Gathers rows one by one: a tuple of few rows, PackedRows of many."""

    def __init__(self) -> None:
        self._few: list[Row] = []
        self._data, self._ends, self._kinds = bytearray(), array("Q"), array("I")
        self._numbers: dict[Any, int] = {}

    def add(self, row: Row) -> None:
        if len(self._few) < INLINE_ROWS and not self._ends:
            self._few.append(row)
            return
        waiting, self._few = [*self._few, row], []
        for one in waiting:
            self.add_line(_line_of(one), row_settings(one))

    def add_line(self, line: bytes, settings: tuple[Any, ...]) -> None:
        """A row as its line, which ends in a newline."""
        self._data += line
        self._ends.append(len(self._data))
        self._kinds.append(self._numbers.setdefault(settings, len(self._numbers)))

    def rows(self) -> Sequence[Row]:
        """All rows that were added."""
        return self.packed() if self._ends else tuple(self._few)

    def packed(self) -> PackedRows:
        """The same, whose number is known to be large."""
        data, self._data = bytes(self._data), bytearray()
        return PackedRows(data, self._ends, self._kinds)


def pack(rows: Iterable[Row]) -> Sequence[Row]:
    """A tuple of up to INLINE_ROWS rows; of more, PackedRows."""
    if isinstance(rows, PackedRows) or (isinstance(rows, tuple) and len(rows) <= INLINE_ROWS):
        return rows
    packer = Packer()
    for row in rows:
        packer.add(row)
    return packer.rows()


def first_rows(rows: Sequence[Row], indices: range | None = None) -> Iterator[tuple[int, Row]]:
    """(index, row) of enough rows to see all settings: of packed ones the first of each kind, else all, in order.

    Settings are all fields except texts and seeds, and the names of further columns. indices: only of these rows.
    """
    indices = range(len(rows)) if indices is None else indices
    chosen = rows.first_of_each_kind(indices) if isinstance(rows, PackedRows) else indices
    return ((index, rows[index]) for index in chosen)


def row_settings(row: Row) -> tuple[Any, ...]:
    """What rows of one kind have in common."""
    if row.is_text_alone:
        return NO_SETTINGS
    own = (_hashable(getattr(row, name)) for name in _SETTINGS)
    return (row.negative_prompt and True, tuple(row.extra), *own)


def only_prompt(line: bytes) -> bytes | None:
    """The prompt of a line that has nothing else and needs no escapes; None of another line."""
    found = _ONLY_PROMPT.fullmatch(line)
    return None if found is None or not found[1].strip() else found[1]


def _hashable(value: object) -> object:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _line_of(row: Row) -> bytes:
    if row.is_text_alone and row.seed is None:
        return b'{"prompt": ' + _encode(row.prompt).encode() + b"}\n"
    return json.dumps(row.to_values(), ensure_ascii=False).encode() + b"\n"


def _row_of(line: bytes) -> Row:
    """The row of a line that was checked when it was packed."""
    values: Mapping[str, Any] = json.loads(line)
    if len(values) == 1:
        return Row(prompt=values["prompt"])
    return parse_row("prompts", values)
