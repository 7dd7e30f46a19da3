r"""compel's syntax: `word++` weighs 1.1 for each plus, `word--` 0.9 for each minus; `(some words)1.3`, `"some words"+`.

Nested weights multiply; `\(`, `\)` and `\"` are signs. What does not fit the grammar is text, to the next space.
"""

import itertools
import re

from tpusd.errors import UserError, show
from tpusd.syntax.rules import MAX_DEPTH, Fragment, too_deep

PLUS, MINUS = 1.1, 0.9
_SIGNS = '(),."+-='
_SPACE = " \t\n\r\v\f"
_OTHER = re.compile(r"\)\s*\.(?:blend|and|add)\s*\(|\.swap\s*\(|\b(?:use|with)Lora\s*\(")
_WORD = re.compile(
    r"""(?: \\[(),."+=-]               # a sign that is meant as text
          | [+-](?![\s(),."+=-]|\Z)    # a hyphen within a word
          | [^\s(),."+=-] )+""",
    re.VERBOSE,
)
_GROUP_WEIGHT = re.compile(r"\++|-+|\d+\.\d*|\.\d+|\d+", re.ASCII)
_WORD_WEIGHT = re.compile(r"\++|-+")
_ATTEND = re.compile(r"\s*\.attend\s*\(\s*(\++|-+|\d+\.\d*|\.\d+|\d+)\s*\)", re.ASCII)
_QUOTED = re.compile(r'"((?:\\"|[^"\n\r])*)"')
_ESCAPED = re.compile(r'(?<!\\)\\+([()"])')
_FREE = re.compile(r"[^ \t\n\r\v\f]+")

Part = tuple[int, list[Fragment]]  # where a part ends, and its words


def parse(text: str) -> list[Fragment]:
    """A prompt's words with their weights, equal neighbours joined. Raises UserError for what is not implemented."""
    other = _OTHER.search(text)
    if other is not None:
        raise UserError(f"{show(other[0])} of compel is not implemented; weights are: word++, (some words)1.3")
    _check_depth(text)
    text = re.sub(r",(\S)", r", \1", text)
    reader, position, made = _Reader(text), 0, list[Fragment]()
    while (position := reader.after_space(position)) < len(text):
        part = reader.weighted(position) or reader.quoted(position) or reader.group(position)
        if part is None:
            found = _FREE.match(text, position)
            assert found is not None
            part = found.end(), [Fragment(found[0])]
        position = part[0]
        made += part[1]
    return _joined(made) or [Fragment("")]


class _Reader:
    """Reads parts of one text. Each method gives None where the text at a position is not such a part."""

    def __init__(self, text: str):
        self.text = text
        self._groups: dict[int, Part | None] = {}  # by where they begin: each is read once

    def after_space(self, position: int) -> int:
        while position < len(self.text) and self.text[position] in _SPACE:
            position += 1
        return position

    def group(self, position: int) -> Part | None:
        """Words in round brackets."""
        if position not in self._groups:
            self._groups[position] = self._group(position)
        return self._groups[position]

    def _group(self, position: int) -> Part | None:
        if not self.text.startswith("(", position):
            return None
        position, inside = self.parts(position + 1)
        return (position + 1, inside) if self.text.startswith(")", position) else None

    def parts(self, position: int) -> Part:
        """All that can be inside of brackets; ends before what cannot."""
        made: list[Fragment] = []
        while (position := self.after_space(position)) < len(self.text):
            part = self.weighted(position) or self.group(position) or self.quoted(position) or self.word(position)
            if part is None and self.text[position] in ",.":
                part = position + 1, [Fragment(self.text[position])]
            if part is None:
                break
            position = part[0]
            made += part[1]
        return position, made

    def quoted(self, position: int) -> Part | None:
        """Words in double quotes."""
        found = _QUOTED.match(self.text, position)
        if found is None:
            return None
        inside = _Reader(found[1])
        end, made = inside.parts(0)
        return (found.end(), made or [Fragment("")]) if end == len(found[1]) else None

    def word(self, position: int) -> Part | None:
        found = _WORD.match(self.text, position)
        return None if found is None else (found.end(), [Fragment(found[0])])

    def weighted(self, position: int) -> Part | None:
        """A group, quotes or a word with a weight of their own."""
        group = self.quoted(position) or self.group(position)
        target = group or self.word(position)
        if target is None:
            return None
        end, words = target
        found = _ATTEND.match(self.text, end)
        sign = found[1] if found is not None else None
        if found is None:
            found = (_WORD_WEIGHT if group is None else _GROUP_WEIGHT).match(self.text, end)
            sign = None if found is None else found[0]
        if found is None or sign is None:
            return None
        weight = _weight(sign)
        return found.end(), [Fragment(word.text, word.weight * weight) for word in words]


def _weight(sign: str) -> float:
    if sign[0] in "+-":
        return float((PLUS if sign[0] == "+" else MINUS) ** min(len(sign), MAX_DEPTH))
    return min(float(sign), 1000.0)


def _joined(fragments: list[Fragment]) -> list[Fragment]:
    groups = itertools.groupby(fragments, key=lambda fragment: fragment.weight)
    joined = ((" ".join(fragment.text for fragment in group), weight) for weight, group in groups)
    return [Fragment(_ESCAPED.sub(r"\1", text), weight) for text, weight in joined]


def _check_depth(text: str) -> None:
    depth = 0
    for sign in text:
        depth = depth + 1 if sign == "(" else max(0, depth - 1) if sign == ")" else depth
        if depth > MAX_DEPTH:
            raise too_deep()
