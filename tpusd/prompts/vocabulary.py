"""What a run says about the embedded model: which words it does not know, and how to choose a larger model.

Knows how its tokenizer works, and not its list of words: every word of its training is one token.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from tpusd.config.schema import ModelConfig
from tpusd.errors import show

if TYPE_CHECKING:
    import numpy as np

ASSET = "tiny"
NEXT = "the embedded model draws portraits only; model=sd15 draws anything (downloaded once from the Hugging Face Hub)"
# Words without a meaning of their own: a prompt that has them is not outside the vocabulary.
_FUNCTION_WORDS = frozenset("the his her its their is are who that of to at by it he she has wears".split())


class TokenCounts(Protocol):
    """num_tokens (n,): of each text, with begin and end of text."""

    @property
    def num_tokens(self) -> "np.ndarray": ...


class CountsTokens(Protocol):
    """What is used of a tokenizer."""

    def __call__(self, prompts: Sequence[str], /) -> TokenCounts: ...


def unknown_words(texts: Iterable[str], tokenizer: CountsTokens) -> list[str]:
    """The words of `texts` that the tokenizer splits, each once, in order. Numbers are not words."""
    found = dict.fromkeys(word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower()))
    words = [word for word in found if word not in _FUNCTION_WORDS]
    pieces = tokenizer(words).num_tokens - 2  # begin and end of text
    return [word for word, number in zip(words, pieces, strict=True) if number > 1]


def vocabulary_notes(model: ModelConfig, texts: Iterable[str], tokenizers: Sequence[CountsTokens]) -> tuple[str, ...]:
    """One note that lists the words which the embedded model does not know; for another model no note."""
    if model.asset != ASSET:
        return ()
    unknown = unknown_words(texts, tokenizers[0])
    if not unknown:
        return ()
    listed = ", ".join(show(word) for word in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
    return (
        f"the embedded model knows portraits only, and these words mean nothing to it: {listed}; "
        "it draws a portrait all the same (model=sd15 draws anything)",
    )


def next_step(model: ModelConfig) -> str | None:
    """The line after a run's summary, None for another model."""
    return NEXT if model.asset == ASSET else None
