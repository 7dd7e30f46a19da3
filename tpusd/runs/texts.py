"""The texts of a run before it starts: how many tokens and chunks they have, and which are too long."""

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tpusd.config.packed_rows import PackedRows
from tpusd.config.rows import Row
from tpusd.config.schema import RunConfig, SavedConfig
from tpusd.errors import UserError, show
from tpusd.plan.specs import row_numbers
from tpusd.prompts.rows import MAX_LISTED
from tpusd.syntax.chunks import Extent, extent_of, lay_out
from tpusd.syntax.embeddings import TokenVectors
from tpusd.syntax.rules import CHUNK, TextRules

if TYPE_CHECKING:
    from tpusd.checkpoints.tokenizer import Tokenizer

MAX_CHARS_READ = 10_000  # of a text, among which its end is looked for: far beyond any text encoder's window
PART = 10_000  # texts that are tokenized at a time
MAX_END = 40  # characters of the end that a line shows


def count_tokens(
    config: RunConfig, rows: Sequence[Row], tokenizers: Sequence["Tokenizer"]
) -> tuple[Mapping[str, tuple[int, bool]], tuple[str, ...]]:
    """Token count of every text of the run, and the warnings; with on_truncate=error long texts are refused.

    Texts are plain.
    """
    if isinstance(rows, PackedRows):
        return _count_packed(config, rows, tokenizers)
    rows, texts = _texts(config, rows)
    names = list(texts)
    counts = dict.fromkeys(names, (0, False))
    for tokenizer in tokenizers:
        tokenized = tokenizer(names)
        for name, number, truncated in zip(names, tokenized.num_tokens, tokenized.truncated, strict=True):
            counts[name] = (max(counts[name][0], int(number)), counts[name][1] or bool(truncated))
        limit = tokenized.input_ids.shape[1]
    long = {name: show(_left_out(name, tokenizers), MAX_END) for name in names if counts[name][1]}
    return counts, _notes(config, rows, texts, counts, limit, long)


def _count_packed(
    config: RunConfig, rows: PackedRows, tokenizers: Sequence["Tokenizer"]
) -> tuple[Mapping[str, tuple[int, bool]], tuple[str, ...]]:
    """The same of a prompt set that is too large to keep its texts: each is counted again when its image is made."""
    counted = CountedTexts(tokenizers, has_embeddings=bool(config.embeddings))
    long: dict[str, str] = {}  # the first long texts -> their ends
    texts: dict[str, str] = {}  # these -> where they come first
    numbers = row_numbers(config, len(rows))
    num_rows = num_long = 0
    shared = config.negative_prompt or ""
    shared_is_long, uses_shared = counted.is_long([shared])[0], False
    for part in _parts(numbers):
        own = [(number, rows[number - config.first_row]) for number in part]
        named = [(row.prompt, f"prompt of row {number}") for number, row in own]
        named += [
            (row.negative_prompt, f"negative_prompt of row {number}") for number, row in own if row.negative_prompt
        ]
        is_long = dict(zip((text for text, _ in named), counted.is_long([text for text, _ in named]), strict=True))
        for text, place in named:
            if is_long[text]:
                num_long += 1
                if len(long) < MAX_LISTED:
                    texts.setdefault(text, place)
                    long.setdefault(text, show(_left_out(text, tokenizers), MAX_END))
        uses_shared = uses_shared or any(row.negative_prompt is None for _, row in own)
        num_rows += sum(
            is_long[row.prompt]
            or (shared_is_long if row.negative_prompt is None else is_long.get(row.negative_prompt, False))
            for _, row in own
        )
    if shared_is_long and uses_shared and len(long) < MAX_LISTED:
        texts[shared], long[shared] = "negative_prompt", show(_left_out(shared, tokenizers), MAX_END)
    num_long += shared_is_long and uses_shared
    counts = {text: counted[text] for text in long}
    return counted, _long_note(config, (num_rows, len(numbers)), texts, counts, counted.limit, long, num_long)


