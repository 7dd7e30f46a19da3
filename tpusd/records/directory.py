"""A run directory: claimed, written, read back. An image is in the manifest if and only if it is whole.

    runs/<date>_<time>_<prompts>/
      config.yaml  run.json  manifest.jsonl  images/00003-001.png  contact_sheet.png  run.log  .hydra/

Order of an image: temporary file, fsync, rename, fsync of images/, then its manifest line in one write, fsync. The last
three are done once for images that are written at the same time. Knows nothing of how images are made; all its
disk operations go through tpusd.storage.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from tpusd import storage
from tpusd.errors import UserError, printable, show, show_path
from tpusd.records.dropped import append_dropped, dropped_line
from tpusd.records.layout import (
    CHECK_PERMISSIONS,
    CHOOSE_ANOTHER,
    CONFIG,
    CONTACT_SHEET,
    DEFAULT_PARENT,
    DROPPED,
    HYDRA,
    IMAGES,
    LOG,
    MAKE_ROOM,
    MANIFEST,
    METADATA,
    PAGE,
    RUN,
    SCORES,
    SHARDS,
    SWEEP,
    SWEEP_LOG,
    THUMBNAILS,
)
from tpusd.records.manifest import ImageRecord, manifest_lines, read_manifest
from tpusd.records.prompt_file import is_half_a_prompt_file, is_prompt_file, write_config_files
from tpusd.records.provenance import scrub
from tpusd.storage import local, os_errors_as_user_errors
from tpusd.storage.local import LineFile

_OURS = (CONFIG, RUN, MANIFEST, DROPPED, CONTACT_SHEET, PAGE, METADATA)  # the files that a run writes as a whole
_TEMPORARY_IMAGE = re.compile(r"(\d{5,7}-\d{3,4})\.\w+" + re.escape(storage.TEMPORARY))


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Where a run or a sweep goes: `output` exactly, or a new directory under `parent` with `stem` as its name."""

    output: Path | None = None
    parent: Path = DEFAULT_PARENT
    stem: str = ""

    @property
    def path(self) -> Path:
        return self.output or self.parent / self.stem


def make_claim(output: str | None, name: str, now: datetime, *, max_chars: int = 40) -> Claim:
    """Where the config's `output` says, else a new directory whose name starts with the date and time.

    name: of the prompt set, or of the fields that are swept. At most `max_chars` of its plain letters reach the disk.
    """
    if output is None:
        words = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:max_chars].rstrip("_")
        return Claim(stem=f"{now:%Y-%m-%d_%H-%M-%S}_{words or 'prompts'}")
    if not output.strip() or "\0" in output:
        raise UserError(f"output={show(output)}: must name a directory")
    return Claim(output=Path(output))


def check_claim(claim: Claim) -> None:
    """Refuses what a claim would refuse, as far as a look tells: before a model is downloaded, for example."""
    path = claim.path
    if claim.output is not None and storage.exists(path):
        with os_errors_as_user_errors(path, CHOOSE_ANOTHER):
            refuse_taken(path)
    while not storage.exists(path) and path != path.parent:
        path = path.parent
    with os_errors_as_user_errors(claim.output or claim.parent, CHOOSE_ANOTHER):
        storage.check_writable(path)


def claim_directory(claim: Claim, made: list[Path], refuse_taken: Callable[[Path], None]) -> Path:
    """Makes the directory of a claim. Raises OSError and UserError.

    made: gets every directory that this call makes, outermost first, also when it then fails.
    refuse_taken: raises UserError where the directory that the user named exists and is in use.
    """
    wanted = claim.path
    storage.make_parents(wanted, made)
    number = 1
    while True:
        # Two runs that start in one second never share a directory: the second one gets the suffix _2.
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        try:
            storage.make_directory(path)
            made.append(path)
            return path
        except FileExistsError:
            if claim.output is not None:
                refuse_taken(path)
                return path  # it is empty. The lock decides between two processes that saw it so
            number += 1


class BusyDirectory(UserError):
    """Another process works in the directory."""


