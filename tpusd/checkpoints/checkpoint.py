"""A checkpoint: opened (small files, checked), then loaded part by part, strictly (contract 5).

Knows no devices but for the sharding that it is handed.
"""

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx

from tpusd.checkpoints.architecture import Architecture, read_architecture, tokenizer_folders
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.fill import fill
from tpusd.checkpoints.formats.msgpack import FlaxMsgpack
from tpusd.checkpoints.formats.safetensors import Safetensors, TensorSource, open_shards
from tpusd.checkpoints.source import ModelSource, Resolved, choose_weights, resolve_source
from tpusd.checkpoints.tokenizer import Tokenizer, open_tokenizer
from tpusd.errors import UserError


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
        """Relative file -> sha256. Reads every file, some seconds per GB: call `start_hashing` early."""
        return {name: _sha256(self.directory / name) for name in self.files}

    def start_hashing(self) -> threading.Thread:
        """Computes `sha256` in a thread while something else goes on; join it, then read `sha256`."""
        thread = threading.Thread(target=lambda: self.sha256, name="checkpoint-sha256", daemon=True)
        thread.start()
        return thread


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Architecture):
    """What the small files say. Weights are read by `load_weights`."""

    directory: Path
    identity: Identity
    tokenizers: tuple[Tokenizer, ...]
    weights: Mapping[str, tuple[str, str]]  # part -> (format, relative file): "safetensors", "shards" or "msgpack"


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Reads and checks all but the weights' data: model_index.json, configs, tokenizers, headers of weight files.

    source: a ModelSource, or a config with its five fields. Every error is a UserError.
    """
    return describe(resolve_source(source))


def describe(resolved: Resolved) -> Checkpoint:
    """`open_checkpoint` for a directory that is already here."""
    directory = resolved.directory
    architecture = read_architecture(directory)
    weights, files = {}, []
    for part in architecture.parts:
        chosen = choose_weights(directory.names(part), part, resolved.variant, directory.shown(part))
        weights[part] = (chosen.format, f"{part}/{chosen.name}")
        opened = _open_weights(directory, *weights[part])  # a truncated file is found here, not after compiling
        files += [f"{part}/{file.name}" for file in opened.files]
    folders = tokenizer_folders(architecture.kind)
    tokenizers = tuple(open_tokenizer(directory, folder) for folder in folders)
    for folder, tokenizer, config in zip(folders, tokenizers, architecture.text_encoder_configs, strict=True):
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{directory.shown(folder)}: has {tokenizer.vocab_size} tokens, the text encoder's config.json says "
                f"vocab_size={config.vocab_size}; get the checkpoint again"
            )
        files += [f"{folder}/{path.name}" for path in tokenizer.files]
    files += ["model_index.json", "scheduler/scheduler_config.json"]
    files += [f"{part}/config.json" for part in architecture.parts]
    return Checkpoint(
        **vars(architecture),
        directory=directory.root,
        identity=Identity(directory.root, resolved.repo, resolved.commit, resolved.variant, tuple(sorted(files))),
        tokenizers=tokenizers,
        weights=weights,
    )


def load_weights(checkpoint: Checkpoint, part: str, *, param_dtype, sharding=None) -> nnx.State:
    """One part's parameters as `param_dtype`, placed as `sharding` says (see jax.device_put; None: the default device).

    part: one of checkpoint.parts. Host memory holds two tensors at most. The state has the structure of
    `nnx.split(checkpoint.abstract(part))[1]`. Raises UserError that lists all that does not fit.
    """
    directory = Directory(checkpoint.directory)
    file_format, name = checkpoint.weights[part]
    source = _open_weights(directory, file_format, name)
    model = checkpoint.abstract(part, param_dtype=param_dtype)
    return fill(model, part, source, dtype=param_dtype, sharding=sharding, where=directory.shown(name))


def _open_weights(directory: Directory, file_format: str, name: str) -> TensorSource:
    if file_format == "shards":
        return open_shards(directory, name)
    path = directory.need(name, "get the checkpoint again")
    return FlaxMsgpack(path) if file_format == "msgpack" else Safetensors((path,))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def config_values(config) -> dict[str, Any]:
    """A config dataclass as the JSON of config.json has it."""
    return {
        f.name: list(v) if isinstance(v := getattr(config, f.name), tuple) else v for f in dataclasses.fields(config)
    }
