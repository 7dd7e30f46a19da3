"""Where the files of one of transformers' networks are: a directory, or a repository that is read file by file.

Knows names of files, and nothing of what the network is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.formats.safetensors import MAX_INDEX_BYTES
from tpusd.checkpoints.hub_file import NoSuchFile, hub_file
from tpusd.checkpoints.opened import FolderWeights, Identity
from tpusd.checkpoints.source import is_pickle
from tpusd.errors import UserError, show

CONFIG = "config.json"
# Formats as FolderWeights names them, in the order of choice.
WEIGHTS = (
    ("safetensors", "model.safetensors"),
    ("shards", "model.safetensors.index.json"),
    ("safetensors", "model.fp16.safetensors"),
    ("msgpack", "flax_model.msgpack"),
)


class Files(Protocol):
    """A directory, whole or as far as it was asked for.

    field: of the config, as an error names it. repo, commit: of the Hub; None on this machine.
    """

    @property
    def field(self) -> str: ...
    @property
    def repo(self) -> str | None: ...
    @property
    def commit(self) -> str | None: ...
    @property
    def directory(self) -> Directory: ...
    def has(self, name: str) -> bool:
        """Whether the file is there; from the Hub, it is downloaded. Raises UserError."""
        ...


class LocalFiles:
    """A directory of this machine."""

    repo = commit = None

    def __init__(self, path: str | Path, field: str):
        """Raises UserError where it is no directory."""
        self.field, self.directory = field, Directory(path, f"{field}.path")

    def has(self, name: str) -> bool:
        return self.directory.path(name) is not None


class HubFiles:
    """A repository. Its first file fixes the commit of the others."""

    def __init__(self, repo: str, revision: str | None, field: str):
        self.repo, self.field = repo, field
        self.commit: str | None = None
        self._revision, self._root = revision, Path()

    @property
    def directory(self) -> Directory:
        return Directory(self._root, f"{self.field}.repo")

    def has(self, name: str) -> bool:
        try:
            found = hub_file(self.repo, name, self.commit or self._revision, self.field)
        except NoSuchFile:
            return False
        self.commit, self._root = found.commit, found.path.parents[len(Path(name).parts) - 1]
        return True


def files_of(path: str | Path | None, repo: str | None, revision: str | None, field: str) -> Files:
    """One of path and repo is set. Raises UserError."""
    if (path is None) == (repo is None):
        raise UserError(f"{field}: exactly one of {field}.path and {field}.repo must be set")
    if repo is not None:
        return HubFiles(repo, revision, field)
    assert path is not None
    return LocalFiles(path, field)


def chosen_weights(files: Files, folder: str, advice: str) -> FolderWeights:
    """The weights in `folder` (empty: the directory itself). Raises UserError, whose line ends with `advice`."""
    prefix = f"{folder}/" if folder else ""
    for format, name in WEIGHTS:
        if files.has(prefix + name):
            if format == "shards":
                _need_shards(files, prefix, name)
            return FolderWeights(directory=files.directory, format=format, name=prefix + name)
    pickled = next((name for name in files.directory.names(folder) if is_pickle(Path(name))), None)
    where = files.directory.shown(folder)
    if pickled is not None:
        raise UserError(
            f"{where}: has only a pickle ({show(pickled)}), which can run code and is never opened; {advice}"
        )
    raise UserError(f"{where}: has no weights ({WEIGHTS[0][1]} missing); {advice}")


def _need_shards(files: Files, prefix: str, index: str) -> None:
    """Downloads the shards that an index names; those of a directory are opened later, and missing ones named then."""
    weight_map = files.directory.json(prefix + index, MAX_INDEX_BYTES).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    for name in sorted(name for name in names if isinstance(name, str)):
        if "/" not in name and "\\" not in name and name.endswith(".safetensors"):
            files.has(prefix + name)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network's files. folder: its own, in the directory. names: all except its weights, within the directory."""

    files: Files
    folder: str
    weights: FolderWeights
    names: tuple[str, ...]

    @property
    def where(self) -> str:
        """Its config, as an error begins with it."""
        return self.files.directory.shown(f"{self.folder}/{CONFIG}".lstrip("/"))

    def identity(self) -> Identity:
        """Which bytes it is."""
        directory = self.files.directory
        paths = {name: directory.root / name for name in self.names}
        prefix = self.weights.name.removesuffix(Path(self.weights.name).name)
        paths |= {prefix + file.name: file for file in self.weights.open().files}
        return Identity(paths, self.files.repo, self.files.commit, None)


def existing(files: Files, names: tuple[str, ...]) -> Iterator[str]:
    """Those of the names that are there."""
    return (name for name in names if files.has(name))
