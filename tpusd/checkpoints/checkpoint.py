"""A checkpoint: opened (small files, checked), then loaded part by part, strictly (contract 5).

Knows no devices except for the sharding that it gets.
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from tpusd.checkpoints import model_index
from tpusd.checkpoints.architecture import SCHEDULER_FILE, Architecture, read_architecture
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.fill import fill
from tpusd.checkpoints.formats.msgpack import FlaxMsgpack
from tpusd.checkpoints.formats.safetensors import Safetensors, TensorSource, open_shards
from tpusd.checkpoints.source import CheckpointSource, Resolved, choose_all_weights, resolve_source
from tpusd.checkpoints.tokenizer import Tokenizer, open_tokenizer
from tpusd.errors import UserError
from tpusd.families.base import NetworkConfig, config_values


@dataclass(frozen=True)
class Identity:
    """Which bytes a checkpoint is: repository and commit if it came from the Hub, and every file that is read."""

    directory: Path
    repo: str | None
    commit: str | None
    variant: str | None
    files: tuple[str, ...]  # relative to the directory, sorted

    @functools.cached_property
    def sha256(self) -> Mapping[str, str]:
        """Relative file -> sha256. Reads every file, some seconds per GB."""
        return {name: _sha256(self.directory / name) for name in self.files}


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Architecture):
    """What the small files say. Weights are read by `load_weights`."""

    directory: Path
    identity: Identity
    tokenizers: tuple[Tokenizer, ...]  # in the order of family.tokenizers
    weights: Mapping[str, tuple[str, str]]  # part -> (format, relative file): "safetensors", "shards" or "msgpack"


def open_checkpoint(source: CheckpointSource) -> Checkpoint:
    """Reads and checks all but the weights' data: model_index.json, configs, tokenizers, headers of weight files.

    source: a ModelSource or a ModelConfig. Every error is a UserError.
    """
    return describe(resolve_source(source))


def describe(resolved: Resolved) -> Checkpoint:
    """`open_checkpoint` for a directory that is already here."""
    directory = resolved.directory
    architecture = read_architecture(directory)
    weights: dict[str, tuple[str, str]] = {}
    files = [model_index.FILE, SCHEDULER_FILE]
    names = {part: directory.names(part) for part in architecture.family.components}
    chosen_files = choose_all_weights(names, architecture.family, resolved.variant, directory.shown(""))
    for part, chosen in chosen_files.items():
        files.append(f"{part}/config.json")
        weights[part] = (chosen.format, f"{part}/{chosen.name}")
        opened = _open_weights(directory, *weights[part])  # a truncated file is found here, not after compiling
        files += [f"{part}/{file.name}" for file in opened.files]
    tokenizers = []
    for part, component in architecture.family.components.items():
        if component.tokenizer is not None:
            tokenizer = _open_tokenizer(directory, component.tokenizer, architecture.configs[part])
            tokenizers.append(tokenizer)
            files += [f"{component.tokenizer}/{path.name}" for path in tokenizer.files]
    return Checkpoint(
        **vars(architecture),
        directory=directory.root,
        identity=Identity(directory.root, resolved.repo, resolved.commit, resolved.variant, tuple(sorted(files))),
        tokenizers=tuple(tokenizers),
        weights=weights,
    )


def load_weights(
    checkpoint: Checkpoint, part: str, *, param_dtype: DTypeLike, sharding: jax.sharding.Sharding | None = None
) -> nnx.State[Any, Any]:
    """One part's parameters as `param_dtype`, placed as `sharding` says (see jax.device_put; None: the default device).

    part: one of checkpoint.parts. Host memory holds two tensors at most. The state has the structure of
    `nnx.split(checkpoint.abstract(part))[1]`. Raises UserError that lists all that does not fit.
    """
    directory = Directory(checkpoint.directory)
    file_format, name = checkpoint.weights[part]
    source = _open_weights(directory, file_format, name)
    model = checkpoint.abstract(part, param_dtype=param_dtype)
    component = checkpoint.family.components[part]
    return fill(model, component, source, dtype=param_dtype, sharding=sharding, where=directory.shown(name))


def _open_tokenizer(directory: Directory, folder: str, config: NetworkConfig) -> Tokenizer:
    """Refuses a tokenizer with ids for which the text encoder has no embedding."""
    tokenizer, vocab_size = open_tokenizer(directory, folder), config_values(config)["vocab_size"]
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{directory.shown(folder)}: has {tokenizer.vocab_size} tokens, the text encoder's config.json says "
            f"vocab_size={vocab_size}; get the checkpoint again"
        )
    return tokenizer


def _open_weights(directory: Directory, file_format: str, name: str) -> TensorSource:
    if file_format == "shards":
        return open_shards(directory, name)
    path = directory.need(name, "get the checkpoint again")
    return FlaxMsgpack(path) if file_format == "msgpack" else Safetensors((path,))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
