"""The embeddings of a run: found, fitted to its model, and what its config and run.json say of them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tpusd.config.embeddings import EmbeddingConfig, check_token
from tpusd.config.schema import RunConfig
from tpusd.errors import UserError, show
from tpusd.runs.loras import changed_files
from tpusd.syntax.embeddings import TokenVectors

if TYPE_CHECKING:
    from tpusd.checkpoints import Checkpoint
    from tpusd.checkpoints.adapters import Embedding


class OpenEmbeddings(Protocol):
    """The signature of `open_embeddings`."""

    def __call__(
        self, embeddings: Sequence[EmbeddingConfig], model_name: str, checkpoint: "Checkpoint", /
    ) -> tuple["Embedding", ...]: ...


def open_embeddings(
    embeddings: Sequence[EmbeddingConfig], model_name: str, checkpoint: "Checkpoint"
) -> tuple["Embedding", ...]:
    """Each embedding, found, read and fitted to the model. Raises UserError."""
    return _all_of(embeddings, lambda given, field: _open(given, field, model_name, checkpoint))


def open_embeddings_once() -> OpenEmbeddings:
    """As `open_embeddings`, for runs of which several name the same file for the same model: it is opened once."""
    opened: dict[tuple[object, EmbeddingConfig], Embedding] = {}

    def open_all(
        embeddings: Sequence[EmbeddingConfig], model_name: str, checkpoint: "Checkpoint", /
    ) -> tuple["Embedding", ...]:
        def once(given: EmbeddingConfig, field: str) -> "Embedding":
            key = (checkpoint.directory, model_name), dataclasses.replace(given, sha256=None)
            if key not in opened:
                opened[key] = _open(given, field, model_name, checkpoint)
            return opened[key]

        return _all_of(embeddings, once)

    return open_all


def with_embeddings(checkpoint: "Checkpoint", embeddings: Sequence["Embedding"]) -> "Checkpoint":
    """The checkpoint, whose tokenizers know the embeddings."""
    if not embeddings:
        return checkpoint
    tokenizers = [
        tokenizer.with_vectors([TokenVectors(token=one.token, vectors=one.vectors[i]) for one in embeddings])
        for i, tokenizer in enumerate(checkpoint.tokenizers)
    ]
    return dataclasses.replace(checkpoint, tokenizers=tuple(tokenizers))


def changed_embeddings(config: RunConfig, embeddings: Sequence["Embedding"]) -> tuple[str, ...]:
    """A line for each file that is not the one that the config asks for. Raises ChangedFile unless that is accepted."""
    return changed_files(config, "embeddings", config.embeddings, [one.file for one in embeddings])


def embedding_to_save(given: EmbeddingConfig, embedding: "Embedding") -> EmbeddingConfig:
    """Its fields with what their meaning depended on: a full path, or the file and the commit; the word, the sha256."""
    file = embedding.file
    known = dataclasses.replace(given, token=embedding.token, sha256=file.sha256)
    if given.repo is None:
        return dataclasses.replace(known, path=str(file.path))
    return dataclasses.replace(known, file=file.file, revision=file.commit or given.revision)


def describe_embeddings(embeddings: Sequence["Embedding"]) -> list[dict[str, Any]]:
    """What run.json says of the files: the word, its vectors, where the file is from, and its sha256."""
    return [
        {
            "token": one.token,
            "num_vectors": one.num_vectors,
            "path": str(one.file.path) if one.file.repo is None else None,
            "repo": one.file.repo,
            "file": one.file.file,
            "commit": one.file.commit,
            "sha256": one.file.sha256,
        }
        for one in embeddings
    ]


def _all_of(
    embeddings: Sequence[EmbeddingConfig], open_one: Callable[[EmbeddingConfig, str], "Embedding"]
) -> tuple["Embedding", ...]:
    made = tuple(open_one(given, f"embeddings[{number}]") for number, given in enumerate(embeddings))
    seen: dict[str, int] = {}
    for number, one in enumerate(made):
        where = f"embeddings[{number}].token={show(one.token)}"
        check_token(one.token, where)
        other = seen.setdefault(one.token.casefold(), number)
        if other != number:
            raise UserError(f"{where}: embeddings[{other}] has this token too; give each a token of its own")
    return made


def _open(given: EmbeddingConfig, field: str, model_name: str, checkpoint: "Checkpoint") -> "Embedding":
    from tpusd.checkpoints.adapters import find_embedding, open_embedding

    return open_embedding(find_embedding(given, field), checkpoint, model_name, given.token)
