"""A run directory: claimed, written, read back. An image is in the manifest if and only if it is whole.

    runs/<date>_<time>_<prompts>/
      config.yaml  run.json  manifest.jsonl  images/00003-001.png  contact_sheet.png  run.log  .hydra/

Order of an image: temporary file, fsync, rename, fsync of images/, then its manifest line in one write, fsync. Knows
nothing of how images are made; all its disk operations go through tpusd.storage.local.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tpusd.config.yaml_files import parse_yaml, to_yaml
from tpusd.errors import UserError, show, show_path
from tpusd.records.layout import (
    CONFIG,
    DEFAULT_PARENT,
    ELSEWHERE,
    HYDRA,
    IMAGES,
    LOG,
    MANIFEST,
    MAX_CONFIG_BYTES,
    MAX_RUN_BYTES,
    MEND,
    RUN,
)
from tpusd.records.manifest import read_manifest
from tpusd.records.provenance import scrub
from tpusd.storage import local as storage
from tpusd.storage.local import told_as_user_error


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Where a run goes: `output` exactly, or a new directory under `parent` with `stem` as its name."""

    output: Path | None = None
    parent: Path = DEFAULT_PARENT
    stem: str = ""


def make_claim(output: str | None, prompts_name: str, now: datetime) -> Claim:
    """`output`: the config's; `prompts_name` only colours the name, and only its plain letters reach the disk."""
    if output is None:
        words = re.sub(r"[^A-Za-z0-9_-]+", "_", prompts_name).strip("_")[:40]
        return Claim(stem=f"{now:%Y-%m-%d_%H-%M-%S}_{words or 'prompts'}")
    if not output.strip() or "\0" in output:
        raise UserError(f"output={show(output)}: must name a directory")
    return Claim(output=Path(output))


def check_claim(claim: Claim) -> None:
    """Refuses what `RunDir.claim` would refuse, as far as looking tells: before a model is fetched, say."""
    path = claim.output or claim.parent / claim.stem
    if claim.output is not None and storage.exists(path):
        with told_as_user_error(path, ELSEWHERE):
            _refuse_taken(path)
    while not storage.exists(path) and path != path.parent:
        path = path.parent
    with told_as_user_error(claim.output or claim.parent, ELSEWHERE):
        storage.check_writable(path)


