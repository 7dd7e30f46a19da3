"""A1111's marks that change a prompt by the step: `[from:to:when]`, `[to:when]`, `[from::when]`, and `[a|b]`.

`when` is a number of steps, or with a point a fraction of them, and `from` is there up to that step. `[a|b]` takes
turns with each step. Marks may be inside of one another. A bracket that is not closed is text.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tpusd.errors import UserError
from tpusd.syntax.rules import MAX_DEPTH, too_deep

MAX_TEXTS = 64  # that one prompt becomes
_TOKEN = re.compile(r"\\.|[()\[\]:|]|[^\\()\[\]:|]+|\\", re.DOTALL)
_NUMBER = re.compile(r"\s*([+-]?(?:\d{1,6}\.?\d{0,9}|\.\d{1,9}))\s*", re.ASCII)


class Phase(NamedTuple):
    """A text that a prompt is, up to and with the step `last`, from 1."""

    last: int
    text: str


@dataclass(frozen=True)
class _Switch:
    """before: up to the step that `when` says; after: from then on."""

    before: "_Parts"
    after: "_Parts"
    when: str

    def last(self, steps: int) -> int:
        """The last step of `before`."""
        return min(steps, int(float(self.when) * steps) if "." in self.when else int(self.when))


@dataclass(frozen=True)
class _Turns:
    """What takes turns with each step."""

    options: "tuple[_Parts, ...]"


_Parts = tuple[str | _Switch | _Turns, ...]


@dataclass
class _Open:
    """A bracket that is not closed yet, and what is in it. cuts: the colons and bars that are directly in it."""

    bracket: str
    parts: list[str | _Switch | _Turns] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)  # places of these signs among `parts`


@functools.lru_cache(1024)
def phases(text: str, steps: int) -> tuple[Phase, ...]:
    """What a prompt is at each of `steps` steps; one phase for a prompt without these marks. Raises UserError."""
    parts = _parsed(text)
    ends = sorted({steps, *_ends(parts, steps)})
    made: list[Phase] = []
    seen: set[str] = set()
    for last in ends:
        now = "".join(_at(parts, last, steps))
        seen.add(now)
        if len(seen) > MAX_TEXTS:
            raise UserError(f"becomes more than {MAX_TEXTS} texts over the steps; use fewer marks that change it")
        if made and made[-1].text == now:
            made.pop()
        made.append(Phase(last, now))
    return tuple(made)


def text_at(own: Sequence[Phase], step: int) -> str:
    """The text of a step, from 1; after the last one the text stays."""
    return next((phase.text for phase in own if step <= phase.last), own[-1].text)


def _parsed(text: str) -> _Parts:
    if "[" not in text:
        return (text,)
    stack = [_Open("")]
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token in "([":
            stack.append(_Open(token))
            if len(stack) > MAX_DEPTH + 1:
                raise too_deep()
        elif token in (")", "]") and any(one.bracket == "(["[token == "]"] for one in stack[1:]):
            while stack[-1].bracket != "(["[token == "]"]:
                _give_up(stack)
            closed = stack.pop()
            stack[-1].parts += _closed(closed) if token == "]" else ["(", *closed.parts, ")"]
        else:
            if token in ":|":
                stack[-1].cuts.append(len(stack[-1].parts))
            stack[-1].parts.append(token)
    while len(stack) > 1:
        _give_up(stack)
    return tuple(stack[0].parts)


def _give_up(stack: list[_Open]) -> None:
    """The last bracket is text, because it is not closed."""
    open_one = stack.pop()
    start = len(stack[-1].parts) + 1
    stack[-1].parts += [open_one.bracket, *open_one.parts]
    stack[-1].cuts += [start + cut for cut in open_one.cuts]


def _closed(one: _Open) -> list[str | _Switch | _Turns]:
    """What square brackets and their content mean."""
    signs = [one.parts[cut] for cut in one.cuts]
    colons = [cut for cut in one.cuts if one.parts[cut] == ":"]
    last = "".join(map(str, one.parts[colons[-1] + 1 :])) if colons else ""
    number = _NUMBER.fullmatch(last)
    if number is not None and len(colons) in (1, 2):
        segments = _between(one.parts, colons)
        return [_Switch(segments[0] if len(colons) == 2 else (), segments[-2], number[1])]
    if signs and not colons:
        return [_Turns(tuple(_between(one.parts, one.cuts)))]
    return ["[", *one.parts, "]"]


def _between(parts: Sequence[str | _Switch | _Turns], cuts: Sequence[int]) -> list[_Parts]:
    ends = [*cuts, len(parts)]
    return [tuple(parts[start + 1 : end]) for start, end in zip([-1, *cuts], ends, strict=True)]


def _ends(parts: _Parts, steps: int) -> Iterator[int]:
    """The steps after which something may change."""
    for part in parts:
        if isinstance(part, _Switch):
            if part.last(steps) >= 1:
                yield part.last(steps)
            yield from _ends((*part.before, *part.after), steps)
        elif isinstance(part, _Turns):
            yield from range(1, steps + 1)


def _at(parts: _Parts, step: int, steps: int) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, _Switch):
            yield from _at(part.before if step <= part.last(steps) else part.after, step, steps)
        else:
            yield from _at(part.options[(step - 1) % len(part.options)], step, steps)
