"""A run directory: claimed, written, read back. An image is in the manifest if and only if it is whole.

    runs/<date>_<time>_<prompts>/
      config.yaml  run.json  manifest.jsonl  images/00003-001.png  contact_sheet.png  run.log  .hydra/

Order of an image: temporary file, fsync, rename, fsync of images/, then its manifest line in one write, fsync. Knows
nothing of how images are made; all its disk operations go through tpusd.storage.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tpusd import storage
from tpusd.config import show
from tpusd.errors import UserError

CONFIG, RUN, MANIFEST, LOG, IMAGES, HYDRA = "config.yaml", "run.json", "manifest.jsonl", "run.log", "images", ".hydra"
CONTACT_SHEET = "contact_sheet.png"
DEFAULT_PARENT = Path("runs")
ELSEWHERE = "choose another directory with output=DIR"


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
    while not storage.exists(path):
        path = path.parent
    with told_as_user_error(claim.output or claim.parent, ELSEWHERE):
        storage.check_writable(path)


class RunDir:
    """An open run directory. `claim` makes a new one; `open` takes up one that exists."""

    def __init__(self, path: Path):
        self.path = path
        self.images = path / IMAGES
        self._made: list[Path] = []  # directories of ours, outermost first, for `discard`
        self._log = storage.LineFile(path / LOG)
        self._manifest = storage.LineFile(path / MANIFEST)

    @classmethod
    def claim(cls, claim: Claim) -> "RunDir":
        """Makes the directory for this process alone. Raises UserError where it cannot be made or is taken."""
        wanted = claim.output or claim.parent / claim.stem
        made: list[Path] = []
        path = None
        with told_as_user_error(wanted, ELSEWHERE):
            try:
                storage.make_parents(wanted, made)
                path = _claim_output(wanted, made) if claim.output is not None else _claim_new(wanted, made)
                for directory in (path / IMAGES, path / HYDRA):
                    storage.make_directory(directory)
                    made.append(directory)
                run_dir = cls(path)
            except OSError:
                _discard(path, made)
                raise
        run_dir._made = made
        return run_dir

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """Takes up an existing run directory; a torn last manifest line is cut off. Raises UserError."""
        if storage.file_size(path / CONFIG) is None:
            raise UserError(f"{show(str(path))}: is not a run directory: it has no {CONFIG}")
        with told_as_user_error(path, "check the directory's permissions"):
            return cls(path)

    def write_config(self, values: Mapping[str, Any]) -> None:
        """The whole resolved config: the only file that making the run again needs."""
        self.write(CONFIG, to_yaml(values).encode())

    def write_run(self, values: Mapping[str, Any]) -> None:
        self.write(RUN, json.dumps(values, indent=2, ensure_ascii=False).encode())

    def write(self, name: str, data: bytes) -> None:
        """A file of the run directory, whole or not at all. `name` is ours, such as `.hydra/overrides.yaml`."""
        with told_as_user_error(self.path, "make room or mend its permissions"):
            storage.write_file(self.path / name, data)

    def write_image(self, name: str, data: bytes) -> dict[str, Any]:
        """Returns the manifest's `file_name` and `sha256`; the image counts once its line is there. Thread-safe."""
        self.write(f"{IMAGES}/{name}", data)
        return {"file_name": f"{IMAGES}/{name}", "sha256": hashlib.sha256(data).hexdigest()}

    def append_line(self, record: Mapping[str, Any]) -> None:
        """The manifest line of an image that is whole on disk. One thread at a time."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        with told_as_user_error(self.path, "make room or mend its permissions"):
            self._manifest.append(line)

    def log(self, line: str) -> None:
        """A line of run.log. A log that cannot be written does not stop a run: the next image's write will say why."""
        with contextlib.suppress(OSError):
            self._log.append(line.replace("\n", "\n    ").encode(errors="backslashreplace"), sync=False)

    def records(self) -> Iterator[dict[str, Any]]:
        return read_manifest(self.path)

    def close(self) -> None:
        self._manifest.close()
        self._log.close()

    def discard(self) -> None:
        """Takes a claim back: for a run that turned out impossible before its first image."""
        self.close()
        _discard(self.path, self._made)


def read_manifest(path: Path) -> Iterator[dict[str, Any]]:
    """Manifest lines of the run directory `path`, as a stream. A torn last line is left out. Raises UserError."""
    for number, line in enumerate(storage.read_lines(path / MANIFEST), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("file_name"), str):
            raise UserError(f"{show(str(path / MANIFEST))} line {number}: is not a manifest line; take the line out")
        yield record


def read_config(path: Path) -> Any:
    """The plain values of a run directory's config.yaml. YAML tags make nothing but data. Raises UserError."""
    file = path / CONFIG
    try:
        return yaml.load(storage.read_file(file), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise UserError(f"{show(str(file))}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{show(str(file))}: is not YAML: {' '.join(str(error).split())[:200]}") from None


def finished_images(path: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """(row, copy) -> manifest line, for every image that has a line and whose file is there and not empty."""
    finished = {}
    for record in read_manifest(path):
        key = (record.get("row"), record.get("copy"))
        if all(type(number) is int for number in key) and storage.file_size(
            path / IMAGES / Path(record["file_name"]).name
        ):
            finished[key] = record
    return finished


def to_yaml(values: Any) -> str:
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(values, Dumper=dumper, sort_keys=False, allow_unicode=True, width=2**16)


@contextlib.contextmanager
def told_as_user_error(path: Path, advice: str) -> Iterator[None]:
    """OSErrors of the block, as one line about the run directory `path`."""
    try:
        yield
    except OSError as error:
        what = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        raise UserError(
            f"output={show(str(path))}: cannot be written: {error.strerror or error}{what}; {advice}"
        ) from None


def _claim_output(path: Path, made: list[Path]) -> Path:
    """The directory that the user named: new, or there and empty."""
    try:
        storage.make_directory(path)
        made.append(path)
    except FileExistsError:
        _refuse_taken(path)
        try:
            storage.create_file(path / LOG)  # of two processes that saw it empty, one goes on
        except FileExistsError:
            _refuse_taken(path)
    return path


def _refuse_taken(path: Path) -> None:
    """Raises UserError unless `path`, which exists, is an empty directory."""
    try:
        taken = storage.list_directory(path)
    except NotADirectoryError:
        raise UserError(f"output={show(str(path))}: is a file; name a new or an empty directory") from None
    if taken:
        raise UserError(f"output={show(str(path))}: exists and is not empty; name a new or an empty directory")


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
    ours = {} if path is None else {path: (CONFIG, RUN, MANIFEST, LOG), path / HYDRA: None, path / IMAGES: None}
    for directory, names in ours.items():
        with contextlib.suppress(OSError):
            for name in storage.list_directory(directory):
                if names is None or name in names:
                    storage.remove_file(directory / name)
    for directory in reversed(made):
        with contextlib.suppress(OSError):
            storage.remove_directory(directory)