class DirectoryLog:
    """A directory's log. The directory's lock hangs on this file, because the file is never replaced."""

    def __init__(self, path: Path, name: str, *, kind: str):
        """Opens and locks the log. Raises BusyDirectory where another process holds it, and OSError.

        path: the directory.
        name: of the log in it.
        kind: what the directory holds, for the message: "run" or "sweep".
        """
        self._file = LineFile(path / name)
        try:
            if not self._file.lock() or not self._file.is_at(path / name):
                raise BusyDirectory(
                    f"{show_path(path)}: another process is working on this {kind}; wait until it ends, or stop it"
                )
        except BaseException:
            self._file.close()
            raise

    def is_at(self, path: Path) -> bool:
        """Whether `path` still names the log, and with it the lock."""
        return self._file.is_at(path)

    def write(self, line: str) -> None:
        """A line with the time before it. A log that cannot be written does not stop a run: the next image says why."""
        with contextlib.suppress(OSError):
            text = "\n    ".join(map(printable, scrub(f"{now()} {line}".rstrip()).split("\n")))
            self._file.append(text.encode(errors="backslashreplace"), sync=False)

    def close(self) -> None:
        self._file.close()


class RunWriter(Protocol):
    """What a run is written to. `RunDir` is the local directory; a bucket would be another."""

    path: Path
    RUN: str  # its run.json

    def write(self, name: str, data: bytes) -> None: ...
    def write_config(self, values: Mapping[str, Any]) -> None: ...
    def write_run(self, values: Mapping[str, Any]) -> None: ...
    def write_image(self, name: str, data: bytes) -> dict[str, Any]: ...
    def append_records(self, *records: ImageRecord) -> None: ...
    def append_dropped(self, values: Mapping[str, Any]) -> None: ...
    def check_held(self) -> None: ...
    def write_weights(self, values: Mapping[str, Any]) -> None: ...
    def waste(self) -> list[Path]: ...
    def lines(self) -> Iterator[tuple[str, int, bytes]]: ...
    def rewrite_manifest(self, lines: Iterable[bytes]) -> None: ...
    def records(self) -> Iterator[ImageRecord]: ...
    def log(self, line: str) -> None: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...


