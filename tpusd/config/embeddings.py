"""The fields of an embedding (textual inversion): where its file is, and which word of a prompt it is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tpusd.config.typed import Help
from tpusd.errors import UserError, show

MAX_EMBEDDINGS = 64
MAX_TOKEN_CHARS = 100


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """An embedding: vectors of a word. One of `path` and `repo` is set."""

    path: Annotated[str | None, Help("a .safetensors file, or a .pt or .bin file of PyTorch")] = None
    repo: Annotated[str | None, Help("owner/name on the Hugging Face Hub")] = None
    file: Annotated[str | None, Help("the repo's file; null: the only safetensors file that it has")] = None
    revision: Annotated[str | None, Help("the repo's branch, tag or commit")] = None
    token: Annotated[
        str | None, Help("the word in prompts; null: the name in a file of diffusers, otherwise the file's own name")
    ] = None
    sha256: Annotated[str | None, Help("of the file; a run refuses another file")] = None


@dataclass(frozen=True, kw_only=True)
class AppliedEmbedding:
    """What an embedding is to an image: which bytes, and which word."""

    sha256: str
    token: str


def applied_embeddings(embeddings: Sequence[EmbeddingConfig]) -> tuple[AppliedEmbedding, ...]:
    """The embeddings of a config whose sha256 and tokens are known."""
    return tuple(AppliedEmbedding(sha256=one.sha256 or "", token=one.token or "") for one in embeddings)


def check_embedding(embedding: EmbeddingConfig, field: str) -> None:
    """The rules between its fields. Raises UserError. field: such as `embeddings[0]`."""
    sources = {name: value for name in ("path", "repo") if (value := getattr(embedding, name)) is not None}
    if len(sources) != 1:
        given = " ".join(f"{field}.{name}={show(value)}" for name, value in sources.items()) or field
        rule = "exactly one of path and repo must be set"
        raise UserError(f"{given}: {rule}; write embeddings=[{{path: FILE.safetensors, token: NAME}}]")
    if embedding.path is not None and not embedding.path.strip():
        raise UserError(f"{field}.path='': must name a file")
    if embedding.repo is None:
        for name in ("file", "revision"):
            if (value := getattr(embedding, name)) is not None:
                raise UserError(f"{field}.{name}={show(value)}: is for files of the Hub; leave it out")
    if embedding.token is not None:
        check_token(embedding.token, f"{field}.token={show(embedding.token)}")


def check_token(token: str, where: str) -> None:
    """Refuses what can be no word of a prompt. Raises UserError, whose line begins with `where`."""
    if not token.strip() or token != token.strip() or re.search(r"\s\s|[^\S ]", token):
        raise UserError(f"{where}: must be a word or several, without spaces around it; write token: NAME")
    if len(token) > MAX_TOKEN_CHARS:
        raise UserError(f"{where}: has {len(token)} characters; at most {MAX_TOKEN_CHARS} are read")
    if not token.isprintable():
        raise UserError(f"{where}: holds a character that cannot be printed; write token: NAME")
