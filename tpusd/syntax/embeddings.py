"""Embeddings (textual inversion): words of a text that have vectors of their own, and where a text has them.

A1111 looks for the tokens of an embedding's name among those of the text, so that a name is a whole word. diffusers
adds the name to the tokenizer, which finds it anywhere, also inside of a word, in capitals or not.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tpusd.config.schema import Syntax

if TYPE_CHECKING:
    import numpy as np

# Token ids that stay in one chunk: one token, or all vectors of an embedding, whose ids are negative: -1 - i for
# vector i of all vectors of the tokenizer.
Unit = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenVectors:
    """A word and its vectors, (n,e) float32, which take the place of token embeddings."""

    token: str
    vectors: "np.ndarray"


class WordsWithVectors(Protocol):
    """What is needed of a tokenizer."""

    @property
    def embedded(self) -> Sequence[TokenVectors]: ...

    def words(self, texts: list[str], /) -> list[list[int]]: ...

    def normalized(self, text: str, /) -> str: ...


def units(texts: Sequence[str], syntax: Syntax, tokenizer: WordsWithVectors) -> list[list[Unit]]:
    """The tokens of each text, without begin and end of text. syntax: decides how embeddings are found."""
    if not tokenizer.embedded:
        return [[(token,) for token in ids] for ids in tokenizer.words(list(texts))]
    named: dict[str, Unit] = {}
    start = 0
    for one in tokenizer.embedded:
        stop = start + len(one.vectors)
        named[one.token] = tuple(-1 - i for i in range(start, stop))
        start = stop
    return (_found_by_tokens if syntax == "a1111" else _found_in_text)(texts, named, tokenizer)


def _found_by_tokens(texts: Sequence[str], named: Mapping[str, Unit], tokenizer: WordsWithVectors) -> list[list[Unit]]:
    """Of several names that fit at a place, the one with the most tokens is found."""
    ids = tokenizer.words([*texts, *named])
    by_first: dict[int, list[tuple[list[int], Unit]]] = {}
    for name, unit in sorted(zip(ids[len(texts) :], named.values(), strict=True), key=lambda one: -len(one[0])):
        if name:
            by_first.setdefault(name[0], []).append((name, unit))

    def read(own: list[int]) -> list[Unit]:
        made: list[Unit] = []
        place = 0
        while place < len(own):
            known = by_first.get(own[place], ())
            name, unit = next((one for one in known if own[place : place + len(one[0])] == one[0]), ([0], None))
            made.append((own[place],) if unit is None else unit)
            place += len(name)
        return made

    return [read(own) for own in ids[: len(texts)]]


def _found_in_text(texts: Sequence[str], named: Mapping[str, Unit], tokenizer: WordsWithVectors) -> list[list[Unit]]:
    """Of several names that begin at a place, the longest is found."""
    by_name = {tokenizer.normalized(name): unit for name, unit in named.items()}
    any_name = re.compile(f"({'|'.join(map(re.escape, sorted(by_name, key=len, reverse=True)))})")
    parts = [any_name.split(tokenizer.normalized(text)) for text in texts]  # text, name, text, ..., text
    plain = iter(tokenizer.words([part for own in parts for part in own[::2]]))

    def read(own: list[str]) -> list[Unit]:
        made: list[Unit] = [(token,) for token in next(plain)]
        for name in own[1::2]:
            made.append(by_name[name])
            made += [(token,) for token in next(plain)]
        return made

    return [read(own) for own in parts]