class RunDir:
    """An open run directory, locked against other processes. `claim` makes a new one; `open` takes up an old one."""

    def __init__(self, path: Path):
        """Raises UserError where another process has it open, and OSError."""
        self.path = path
        self.images = path / IMAGES
        self._made: list[Path] = []  # directories of ours, outermost first, for `discard`
        self._log = storage.LineFile(path / LOG)  # the lock hangs on it, for it is never replaced
        try:
            if not self._log.lock():
                raise UserError(
                    f"{show_path(path)}: another process is working on this run; wait until it ends, or stop it"
                )
            self._manifest = storage.LineFile(path / MANIFEST)
        except BaseException:
            self._log.close()
            raise

    @classmethod
    def claim(cls, claim: Claim) -> "RunDir":
        """Makes the directory for this process alone. Raises UserError where it cannot be made or is taken."""
        wanted = claim.output or claim.parent / claim.stem
        made: list[Path] = []
        path = run_dir = None
        with told_as_user_error(wanted, ELSEWHERE):
            try:
                storage.make_parents(wanted, made)
                path = _claim_output(wanted, made) if claim.output is not None else _claim_new(wanted, made)
                run_dir = cls(path)
                _refuse_taken(path)  # another process may have come and gone since the first look
                for directory in (path / IMAGES, path / HYDRA):
                    with contextlib.suppress(FileExistsError):
                        storage.make_directory(directory)
                    made.append(directory)
            except OSError:
                _discard(path, made)
                _close_quietly(run_dir)
                raise
            except UserError:  # it is somebody else's
                _close_quietly(run_dir)
                raise
        run_dir._made = made
        return run_dir

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """Takes up an existing run directory; a torn last manifest line is cut off. Raises UserError."""
        check_run_directory(path)
        with told_as_user_error(path, "check the directory's permissions"):
            for name in (IMAGES, HYDRA):
                if not storage.exists(path / name):
                    storage.make_directory(path / name)
            return cls(path)

    def write_config(self, values: Mapping[str, Any]) -> None:
        """The whole resolved config: the only file that making the run again needs."""
        self.write(CONFIG, to_yaml(values).encode())

    def write_run(self, values: Mapping[str, Any]) -> None:
        self.write(RUN, json.dumps(values, indent=2, ensure_ascii=False).encode())

    def write(self, name: str, data: bytes) -> None:
        """A file of the run directory, whole or not at all. `name` is ours, such as `.hydra/overrides.yaml`."""
        with told_as_user_error(self.path, MEND):
            storage.write_file(self.path / name, data)

    def write_image(self, name: str, data: bytes) -> dict[str, Any]:
        """Returns the manifest's fields about the file; the image counts once its line is there. Thread-safe."""
        self.write(f"{IMAGES}/{name}", data)
        return {"file_name": f"{IMAGES}/{name}", "sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}

    def append_line(self, record: Mapping[str, Any]) -> None:
        """The manifest line of an image that is whole on disk. One thread at a time."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        with told_as_user_error(self.path, MEND):
            self._manifest.append(line)

    def rewrite_manifest(self, lines: Iterable[bytes]) -> None:
        """Replaces the manifest by `lines`, whole or not at all."""
        with told_as_user_error(self.path, MEND):
            storage.write_chunks(self.path / MANIFEST, (line + b"\n" for line in lines))
            replaced, self._manifest = self._manifest, storage.LineFile(self.path / MANIFEST)
            replaced.close()

    def log(self, line: str) -> None:
        """A line of run.log. A log that cannot be written does not stop a run: the next image's write will say why."""
        with contextlib.suppress(OSError):
            text = scrub(line).replace("\n", "\n    ")
            self._log.append(text.encode(errors="backslashreplace"), sync=False)

    def records(self) -> Iterator[dict[str, Any]]:
        return read_manifest(self.path)

    def close(self) -> None:
        try:
            self._manifest.close()
        finally:
            self._log.close()

    def discard(self) -> None:
        """Takes a claim back: for a run that turned out impossible before its first image."""
        _discard(self.path, self._made)
        _close_quietly(self)


def check_run_directory(path: Path) -> None:
    """Raises UserError unless `path` is a run directory, and its parts lie inside it."""
    with told_as_user_error(path, "check the directory's permissions", "read"):
        if not storage.exists(path):
            raise UserError(f"{show_path(path)}: no such directory; give a run's, such as runs/DATE_TIME_NAME")
        if storage.file_size(path / CONFIG) is None:
            hint = "; its run stopped before its first image, so start it anew" if _abandoned(path) else ""
            raise UserError(f"{show_path(path)}: is not a run directory: it has no {CONFIG}{hint}")
        for name in (IMAGES, HYDRA, ".thumbs"):
            if storage.exists(path / name) and not storage.is_plain_directory(path / name):
                raise UserError(f"{show_path(path / name)}: is a link or a file, and must be a directory; mend it")


def read_config(path: Path) -> Any:
    """The plain values of a run directory's config.yaml. YAML tags make nothing but data. Raises UserError."""
    return parse_yaml(_read(path / CONFIG, MAX_CONFIG_BYTES), show_path(path / CONFIG))


def read_run(path: Path) -> dict[str, Any]:
    """run.json; an empty dict where the run stopped before it was written. Raises UserError for what is no JSON."""
    if not storage.exists(path / RUN):
        return {}
    try:
        values = json.loads(_read(path / RUN, MAX_RUN_BYTES))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{show_path(path / RUN)}: is not the JSON of a run; take the file away, or restore it")
    return values


def _read(file: Path, max_bytes: int) -> bytes:
    try:
        return storage.read_file(file, max_bytes)
    except OSError as error:
        raise UserError(f"{show_path(file)}: cannot be read: {error.strerror}") from None


def _claim_output(path: Path, made: list[Path]) -> Path:
    """The directory that the user named: new, or there and empty. The lock decides between two that saw it so."""
    try:
        storage.make_directory(path)
        made.append(path)
    except FileExistsError:
        _refuse_taken(path)
    return path


def _refuse_taken(path: Path) -> None:
    """Raises UserError unless `path`, which exists, is an empty directory, or what a run left that came to nothing."""
    try:
        taken = storage.list_directory(path)
    except NotADirectoryError:
        raise UserError(f"output={show_path(path)}: is a file; name a new or an empty directory") from None
    if CONFIG in taken and MANIFEST in taken:
        raise UserError(
            f"output={show_path(path)}: holds a run; go on with it by resume={show_path(path)}, or name a new directory"
        )
    if taken and not _abandoned(path):
        raise UserError(f"output={show_path(path)}: exists and is not empty; name a new or an empty directory")


def _abandoned(path: Path) -> bool:
    """Whether all that `path` holds is of a claim whose process ended before its config was written."""
    parts = {LOG, MANIFEST, IMAGES, HYDRA, CONFIG + storage.TEMPORARY}
    with contextlib.suppress(OSError):
        names = set(storage.list_directory(path))
        empty = {IMAGES} if LOG in names else {IMAGES, HYDRA}  # .hydra is filled while run.log is there
        return (
            names <= parts
            and not storage.file_size(path / MANIFEST)
            and all(storage.is_plain_directory(path / name) for name in {IMAGES, HYDRA} & names)
            and not any(storage.list_directory(path / name) for name in empty & names)
        )
    return False


def _close_quietly(run_dir: RunDir | None) -> None:
    if run_dir is not None:
        with contextlib.suppress(OSError):
            run_dir.close()


def _claim_new(wanted: Path, made: list[Path]) -> Path:
    """`wanted`, or with the first free suffix _2, _3, ...: two runs in one second never share a directory."""
    number = 1
    while True:
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        try:
            storage.make_directory(path)
        except FileExistsError:
            number += 1
            continue
        made.append(path)
        return path


def _discard(path: Path | None, made: list[Path]) -> None:
    """Removes what a fresh claim holds, and then the directories that it made, those that are empty.

    path: None where nothing was claimed yet, only parents made.
    """
    # run.log is the last: while it is there, the lock on it holds others off.
    ours = {} if path is None else {path / HYDRA: None, path / IMAGES: None, path: (CONFIG, MANIFEST, RUN, LOG)}
    for directory, names in ours.items():
        with contextlib.suppress(OSError):
            there = storage.list_directory(directory)
            for name in there if names is None else [name for name in names if name in there]:
                storage.remove_file(directory / name)
    for directory in reversed(made):
        with contextlib.suppress(OSError):
            storage.remove_directory(directory)