class RunDir:
    """An open run directory, locked against other processes. `claim` makes a new one; `open` takes up an old one."""

    LOG, MANIFEST, RUN = LOG, MANIFEST, RUN  # the files that it writes for itself; a shard has others

    def __init__(self, path: Path, *, kind: str = "run"):
        """Raises UserError where another process has it open, and OSError. kind: what it is, for that message."""
        self.path = path
        self._made: list[Path] = []  # directories that the claim made, outermost first, for `discard`
        self._log = DirectoryLog(path, self.LOG, kind=kind)
        try:
            self._manifest = LineFile(path / self.MANIFEST)
        except BaseException:
            self._log.close()
            raise

    @classmethod
    def claim(cls, claim: Claim) -> "RunDir":
        """Makes the directory for this process alone. Raises UserError where it cannot be made or is taken."""
        made: list[Path] = []
        path = run_dir = None
        with os_errors_as_user_errors(claim.path, CHOOSE_ANOTHER):
            try:
                path = claim_directory(claim, made, refuse_taken)
                run_dir = cls(path)
                refuse_taken(path)  # another process may have come and gone since the first look
                for directory in (path / IMAGES, path / HYDRA):
                    with contextlib.suppress(FileExistsError):
                        storage.make_directory(directory)
                    made.append(directory)
            except UserError:  # the directory belongs to another process
                close_quietly(run_dir)
                raise
            except BaseException:  # the disk refuses, or a signal came
                is_ours = run_dir is not None or path in made  # else another process may hold it by now
                _discard(path if is_ours else None, made)
                close_quietly(run_dir)
                raise
        run_dir._made = made
        return run_dir

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """Takes up an existing run directory; a torn last manifest line is cut off. Raises UserError."""
        check_run_directory(path)
        with os_errors_as_user_errors(path, CHECK_PERMISSIONS):
            for name in (IMAGES, HYDRA):
                if not storage.exists(path / name):
                    storage.make_directory(path / name)
            return cls(path)

    def write_config(self, values: Mapping[str, Any]) -> None:
        """The whole resolved config, with the file of its rows where they are many: all that making it again needs."""
        with os_errors_as_user_errors(self.path, MAKE_ROOM):
            write_config_files(self.path, values)

    def write_weights(self, values: Mapping[str, Any]) -> None:
        """The config, with the sha256 of the weights that were found."""
        self.write_config(values)

    def write_run(self, values: Mapping[str, Any]) -> None:
        """run.json."""
        self.write(self.RUN, json.dumps(values, indent=2, ensure_ascii=False).encode())

    def write(self, name: str, data: bytes) -> None:
        """A file of the run directory, whole or not at all. name: one of our own, such as `.hydra/overrides.yaml`."""
        with os_errors_as_user_errors(self.path, MAKE_ROOM):
            storage.write_file(self.path / name, data)

    def write_image(self, name: str, data: bytes) -> dict[str, Any]:
        """Returns the manifest's fields about the file; the image counts once its line is there. Thread-safe."""
        with os_errors_as_user_errors(self.path, MAKE_ROOM):
            local.write_unsynced_name(self.path / IMAGES / name, data)
        return {"file_name": f"{IMAGES}/{name}", "sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}

    def append_records(self, *records: ImageRecord) -> None:
        """The manifest lines of images whose files are written. One thread at a time."""
        lines = [record.to_line() for record in records]
        self.check_held()
        with os_errors_as_user_errors(self.path, MAKE_ROOM):
            local.sync_directory(self.path / IMAGES)
            self._manifest.append(*lines)

    def append_dropped(self, values: Mapping[str, Any]) -> None:
        """The line of an image that is not written, because the safety checker found it. One thread at a time."""
        self.check_held()
        with os_errors_as_user_errors(self.path, MAKE_ROOM):
            append_dropped(self.path, dropped_line(values))

    def check_held(self) -> None:
        """Raises UserError where somebody removed or replaced the manifest or the log: lines would be lost."""
        with os_errors_as_user_errors(self.path, MAKE_ROOM):
            for file, name in ((self._manifest, self.MANIFEST), (self._log, self.LOG)):
                if not file.is_at(self.path / name):
                    raise UserError(
                        f"{show_path(self.path / name)}: was removed or replaced while this process wrote to it; "
                        "restore it, and continue with resume=, which makes again what the manifest does not list"
                    )

    def rewrite_manifest(self, lines: Iterable[bytes]) -> None:
        """Replaces the manifest by `lines`, whole or not at all."""
        with os_errors_as_user_errors(self.path, MAKE_ROOM):
            storage.write_chunks(self.path / self.MANIFEST, (line + b"\n" for line in lines))
            replaced, self._manifest = self._manifest, LineFile(self.path / self.MANIFEST)
            replaced.close()

    def waste(self) -> list[Path]:
        """What interrupted writes left. Raises OSError."""
        found = [self.path / f"{name}{storage.TEMPORARY}" for name in _OURS]
        found += [self.path / HYDRA / f"{name}.yaml{storage.TEMPORARY}" for name in ("overrides", "config", "hydra")]
        found = [file for file in found if storage.exists(file)]
        found += [self.path / name for name in storage.list_directory(self.path) if is_half_a_prompt_file(name)]
        return found + [file for name in (IMAGES, THUMBNAILS) for _, file in temporary_images(self.path / name)]

    def lines(self) -> Iterator[tuple[str, int, bytes]]:
        """(file, number, line) of the manifest as it is now, as a stream."""
        return manifest_lines(self.path)

    def records(self) -> Iterator[ImageRecord]:
        """The manifest as it is now, as a stream."""
        return read_manifest(self.path)

    def log(self, line: str) -> None:
        """A line of run.log, with the time before it."""
        self._log.write(line)

    def close(self) -> None:
        try:
            self._manifest.close()
        finally:
            self._log.close()

    def discard(self) -> None:
        """Takes a claim back: for a run that turned out impossible before its first image."""
        _discard(self.path, self._made)
        close_quietly(self)


def temporary_images(directory: Path) -> Iterator[tuple[str, Path]]:
    """(name of the image, file) of what interrupted writes of images left in a directory. Raises OSError."""
    for name in storage.list_directory(directory) if storage.exists(directory) else ():
        match = _TEMPORARY_IMAGE.fullmatch(name)
        if match is not None:
            yield match[1], directory / name


def check_run_directory(path: Path) -> None:
    """Raises UserError unless `path` is a run directory, and its parts lie inside it."""
    with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
        if not storage.exists(path):
            raise UserError(f"{show_path(path)}: no such directory; give a run's, such as runs/DATE_TIME_NAME")
        if storage.file_size(path / CONFIG) is None:
            hint = "; its run stopped before its first image, so start it again" if _abandoned(path) else ""
            raise UserError(f"{show_path(path)}: is not a run directory: it has no {CONFIG}{hint}")
        check_folders(path)


def check_folders(path: Path) -> None:
    """Raises UserError where a folder of the run directory `path` is a link, which could lead anywhere."""
    for name in (IMAGES, HYDRA, THUMBNAILS, SCORES, SHARDS):
        if storage.exists(path / name) and not storage.is_plain_directory(path / name):
            raise UserError(f"{show_path(path / name)}: is a link or a file, and must be a directory; replace it")


def refuse_taken(path: Path) -> None:
    """Raises UserError unless `path`, which exists, is an empty directory or holds only an abandoned claim."""
    try:
        taken = storage.list_directory(path)
    except NotADirectoryError:
        raise UserError(f"output={show_path(path)}: is a file; name a new or an empty directory") from None
    if CONFIG in taken and (MANIFEST in taken or SHARDS in taken):
        raise UserError(
            f"output={show_path(path)}: holds a run; continue it with resume={show_path(path)}, or name a new directory"
        )
    if taken and not _abandoned(path):
        raise UserError(f"output={show_path(path)}: exists and is not empty; name a new or an empty directory")


def _abandoned(path: Path) -> bool:
    """Whether `path` holds only what a claim leaves when its process ends before it wrote the config."""
    parts = {LOG, MANIFEST, IMAGES, HYDRA, CONFIG + storage.TEMPORARY}
    with contextlib.suppress(OSError):
        names = {name for name in storage.list_directory(path) if not _holds_rows(name)}
        empty = {IMAGES} if LOG in names else {IMAGES, HYDRA}  # .hydra is filled while run.log is there
        return (
            names <= parts
            and not storage.file_size(path / MANIFEST)
            and all(storage.is_plain_directory(path / name) for name in {IMAGES, HYDRA} & names)
            and not any(storage.list_directory(path / name) for name in empty & names)
        )
    return False


def _holds_rows(name: str) -> bool:
    """Whether it is a file that is written before config.yaml: rows, or half of them."""
    return is_prompt_file(name) or is_half_a_prompt_file(name)


class Closes(Protocol):
    def close(self) -> None: ...


def close_quietly(opened: Closes | None) -> None:
    """Closes what was opened in a directory that may be gone by then; None: nothing was."""
    if opened is not None:
        with contextlib.suppress(OSError):
            opened.close()


def _discard(path: Path | None, made: list[Path]) -> None:
    """Removes what a fresh claim holds, and then the directories that it made, those that are empty.

    path: None where nothing was claimed yet, only parents made.
    """
    # run.log is the last: while it is there, the lock on it holds others off.
    ours: dict[Path, Sequence[str] | None] = {}
    if path is not None:
        with contextlib.suppress(OSError):
            rows = [name for name in storage.list_directory(path) if _holds_rows(name)]
            ours = {path / HYDRA: None, path / IMAGES: None, path: (CONFIG, *rows, MANIFEST, RUN, LOG)}
    _remove(ours, made)


def discard_sweep(path: Path, made: Sequence[Path]) -> None:
    """Removes a fresh sweep that has no run, and then the directories that its claim made, those that are empty."""
    with contextlib.suppress(OSError):
        if set(storage.list_directory(path)) <= {SWEEP, SWEEP_LOG}:
            _remove({path: (SWEEP, SWEEP_LOG)}, made)


def _remove(ours: Mapping[Path, Sequence[str] | None], made: Sequence[Path]) -> None:
    """ours: directory -> the files to remove, in this order; None: all. made: directories, outermost first."""
    for directory, names in ours.items():
        with contextlib.suppress(OSError):
            there = storage.list_directory(directory)
            for name in there if names is None else [name for name in names if name in there]:
                storage.remove_file(directory / name)
    for directory in reversed(made):
        with contextlib.suppress(OSError):
            storage.remove_directory(directory)


def now() -> str:
    """Date and time, ISO 8601, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
