"""A text as chunks of token ids with weights, as long as the text encoder's window.

A1111's chunks end at the last comma, if that is near; compel's at the end of a sentence, a phrase or a word.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tpusd.errors import UserError
from tpusd.syntax import a1111, compel
from tpusd.syntax.embeddings import Unit, units
from tpusd.syntax.rules import BREAK, CHUNK, MAX_CHUNKS, Fragment, TextRules, TextShape, Words

BACKTRACK = 20  # tokens that follow a chunk's last comma and go to the next chunk, at most
LEAST_WEIGHT = 1e-5  # of a fragment: its counterpart has an infinite share at 0
_PHRASE_ENDS = (".</w>", ",</w>", ";</w>", ":</w>")


class Chunk(NamedTuple):
    """At most CHUNK tokens, without begin and end of text, and a weight for each. ids: as in a Unit."""

    ids: list[int]
    weights: list[float]


class Without(NamedTuple):
    """A version of the text without one fragment. share: in the blend. first, last: its positions in all windows."""

    share: float
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class LaidOut:
    """A text for one tokenizer.

    chunks: one or more.
    num_tokens: with begin and end of text, before anything is cut off.
    without: in the order of the fragments, for compel's weighting.
    """

    chunks: tuple[Chunk, ...]
    num_tokens: int
    truncated: bool
    without: tuple[Without, ...] = ()


def lay_out(text: str, rules: TextRules, tokenizer: Words) -> LaidOut:
    """Raises UserError for marks that are not implemented and texts that are too long: the end of a line."""
    fragments = _parsed(text, rules)
    ids = units([fragment.text for fragment in fragments], rules.syntax, tokenizer)
    if rules.syntax == "compel":
        chunks = _compels_chunks(fragments, ids, tokenizer)
    else:
        chunks = _a1111s_chunks(fragments, ids, tokenizer.id_of(",</w>"))
    num_tokens = sum(_length(own) for own, fragment in zip(ids, fragments, strict=True) if fragment != BREAK) + 2
    truncated = False
    if not rules.whole and num_tokens > CHUNK + 2:
        flat = Chunk([i for chunk in chunks for i in chunk.ids], [w for chunk in chunks for w in chunk.weights])
        chunks, truncated = [Chunk(flat.ids[:CHUNK], flat.weights[:CHUNK])], True
    if len(chunks) > MAX_CHUNKS:
        raise UserError(f"has {num_tokens} tokens in {len(chunks)} chunks; at most {MAX_CHUNKS} chunks are read")
    without = _without(fragments, ids, chunks, truncated) if rules.weighting == "compel" else ()
    return LaidOut(chunks=tuple(chunks), num_tokens=num_tokens, truncated=truncated, without=without)


class Extent(NamedTuple):
    """How much of a program a text takes: its chunks, and its versions with itself, at most of all tokenizers."""

    chunks: int = 1
    versions: int = 1


def extent(text: str, rules: TextRules, tokenizers: Iterable[Words]) -> Extent:
    """Raises UserError as `lay_out` does."""
    return extent_of(lay_out(text, rules, tokenizer) for tokenizer in tokenizers)


def extent_of(laid_out: Iterable[LaidOut]) -> Extent:
    """laid_out: one text, for each tokenizer."""
    sizes = [(len(one.chunks), 1 + len(one.without)) for one in laid_out]
    return Extent(*map(max, zip(*sizes, strict=True)))


def shape_of(extents: Iterable[Extent], rules: TextRules) -> TextShape | None:
    """The shape of the program for these texts of an image; None where the one for plain prompts makes them."""
    chunks, versions = map(max, zip(*extents, strict=True))
    if rules.weighting is None and chunks == 1 and not rules.embedded:
        return None
    return TextShape(weighting=rules.weighting, chunks=chunks, versions=versions, embedded=rules.embedded)


def _parsed(text: str, rules: TextRules) -> list[Fragment]:
    if rules.syntax == "a1111":
        return a1111.parse(text)
    return compel.parse(text) if rules.syntax == "compel" else [Fragment(text)]


def _a1111s_chunks(fragments: Sequence[Fragment], ids: Sequence[Sequence[Unit]], comma: int | None) -> list[Chunk]:
    chunks: list[Chunk] = []
    current, after_comma = Chunk([], []), 0  # where what follows the chunk's last comma begins; 0: no comma
    for fragment, own in zip(fragments, ids, strict=True):
        if fragment == BREAK:
            chunks.append(current)
            current, after_comma = Chunk([], []), 0
            continue
        for unit in own:
            is_full = len(current.ids) == CHUNK
            if is_full:
                cut = CHUNK
                if unit[0] != comma and after_comma and CHUNK - after_comma < BACKTRACK:
                    cut = after_comma
                chunks.append(Chunk(current.ids[:cut], current.weights[:cut]))
                current, after_comma = Chunk(current.ids[cut:], current.weights[cut:]), 0
            if len(current.ids) + len(unit) > CHUNK:
                chunks.append(current)
                current, after_comma = Chunk([], []), 0
            current.ids.extend(unit)
            current.weights.extend([fragment.weight] * len(unit))
            if unit[0] == comma and not is_full:
                after_comma = len(current.ids)
    return [*chunks, current] if current.ids or not chunks else chunks


def _compels_chunks(fragments: Sequence[Fragment], ids: Sequence[Sequence[Unit]], tokenizer: Words) -> list[Chunk]:
    parts = [unit for own in ids for unit in own]
    tokens = [token for unit in parts for token in unit]
    weights = [fragment.weight for fragment, own in zip(fragments, ids, strict=True) for _ in range(_length(own))]
    whole = set(itertools.accumulate(map(len, parts)))  # where a unit ends
    ends = [tokenizer.id_of(end) for end in _PHRASE_ENDS]
    chunks: list[Chunk] = []
    start = 0
    while not chunks or start < len(tokens):
        stop = start + CHUNK
        if stop < len(tokens):
            window = tokens[start:stop]
            cuts = ([i for i, token in enumerate(window, start + 1) if token in some] for some in (ends[:1], ends))
            places = [i for i in range(stop, start, -1) if i in whole]
            words = (i for i in places if tokens[i - 1] < 0 or tokenizer.ends_word(tokens[i - 1]))
            stop = next((found[-1] for found in cuts if found), None) or next(words, places[0])
        chunks.append(Chunk(tokens[start:stop], weights[start:stop]))
        start = stop
    return chunks


def _length(own: Sequence[Unit]) -> int:
    return sum(map(len, own))


def _without(
    fragments: Sequence[Fragment], ids: Sequence[Sequence[Unit]], chunks: Sequence[Chunk], truncated: bool
) -> tuple[Without, ...]:
    """compel's versions of a text, each without a fragment that weighs less than 1. Sums of shares: any number."""
    window = CHUNK + 2
    positions = [number * window + 1 + i for number, chunk in enumerate(chunks) for i in range(len(chunk.ids))]
    made, start = [], 0
    for fragment, own in zip(fragments, ids, strict=True):
        stop = start + (min(_length(own), CHUNK) if truncated else _length(own))
        if own and fragment.weight < 1 and start < len(positions):
            share = math.tan((1 - max(LEAST_WEIGHT, fragment.weight)) * math.pi / 2)
            last = positions[stop - 1] if stop <= len(positions) else window - 1
            made.append(Without(share, positions[start], last))
        start = stop
    return tuple(made)
