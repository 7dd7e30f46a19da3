"""What an opened checkpoint is: its architecture, its files, and where the weights of each network are."""

import functools
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tpusd.checkpoints.architecture import Architecture
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.formats.msgpack import FlaxMsgpack
from tpusd.checkpoints.formats.safetensors import Safetensors, TensorInfo, TensorSource, open_shards
from tpusd.checkpoints.formats.single_file import open_original
from tpusd.checkpoints.tokenizer import Tokenizer
from tpusd.errors import UserError, show, show_path
from tpusd.families.base import MIN_BLOCK_TENSORS, NetworkConfig, OriginalNames, config_values
from tpusd.networks.config import MAX_PARAMETERS, MAX_TENSOR


@dataclass(frozen=True)
class Identity:
    """Which bytes a checkpoint is: repository and commit if it came from the Hub, and every file that is read."""

    paths: Mapping[str, Path]  # name -> file; in a directory, the name is relative to it
    repo: str | None
    commit: str | None
    variant: str | None
    part_commits: Mapping[str, str | None] = field(default_factory=dict)  # of the repositories of model.unet, model.vae

    @property
    def files(self) -> tuple[str, ...]:
        """The names, sorted."""
        return tuple(sorted(self.paths))

    @functools.cached_property
    def sha256(self) -> Mapping[str, str]:
        """Name -> sha256. Reads every file, some seconds per GB."""
        return {name: _sha256(self.paths[name]) for name in self.files}


class Weights(Protocol):
    """Where the weights of one network are."""

    @property
    def where(self) -> str:
        """The file, as an error begins with it."""
        ...

    def open(self, names: Iterable[str]) -> TensorSource:
        """The stored tensors. names: every parameter of the network, by its PyTorch name. Raises UserError."""
        ...


@dataclass(frozen=True, kw_only=True)
class FolderWeights:
    """A file of a directory. format: "safetensors", "shards" or "msgpack". name: the file, or the index of shards."""

    directory: Directory
    format: str
    name: str

    @property
    def where(self) -> str:
        return self.directory.shown(self.name)

    def open(self, names: Iterable[str] = ()) -> TensorSource:
        """As in Weights; the names are not needed."""
        if self.format == "shards":
            return open_shards(self.directory, self.name)
        path = self.directory.need(self.name, "get the checkpoint again")
        return FlaxMsgpack(path) if self.format == "msgpack" else Safetensors((path,))


@dataclass(frozen=True, kw_only=True)
class OriginalWeights:
    """A network in a single file of the original code. ema: its averaged copy."""

    path: Path
    original: OriginalNames
    ema: bool = False

    @property
    def where(self) -> str:
        return show_path(self.path)

    def open(self, names: Iterable[str]) -> TensorSource:
        return open_original(self.path, self.original, names, self.where, ema=self.ema)


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Architecture):
    """What the small files say. Weights are read by `load_weights`."""

    directory: Path  # the checkpoint's, or the one that has its single file
    identity: Identity
    tokenizers: tuple[Tokenizer, ...]  # in the order of family.tokenizers
    weights: Mapping[str, Weights]  # of each part
    notes: tuple[str, ...]  # what the user should know of the choice of files, a line each


def check_size(config: NetworkConfig, tensors: Mapping[str, TensorInfo], where: str) -> None:
    """Refuses weights of far fewer layers than the config describes, before a network of that size is built, and
    weights that are larger than any that these families have, before they fill the memory.

    What does not fit in detail is found when the tensors are matched, which is before anything is compiled.
    """
    sizes = {name: math.prod(info.shape) for name, info in tensors.items()}
    largest = max(sizes, key=sizes.__getitem__, default="")
    if sizes and (sizes[largest] > MAX_TENSOR or sum(sizes.values()) > MAX_PARAMETERS):
        raise UserError(
            f"{where}: has {sum(sizes.values())} parameters, {sizes[largest]} of them in {show(largest)}; the limits "
            f"are {MAX_PARAMETERS} and {MAX_TENSOR}, ten times the largest published network; choose another checkpoint"
        )
    if len(tensors) < MIN_BLOCK_TENSORS * config.num_blocks:
        raise UserError(
            f"{where}: has {len(tensors)} tensors, too few for the {config.num_blocks} resnets and transformer "
            "layers of its config.json; get the checkpoint again, or restore its config.json"
        )


def check_vocabulary(tokenizer: Tokenizer, config: NetworkConfig, where: str) -> Tokenizer:
    """The tokenizer. Refuses one with ids for which the text encoder has no embedding."""
    vocab_size = config_values(config)["vocab_size"]
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{where}: has {tokenizer.vocab_size} tokens, the text encoder's config.json says "
            f"vocab_size={vocab_size}; get the checkpoint again"
        )
    return tokenizer


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
