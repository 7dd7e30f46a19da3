"""CLIP's tokenizer: prompts -> 77 token ids. Wraps transformers' fast CLIPTokenizer; knows no model."""

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from tpusd.checkpoints.files import Directory
from tpusd.errors import UserError, show
from tpusd.process.waiting import waiting
from tpusd.syntax.embeddings import TokenVectors

MAX_LENGTH = 77  # Stable Diffusion's text encoders see 77 positions, whatever the prompt
MAX_FILE_BYTES = 16 << 20  # CLIP's largest, tokenizer.json, is under 4 MB
FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "added_tokens.json",
)
_WEIGHTS = (".safetensors", ".bin", ".msgpack", ".h5", ".onnx", ".pt", ".pth", ".ckpt")


class TokenizedPrompts(NamedTuple):
    """Token ids of n prompts."""

    input_ids: np.ndarray  # (n, 77) int32
    num_tokens: np.ndarray  # (n,) int32: before truncation, with begin and end of text
    truncated: np.ndarray  # (n,) bool


class _Normalizer(Protocol):
    def normalize_str(self, text: str, /) -> str: ...


class _Inner(Protocol):
    @property
    def normalizer(self) -> _Normalizer: ...


class TokenizerBackend(Protocol):
    """What is used of transformers' tokenizer."""

    @property
    def backend_tokenizer(self) -> _Inner: ...

    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    def get_vocab(self) -> dict[str, int]: ...

    def convert_ids_to_tokens(self, ids: int, /) -> str: ...

    def __call__(self, prompts: list[str], *, verbose: bool) -> Mapping[Literal["input_ids"], list[list[int]]]: ...


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Prompts -> token ids, with the checkpoint's own padding and special tokens.

    SD 1.x pads with end-of-text; SD 2.x and SDXL's second tokenizer pad with `!` (id 0).
    """

    files: tuple[Path, ...]  # those of FILES that the folder has
    backend: TokenizerBackend
    embedded: tuple[TokenVectors, ...] = field(default=(), compare=False)  # words that have vectors of their own

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return max(self.backend.get_vocab().values(), default=-1) + 1

    def __call__(self, prompts: Sequence[str]) -> TokenizedPrompts:
        """Tokenizes text of any length, also with NUL or control characters. Raises UserError if it is not Unicode."""
        rows = self._rows(prompts)
        end, pad = self.backend.eos_token_id, self.backend.pad_token_id
        input_ids = np.full((len(rows), MAX_LENGTH), pad, np.int32)
        num_tokens = np.array([len(row) for row in rows], np.int32)
        for ids, row in zip(input_ids, rows, strict=True):
            row = row if len(row) <= MAX_LENGTH else [*row[: MAX_LENGTH - 1], end]
            ids[: len(row)] = row
        return TokenizedPrompts(input_ids, num_tokens, num_tokens > MAX_LENGTH)

    def words(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without begin and end of text, of texts of any length. Raises UserError as a call does."""
        return [row[1:-1] for row in self._rows(texts)]

    def normalized(self, text: str) -> str:
        """A text as it is before it is split into words: in small letters, without repeated spaces."""
        return self.backend.backend_tokenizer.normalizer.normalize_str(text)

    def with_vectors(self, embedded: Sequence[TokenVectors]) -> "Tokenizer":
        """The same tokenizer with further words, which `words` does not know."""
        return replace(self, embedded=(*self.embedded, *embedded))

    def window(self, words: Sequence[int]) -> np.ndarray:
        """(77,) int32: at most 75 token ids between begin and end of text, padded."""
        ids = np.full(MAX_LENGTH, self.backend.pad_token_id, np.int32)
        row = [self.backend.bos_token_id, *words, self.backend.eos_token_id]
        ids[: len(row)] = row
        return ids

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary, such as `,</w>`."""
        return self.backend.get_vocab().get(token)

    def ends_word(self, token: int) -> bool:
        """Whether a token is the end of a word."""
        return self.backend.convert_ids_to_tokens(token).endswith("</w>")

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        for prompt in texts:
            try:
                prompt.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"prompt={show(prompt)}: has half a surrogate pair at character {error.start}; correct the text"
                ) from None
        return self.backend(list(texts), verbose=False)["input_ids"] if texts else []


def is_whole(names: Iterable[str]) -> bool:
    """Whether a folder with these files holds a tokenizer: tokenizer.json, or vocab.json with merges.txt."""
    names = set(names)
    return "tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names


def open_tokenizer(directory: Directory, folder: str) -> Tokenizer:
    """The tokenizer in `folder`, such as `tokenizer`: vocab.json with merges.txt, or tokenizer.json alone.

    folder: empty for the directory itself, which may hold weights too.

    Never reaches the network and runs no code from the checkpoint. Raises UserError for what is missing or broken.
    """
    prefix = f"{folder}/" if folder else ""
    paths = {name: path for name in FILES if (path := directory.path(prefix + name)) is not None}
    if not is_whole(paths):
        raise UserError(
            f"{directory.shown(folder)}: has neither vocab.json with merges.txt nor tokenizer.json; "
            "get the checkpoint again"
        )
    for name in directory.names(folder):  # every file, because the library may open more than FILES
        if name.startswith(".") or name.endswith(_WEIGHTS):
            continue  # of a desktop or an editor, or weights beside it; no tokenizer's file has such a name
        if name.endswith(".json"):
            directory.json(prefix + name, MAX_FILE_BYTES)
        else:
            directory.read(prefix + name, MAX_FILE_BYTES, "")
    with _without_advice(), waiting("loading the tokenizer"):
        from transformers import CLIPTokenizerFast  # type: ignore[attr-defined]  # loaded by name; takes seconds

    try:
        with _quiet():
            backend = CLIPTokenizerFast.from_pretrained(str(directory.root / folder), local_files_only=True)
        special = {name: getattr(backend, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        probe = backend(["a"], verbose=False)["input_ids"][0]
    except Exception as error:  # the library raises many types, plain Exception too
        raise UserError(
            f"{directory.shown(folder)}: is not a CLIP tokenizer ({show(str(error), 160)}); get the checkpoint again"
        ) from None
    if None in special.values() or probe[0] != special["bos"] or probe[-1] != special["eos"]:
        raise UserError(
            f"{directory.shown(folder)}: does not put begin and end of text around a prompt as CLIP's tokenizer does; "
            "get the checkpoint again"
        )
    return Tokenizer(files=tuple(paths.values()), backend=backend)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """transformers advises to install PyTorch when it is imported. Its tokenizers do not need that."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' advice, which is about models that are not used here."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def write_byte_tokenizer(folder: Path, *, pad_token: str = "<|endoftext|>") -> int:
    """Writes CLIP's format with bytes as the only tokens, for random checkpoints. Returns the vocabulary's size."""
    tokens = clip_vocabulary([])
    write_tokenizer(folder, tokens, [], pad_token=pad_token)
    return len(tokens)


def clip_vocabulary(merges: Sequence[str]) -> list[str]:
    """The tokens in the order of CLIP's own vocabulary.

    256 bytes, the same bytes at the end of a word, what each merge makes, then begin and end of text.
    """
    letters = [
        _printable_byte(b)
        for b in (*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173)
    ]
    merged = [merge.replace(" ", "") for merge in merges]
    return [*letters, *(f"{letter}</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]


def write_tokenizer(folder: Path, tokens: Sequence[str], merges: Sequence[str], *, pad_token: str) -> None:
    """Writes CLIP's format. tokens: by id. merges: pairs of tokens with a space between them, the first merge first."""
    folder.mkdir(parents=True, exist_ok=True)
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad_token,
    }
    documents = {
        "vocab.json": {token: i for i, token in enumerate(tokens)},
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": MAX_LENGTH,
            "do_lower_case": True,
            **special,
        },
    }
    for name, values in documents.items():
        (folder / name).write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _printable_byte(byte: int) -> str:
    """GPT-2's map of bytes to printable characters: printable Latin-1 as itself, the others from U+0100 on."""
    others = (*range(33), *range(127, 161), 173)
    return chr(256 + others.index(byte)) if byte in others else chr(byte)