def run_texts(config: SavedConfig, tokens: Mapping[str, object]) -> Iterable[str]:
    """The texts of the images. tokens: as they were counted."""
    if not isinstance(tokens, CountedTexts):
        return list(tokens)
    rows, shared = config.prompts.rows, [config.negative_prompt or ""]
    own = (rows[number - config.first_row] for number in row_numbers(config, len(rows)))
    return itertools.chain(shared, (text for row in own for text in (row.prompt, row.negative_prompt) if text))


def _parts(numbers: range) -> Iterator[range]:
    return (numbers[start : start + PART] for start in range(0, len(numbers), PART))


class CountedTexts(Mapping[str, tuple[int, bool]]):
    """Any text -> (number of tokens before truncation, whether it is truncated). Counts when it is asked."""

    def __init__(self, tokenizers: Sequence["Tokenizer"], *, has_embeddings: bool):
        self._tokenizers = tokenizers
        self.limit = int(tokenizers[0]([""]).input_ids.shape[1])
        # A token has at least one byte, unless a word of the prompt is an embedding of several vectors.
        self._short = 0 if has_embeddings else self.limit - 2
        self._count = functools.lru_cache(PART)(self._counted)

    def is_long(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is truncated. Short texts are not tokenized for that."""
        checked = list(dict.fromkeys(text for text in texts if not (text.isascii() and len(text) <= self._short)))
        long: set[str] = set()
        for tokenizer in self._tokenizers if checked else ():
            truncated = tokenizer(checked).truncated
            long.update(text for text, cut in zip(checked, truncated, strict=True) if cut)
        return [text in long for text in texts]

    def __getitem__(self, text: str) -> tuple[int, bool]:
        return self._count(text)

    def _counted(self, text: str) -> tuple[int, bool]:
        found = [tokenizer([text]) for tokenizer in self._tokenizers]
        return max(int(one.num_tokens[0]) for one in found), any(bool(one.truncated[0]) for one in found)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def measure_texts(
    config: RunConfig,
    rows: Sequence[Row],
    rules: TextRules,
    tokenizers: Sequence["Tokenizer"],
    texts_of: Callable[[int, str], Iterable[str]],
) -> tuple[dict[str, tuple[int, bool]], dict[str, Extent], tuple[str, ...]]:
    """The same of texts that are not plain, with what each takes of a program. Raises UserError for what is wrong.

    texts_of: the number of a row, and a text of it -> what the text is over the steps.
    """
    numbers = row_numbers(config, len(rows))
    rows, texts = _texts(config, rows)
    counts: dict[str, tuple[int, bool]] = {}
    extents: dict[str, Extent] = {}
    faults: list[str] = []
    vectors: set[int] = set()
    users: dict[str, dict[object, int]] = {}  # a text -> the rows that have it, one of each number of model calls
    for number, row in zip(numbers, rows, strict=True):
        for text in (row.prompt, _or(row.negative_prompt, config.negative_prompt or "")):
            kind = row.num_inference_steps, row.strength, row.image is None
            users.setdefault(text, {}).setdefault(kind, number)
    for text, where in texts.items():
        counts[text] = 0, False
        try:
            for now in dict.fromkeys(now for number in users[text].values() for now in texts_of(number, text)):
                laid_out = [lay_out(now, rules, tokenizer) for tokenizer in tokenizers]
                number, cut = max(one.num_tokens for one in laid_out), any(one.truncated for one in laid_out)
                counts[text] = max(counts[text][0], number), counts[text][1] or cut
                extents[now] = extent_of(laid_out)
                vectors.update(token for chunk in laid_out[0].chunks for token in chunk.ids if token < 0)
        except UserError as error:
            faults.append(f"{where}: {error}")
    if faults:
        more = f"; and {len(faults) - MAX_LISTED} more texts" if len(faults) > MAX_LISTED else ""
        raise UserError("; ".join(faults[:MAX_LISTED]) + more)
    refused = config.on_truncate == "error"
    long = {text: "" for text, (number, cut) in counts.items() if cut or (refused and number > CHUNK + 2)}
    notes = _notes(config, rows, texts, counts, CHUNK + 2, long)
    return counts, extents, (*notes, *_unused(tokenizers[0].embedded, vectors))


def _unused(embedded: Sequence[TokenVectors], found: Collection[int]) -> Iterator[str]:
    """A line for each embedding that no text has. found: ids of vectors, as in a Unit."""
    first = -1
    for number, one in enumerate(embedded):
        if first not in found:
            yield f"embeddings[{number}]: {show(one.token)} is in no prompt of this run, so it has no effect"
        first -= len(one.vectors)


def _texts(config: RunConfig, rows: Sequence[Row]) -> tuple[list[Row], dict[str, str]]:
    """The rows that the run makes, and each of its texts with where it comes first."""
    texts: dict[str, str] = {}
    numbers = row_numbers(config, len(rows))
    rows = [rows[number - config.first_row] for number in numbers]
    for number, row in zip(numbers, rows, strict=True):
        texts.setdefault(row.prompt, f"prompt of row {number}")
        if row.negative_prompt is not None:
            texts.setdefault(row.negative_prompt, f"negative_prompt of row {number}")
    if config.negative_prompt is not None and any(row.negative_prompt is None for row in rows):
        texts.setdefault(config.negative_prompt, "negative_prompt")
    return rows, texts


def _notes(
    config: RunConfig,
    rows: Sequence[Row],
    texts: Mapping[str, str],
    counts: Mapping[str, tuple[int, bool]],
    limit: int,
    long: Mapping[str, str],
) -> tuple[str, ...]:
    """A warning of the texts that are too long. Raises UserError with on_truncate=error.

    texts: as `_texts` gives them.
    counts: text -> (number of tokens, whether it is cut).
    limit: tokens that the model reads at a time.
    long: a text that is too long -> its end, or nothing.
    """
    if not long:
        return ()
    shared = config.negative_prompt if config.negative_prompt is not None else ""
    num_rows = sum(any(text in long for text in (row.prompt, _or(row.negative_prompt, shared))) for row in rows)
    return _long_note(config, (num_rows, len(rows)), texts, counts, limit, long, len(long))


def _long_note(
    config: RunConfig,
    num_rows: tuple[int, int],
    texts: Mapping[str, str],
    counts: Mapping[str, tuple[int, bool]],
    limit: int,
    long: Mapping[str, str],
    num_long: int,
) -> tuple[str, ...]:
    """num_rows: that have a long text, and all. num_long: of the long texts; `long` has at least the first of them."""
    if not long:
        return ()
    listed = [
        f"{texts[name]} ({counts[name][0]} tokens{f', without {end!r}' if end else ''})"
        for name, end in list(long.items())[:MAX_LISTED]
    ]
    more = f", and {num_long - MAX_LISTED} more texts" if num_long > MAX_LISTED else ""
    found = f"{num_rows[0]} of {num_rows[1]} rows have a text of more than the {limit} tokens that the model reads"
    if config.on_truncate == "error":
        advice = "shorten them, or set on_truncate=warn to have their ends left out"
        raise UserError(f"on_truncate=error: {found}; {advice}: {', '.join(listed)}{more}")
    return (f"{found}; their ends are left out: {', '.join(listed)}{more}",)


def _or(own: str | None, shared: str) -> str:
    return shared if own is None else own


def _left_out(text: str, tokenizers: Sequence["Tokenizer"]) -> str:
    """The end of a text that is too long for a tokenizer, from the beginning of a word."""
    fits, cut = 0, min(len(text), MAX_CHARS_READ)  # numbers of characters: what precedes `cut` does not fit
    while cut - fits > 1:
        middle = (fits + cut) // 2
        if any(bool(tokenizer([text[:middle]]).truncated[0]) for tokenizer in tokenizers):
            cut = middle
        else:
            fits = middle
    start = max(text.rfind(sign, 0, cut) for sign in (" ", "\n")) + 1
    return text[start or fits :]
