"""How prompts of a run are read, and what a text has become before it has token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tpusd.config.schema import Syntax, Weighting
from tpusd.errors import UserError
from tpusd.syntax.embeddings import TokenVectors

CHUNK = 75  # tokens of a chunk, without begin and end of text
MAX_CHUNKS = 32  # of a text
MAX_DEPTH = 100  # of brackets that are open at a time: 1.1**100 is 13780


class Fragment(NamedTuple):
    """Words of one weight."""

    text: str
    weight: float = 1.0


BREAK = Fragment("BREAK", -1.0)  # ends a chunk


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """How texts are read.

    weighting: None for plain text, which has no weights.
    whole: a text that is longer than the window goes on in further chunks; otherwise its end is cut off.
    embedded: whether some words have vectors of their own.
    """

    syntax: Syntax = "plain"
    weighting: Weighting | None = None
    whole: bool = False
    embedded: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether a text is one chunk of plain words, as the model's own pipeline reads it."""
        return self.syntax == "plain" and not self.whole and not self.embedded


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """What decides the shapes of a text's program.

    weighting: as in TextRules.
    chunks: of the longest text of an image.
    versions: of the text that are blended: itself, and one without each fragment that weighs less than 1.
    embedded: whether words may have vectors of their own.
    """

    weighting: Weighting | None
    chunks: int
    versions: int = 1
    embedded: bool = False


class Words(Protocol):
    """What is needed of a tokenizer."""

    @property
    def embedded(self) -> Sequence[TokenVectors]:
        """Words that have vectors of their own."""
        ...

    def words(self, texts: list[str], /) -> list[list[int]]:
        """Token ids of texts of any length, without begin and end of text."""
        ...

    def normalized(self, text: str, /) -> str:
        """A text as it is before it is split into words."""
        ...

    def id_of(self, token: str, /) -> int | None:
        """The id of a token of the vocabulary."""
        ...

    def ends_word(self, token: int, /) -> bool:
        """Whether a token is the end of a word."""
        ...


def too_deep() -> UserError:
    return UserError(f"has more than {MAX_DEPTH} brackets that are open at a time; remove some")
