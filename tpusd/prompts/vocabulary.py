"""What a run says of the embedded model: which words it has never seen, and how to go on to a larger model.

Knows its tokenizer's habit, not its word list: every word that it was trained with is one token.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from tpusd.config.schema import ModelConfig
from tpusd.errors import show

ASSET = "tiny"
NEXT = "the embedded model draws portraits only; model=sd15 draws anything (downloaded once from the Hugging Face Hub)"
# Words that say nothing by themselves: a prompt is not outside the vocabulary for them.
_FUNCTION_WORDS = frozenset("the his her its their is are who that of to at by it he she has wears".split())


def unknown_words(texts: Iterable[str], tokenizer: Callable) -> list[str]:
    """The words of `texts` that the tokenizer takes to pieces, each once, in order. Numbers are no words."""
    words = dict.fromkeys(word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower()))
    words = [word for word in words if word not in _FUNCTION_WORDS]
    pieces = tokenizer(words).num_tokens - 2  # begin and end of text
    return [word for word, number in zip(words, pieces, strict=True) if number > 1]


def vocabulary_notes(model: ModelConfig, texts: Sequence[str], tokenizers: Sequence[Callable]) -> tuple[str, ...]:
    """One note for all that the run asks of the embedded model and it cannot know; none for another model."""
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
