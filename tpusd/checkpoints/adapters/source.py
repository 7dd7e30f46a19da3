"""Where the file of a LoRA or of an embedding is, on the disk or on the Hugging Face Hub -> a file of this machine.

Knows no content.
"""

import functools
import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from tpusd import storage
from tpusd.checkpoints.hub_file import hub_file, refusal
from tpusd.checkpoints.source import is_pickle
from tpusd.config.assets import packaged
from tpusd.errors import UserError, show, show_path

_TO_SAFETENSORS = (
    "import sys, torch, safetensors.torch as s; d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "d = d.get('state_dict', d); "
    "s.save_file({k: v.contiguous() for k, v in d.items() if torch.is_tensor(v)}, sys.argv[2])"
)


class FileSource(Protocol):
    """Where a file is: the fields of a config that say it."""

    @property
    def path(self) -> str | None: ...
    @property
    def repo(self) -> str | None: ...
    @property
    def file(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...


class AdapterSource(FileSource, Protocol):
    """The same of a LoRA, which may be in the package."""

    @property
    def asset(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """A file on this machine.

    where: as an error line begins with it.
    given_name: of the file, where the path is that of another one, to which a link leads.
    asset: its name in the package.
    repo, file, commit: of a file from the Hub.
    """

    path: Path
    where: str
    asset: str | None = None
    repo: str | None = None
    file: str | None = None
    commit: str | None = None
    given_name: str | None = None

    @property
    def name(self) -> str:
        """The file's name, without folders."""
        return self.given_name or self.path.name

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file. Reads it. Raises UserError."""
        try:
            return storage.file_sha256(self.path.resolve())
        except OSError as error:
            raise UserError(f"{self.where}: cannot be read: {error.strerror}") from None


def find_lora(source: AdapterSource, field: str) -> AdapterFile:
    """The file that a source names, downloaded if need be. field: such as `loras[0]`. Raises UserError."""
    if source.asset is not None:
        where = f"{field}.asset={show(source.asset)}"
        return AdapterFile(path=packaged("loras", source.asset, where, "LoRA"), where=where, asset=source.asset)
    if source.path is not None:
        where = f"{field}.path={show_path(source.path)}"
        return AdapterFile(path=_plain_file(Path(source.path), where), where=where)
    return _from_hub(source, field)


def find_embedding(source: FileSource, field: str) -> AdapterFile:
    """The same for an embedding, which may be a pickle: only tensors are read of it. field: such as `embeddings[0]`."""
    if source.path is not None:
        where = f"{field}.path={show_path(source.path)}"
        path = Path(source.path)
        return AdapterFile(path=_plain_file(path, where, pickles=True), where=where, given_name=path.name)
    return _from_hub(source, field, pickles=True)


def _command(program: str, path: Path) -> str:
    target = path.with_suffix(".safetensors").name
    return show(f'python -c "{program}" {shlex.quote(path.name)} {shlex.quote(target)}', 600)


def _refuse_pickle(path: Path, where: str) -> NoReturn:
    raise UserError(
        f"{where}: is a pickle, which can run code and is never opened; convert it where you trust it, with "
        f"PyTorch: {_command(_TO_SAFETENSORS, path)}"
    )


def _plain_file(path: Path, where: str, *, pickles: bool = False) -> Path:
    if is_pickle(path) and not pickles:
        _refuse_pickle(path, where)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", error)
        raise UserError(f"{where}: {reason}; give a safetensors file") from None
    if stat.S_ISDIR(mode):
        inside = sorted(path.glob("*.safetensors"))
        advice = f"; it holds {show(inside[0].name)}" if inside else ""
        raise UserError(f"{where}: is a directory; give the safetensors file in it{advice}")
    if not stat.S_ISREG(mode):
        raise UserError(f"{where}: is not a plain file; give a safetensors file")
    return path.resolve()


def _from_hub(source: FileSource, field: str, *, pickles: bool = False) -> AdapterFile:
    assert source.repo is not None
    where = f"{field}.repo={show(source.repo)}"
    file = source.file or _only_file(_listed(source.repo, source.revision, field), where, field)
    if is_pickle(Path(file)) and not pickles:
        _refuse_pickle(Path(file), f"{field}.file={show(file)}")
    found = hub_file(source.repo, file, source.revision, field)
    told = f"{where} {field}.file={show(file)}"
    return AdapterFile(path=found.path, where=told, repo=source.repo, file=file, commit=found.commit)


def _listed(repo: str, revision: str | None, field: str) -> list[str]:
    import huggingface_hub  # a second to import

    try:
        return huggingface_hub.HfApi().list_repo_files(repo, revision=revision)
    except Exception as error:  # offline, a proxy, a timeout, 5xx: the HTTP libraries share no base class
        raise refusal(error, repo, revision, field) or UserError(
            f"{field}.repo={show(repo)}: the Hub cannot be reached ({type(error).__name__}) to list its files; "
            f"connect, or name one that the cache has with {field}.file=NAME.safetensors"
        ) from None


def _only_file(names: list[str], where: str, field: str) -> str:
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if len(found) != 1:
        listed = show(", ".join(found), 300) or "no safetensors file"
        raise UserError(f"{where}: has {listed}; name one with {field}.file=NAME.safetensors")
    return found[0]
