"""The fields of a config dataclass, one by one: their names, defaults, values in words and help.

The command line's field names and the option tables of docs/ come from here. Knows no field's meaning.
"""

import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Literal, Union, get_args, get_origin

from tpusd.config.typed import (
    WORDS,
    DataclassInstance,
    Help,
    field_default,
    field_hints,
    is_group,
    join_hint,
    range_rule,
    split_hint,
)

_PLURALS: Mapping[object, str] = {int: "whole numbers", float: "numbers", str: "texts"}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One field."""

    path: str  # such as sampler.num_inference_steps
    hint: object  # its type
    default: object  # dataclasses.MISSING: the field is required
    help: str

    @property
    def is_group(self) -> bool:
        """Whether it holds fields itself."""
        return is_group(split_hint(self.hint)[0])


def options(cls: type[DataclassInstance], prefix: str = "") -> Iterator[Option]:
    """Every field of a dataclass and of its parts; a part comes before its own fields.

    prefix: what the paths begin with, such as `sampler.`.
    """
    for field in dataclasses.fields(cls):
        hint, notes = split_hint(field_hints(cls)[field.name])
        text = next((note.text for note in notes if isinstance(note, Help)), "")
        yield Option(path=prefix + field.name, hint=join_hint(hint, notes), default=field_default(field), help=text)
        if is_group(hint):
            yield from options(hint, f"{prefix}{field.name}.")


def describe(hint: object) -> str:
    """What a field accepts, in words: `a whole number from 1 to 4096, or null`."""
    hint, notes = split_hint(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [describe(join_hint(arg, notes)) for arg in args if arg is not NoneType]
        return " or ".join(kinds) + (", or null" if NoneType in args else "")
    if origin is Literal:
        return _listed(args)
    if origin in (tuple, Sequence):
        item = split_hint(args[0])[0]
        if get_origin(item) is tuple:
            return "a list of lists"
        if get_origin(item) is Literal:
            return f"a list from {_listed(get_args(item))}"
        return f"a list of {_PLURALS.get(item, 'groups of fields')}"
    if is_group(hint):
        return "a group of fields"
    rule = range_rule(notes)
    return WORDS[hint] if rule is None else f"{WORDS[hint]} {rule}" if rule.startswith("from") else rule


def _listed(choices: tuple[object, ...]) -> str:
    return ", ".join(f"`{choice}`" for choice in choices)
