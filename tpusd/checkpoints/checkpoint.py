"""A checkpoint: opened (small files, checked), then loaded part by part, strictly (contract 5).

Knows no devices except for the sharding that it gets.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from tpusd.checkpoints import model_index
from tpusd.checkpoints.architecture import SCHEDULER_FILE, Architecture, read_architecture
from tpusd.checkpoints.copies import copies_of, difference
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.fill import Matched, fill
from tpusd.checkpoints.formats.msgpack import FlaxMsgpack
from tpusd.checkpoints.formats.safetensors import Safetensors, TensorSource, open_shards
from tpusd.checkpoints.source import (
    CheckpointSource,
    Gone,
    ModelSource,
    Resolved,
    Unreachable,
    choose_all_weights,
    resolve_source,
    variant_notes,
)
from tpusd.checkpoints.tokenizer import Tokenizer, open_tokenizer
from tpusd.errors import UserError, show
from tpusd.families.base import MIN_BLOCK_TENSORS, NetworkConfig, config_values
from tpusd.networks.config import MAX_PARAMETERS, MAX_TENSOR


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
    notes: tuple[str, ...]  # what the user should know of the choice of files, a line each


def open_checkpoint(source: CheckpointSource) -> Checkpoint:
    """Reads and checks all but the weights' data: model_index.json, configs, tokenizers, headers of weight files.

    source: a ModelSource or a ModelConfig. Where its repo is gone, a copy with the same sums is opened instead. Every
        error is a UserError.
    """
    try:
        return describe(resolve_source(source))
    except (Gone, Unreachable) as error:
        return _open_copy(source, error)


def _open_copy(source: CheckpointSource, missing: Gone | Unreachable) -> Checkpoint:
    """The first copy of the source's repo that is there and is accepted. Raises UserError, `missing` if it has none."""
    assert source.repo is not None
    refused = []
    for copy in copies_of(source.repo, source.revision, source.sha256):
        place = f"{copy.repo}@{copy.commit}"
        try:
            where = ModelSource(repo=copy.repo, revision=copy.commit, variant=source.variant)
            checkpoint = describe(resolve_source(where, only_cached=isinstance(missing, Unreachable)))
        except (Gone, Unreachable):
            refused.append(f"{place} is not there either")
            continue
        except UserError as error:
            refused.append(str(error))
            continue
        identity = checkpoint.identity
        weights = frozenset(name for name in identity.files if name.endswith((".safetensors", ".msgpack")))
        if (reason := difference(source.repo, source.sha256, identity.sha256, weights)) is not None:
            refused.append(f"{place}: {reason}")
            continue
        note = f"model.repo={show(source.repo)}: is gone or cannot be reached, and its copy {place} is read"
        return dataclasses.replace(checkpoint, notes=(note, *checkpoint.notes))
    if not refused or isinstance(missing, Unreachable):
        raise missing
    raise UserError(f"{missing}; no copy can be read: {'; '.join(refused)}") from None


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
        _check_size(architecture.configs[part], opened, directory.shown(weights[part][1]))
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
        notes=variant_notes(chosen_files, resolved.variant),
    )


def load_weights(
    checkpoint: Checkpoint, part: str, *, param_dtype: DTypeLike, sharding: jax.sharding.Sharding | None = None
) -> nnx.State[Any, Any]:
    """One part's parameters as `param_dtype`, placed as `sharding` says (see jax.device_put; None: the default device).

    part: one of checkpoint.parts. Host memory holds two tensors at most. The state has the structure of
    `nnx.split(checkpoint.abstract(part))[1]`. Raises UserError that lists all that does not fit.
    """
    return fill(match_weights(checkpoint, part, param_dtype=param_dtype), dtype=param_dtype, sharding=sharding)


def match_weights(checkpoint: Checkpoint, part: str, *, param_dtype: DTypeLike) -> Matched:
    """Finds the stored tensor of every parameter of a part, by name and shape; reads no values.

    part: one of checkpoint.parts. Raises UserError that lists all that does not fit.
    """
    directory = Directory(checkpoint.directory)
    file_format, name = checkpoint.weights[part]
    source = _open_weights(directory, file_format, name)
    model = checkpoint.abstract(part, param_dtype=param_dtype)
    return Matched.of(model, checkpoint.family.components[part], source, directory.shown(name))


def _check_size(config: NetworkConfig, source: TensorSource, where: str) -> None:
    """Refuses weights of far fewer layers than the config describes, before a network of that size is built, and
    weights that are larger than any that these families have, before they fill the memory.

    What does not fit in detail is found when the tensors are matched, which is before anything is compiled.
    """
    sizes = {name: math.prod(info.shape) for name, info in source.tensors.items()}
    largest = max(sizes, key=sizes.__getitem__, default="")
    if sizes and (sizes[largest] > MAX_TENSOR or sum(sizes.values()) > MAX_PARAMETERS):
        raise UserError(
            f"{where}: has {sum(sizes.values())} parameters, {sizes[largest]} of them in {show(largest)}; the limits "
            f"are {MAX_PARAMETERS} and {MAX_TENSOR}, ten times the largest published network; choose another checkpoint"
        )
    if len(source.tensors) < MIN_BLOCK_TENSORS * config.num_blocks:
        raise UserError(
            f"{where}: has {len(source.tensors)} tensors, too few for the {config.num_blocks} resnets and transformer "
            "layers of its config.json; get the checkpoint again, or restore its config.json"
        )


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
