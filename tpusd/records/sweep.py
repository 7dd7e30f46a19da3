"""A sweep directory: sweep.json says which runs it holds, and each of them is a run directory of its own.

    runs/<date>_<time>_sweep/
      sweep.json  index.html  grid.png  index.jsonl  000_sampler=ddim_seed=0/  001_sampler=ddim_seed=1/  ...

Knows nothing of how the runs are made.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.errors import UserError, show_path
from tpusd.records.layout import SWEEP
from tpusd.records.parts import has_lines

VERSION = 1
MAX_NAME = 80  # characters of a run's name


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """`overrides`: its own values, as field=value; `at`: swept field -> value, as the command line says it."""

    name: str
    overrides: tuple[str, ...]
    at: Mapping[str, str]
    digest: str  # of its config, by which a resumed sweep recognises it
    error: str | None = None  # why it made nothing, or not everything


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """`overrides`: the command line that a resume starts from; `axes`: swept field -> its values in order."""

    overrides: tuple[str, ...]
    axes: Mapping[str, tuple[str, ...]]
    runs: tuple[SweepRun, ...]


def is_sweep(path: Path) -> bool:
    return storage.file_size(path / SWEEP) is not None


def read_sweep(path: Path) -> Sweep:
    """The sweep at `path`. Raises UserError where sweep.json is not valid. Names of runs stay inside the sweep."""
    try:
        values = json.loads(storage.read_file(path / SWEEP))
        runs = tuple(
            SweepRun(
                name=run["name"],
                overrides=tuple(run["overrides"]),
                at=dict(run["at"]),
                digest=run["digest"],
                error=run["error"],
            )
            for run in values["runs"]
        )
        axes = {key: tuple(axis) for key, axis in values["axes"].items()}
        sweep = Sweep(overrides=tuple(values["overrides"]), axes=axes, runs=runs)
        if (
            values["version"] != VERSION
            or not all(map(_is_valid, runs))
            or not _are_texts(sweep.overrides, *axes.values())
        ):
            raise ValueError
    except OSError as error:
        raise UserError(f"{show_path(path / SWEEP)}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{show_path(path / SWEEP)}: does not describe a sweep; was it edited?") from None
    for run in sweep.runs:
        directory = path / run.name
        if storage.exists(directory) and not storage.is_plain_directory(directory):
            raise UserError(f"{show_path(directory)}: is a link or a file, and a run must be a directory; replace it")
    return sweep


def write_sweep(path: Path, sweep: Sweep) -> None:
    values = {"version": VERSION} | asdict(sweep)
    storage.write_file(path / SWEEP, json.dumps(values, indent=1, ensure_ascii=False).encode())


def refuse_other_sweep(path: Path, there: Sweep, asked: Sweep) -> None:
    """Raises UserError where the directory `path` that shards share has another sweep than `asked`."""
    if [(run.name, run.digest) for run in there.runs] != [(run.name, run.digest) for run in asked.runs]:
        raise UserError(
            f"{show_path(path)}: holds a sweep of other runs; give all shards one command, or another output"
        )


def run_name(number: int, at: Mapping[str, str]) -> str:
    """A directory's name: number and swept values. Long text, such as a prompt, never reaches it."""
    words = [
        f"{key.rsplit('.', 1)[-1]}={value}" for key, value in at.items() if re.fullmatch(r"[\w.+-]{1,24}", value, re.A)
    ]
    return "_".join([f"{number:03d}", *words])[:MAX_NAME].rstrip("._")


def config_digest(values: Mapping[str, Any]) -> str:
    """What distinguishes the runs of a sweep: the config that was asked for, without where it goes."""
    own = {name: value for name, value in values.items() if name != "output"}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def run_directories(path: Path) -> list[tuple[str, Path]]:
    """(name, directory) of the run at `path`, or of each run of the sweep there that has images."""
    if not is_sweep(path):
        return [("", path)]
    return [(run.name, path / run.name) for run in read_sweep(path).runs if has_lines(path / run.name)]


def _is_valid(run: SweepRun) -> bool:
    """Whether the fields of a run from a file have the types that they must have, and its name stays in the sweep."""
    texts = _are_texts([run.name, run.digest, "" if run.error is None else run.error], run.overrides, run.at.values())
    return texts and re.fullmatch(r"\d{3,}[\w.=+-]*", run.name, re.A) is not None


def _are_texts(*lists: Iterable[object]) -> bool:
    return all(isinstance(text, str) for texts in lists for text in texts)
