"""A checkpoint: opened (small files, checked), then loaded part by part, strictly (contract 5).

Knows no devices except for the sharding that it gets.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from tpusd.checkpoints import model_index
from tpusd.checkpoints.architecture import SCHEDULER_FILE, read_architecture
from tpusd.checkpoints.control_nets import with_controlnets
from tpusd.checkpoints.copies import copies_of, difference
from tpusd.checkpoints.fill import Matched, fill, parameters
from tpusd.checkpoints.opened import Checkpoint, FolderWeights, Identity, Weights, check_size, check_vocabulary
from tpusd.checkpoints.other_part import with_other_parts
from tpusd.checkpoints.single_file import open_single_file
from tpusd.checkpoints.source import (
    CheckpointSource,
    Gone,
    ModelSource,
    Resolved,
    Unreachable,
    choose_all_weights,
    is_single_file,
    resolve_source,
    variant_notes,
)
from tpusd.checkpoints.tokenizer import open_tokenizer
from tpusd.errors import UserError, show


def open_checkpoint(source: CheckpointSource) -> Checkpoint:
    """Reads and checks all but the weights' data: model_index.json, configs, tokenizers, headers of weight files.

    source: a ModelSource or a ModelConfig. Where its repo is gone, a copy with the same sums is opened instead. Every
        error is a UserError.
    """
    checkpoint = open_single_file(source) if is_single_file(source) else _open_directory(source)
    checkpoint = with_other_parts(checkpoint, unet=source.unet, vae=source.vae)
    checkpoint = with_controlnets(checkpoint, source.controlnets)
    if source.clip_skip:
        configs = checkpoint.family.with_clip_skip(checkpoint.configs, source.clip_skip)
        checkpoint = dataclasses.replace(checkpoint, configs=configs)
    return checkpoint


def _open_directory(source: CheckpointSource) -> Checkpoint:
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
    weights: dict[str, Weights] = {}
    files = [model_index.FILE, SCHEDULER_FILE]
    names = {part: directory.names(part) for part in architecture.family.components}
    chosen_files = choose_all_weights(
        names, architecture.family, resolved.variant, directory.shown(""), resolved.replaced
    )
    for part, chosen in chosen_files.items():
        files.append(f"{part}/config.json")
        found = FolderWeights(directory=directory, format=chosen.format, name=f"{part}/{chosen.name}")
        opened = found.open()  # a truncated file is found here, not after compiling
        check_size(architecture.configs[part], opened.tensors, found.where)
        weights[part] = found
        files += [f"{part}/{file.name}" for file in opened.files]
    tokenizers = []
    for part, component in architecture.family.components.items():
        if component.tokenizer is not None:
            tokenizer = open_tokenizer(directory, component.tokenizer)
            tokenizers.append(
                check_vocabulary(tokenizer, architecture.configs[part], directory.shown(component.tokenizer))
            )
            files += [f"{component.tokenizer}/{path.name}" for path in tokenizer.files]
    paths = {name: directory.root / name for name in files}
    return Checkpoint(
        **vars(architecture),
        directory=directory.root,
        identity=Identity(paths, resolved.repo, resolved.commit, resolved.variant),
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
    weights = checkpoint.weights[part]
    model = checkpoint.abstract(part, param_dtype=param_dtype)
    source = weights.open(parameters(model))
    return Matched.of(model, checkpoint.family.component(part), source, weights.where)
