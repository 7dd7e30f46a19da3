"""A sweep directory: sweep.json says which runs it holds, and each of them is a run directory of its own.

    runs/<date>_<time>_sweep/
      sweep.json  index.html  grid.png  index.jsonl  000_sampler=ddim_seed=0/  001_sampler=ddim_seed=1/  ...

Knows nothing of how the runs are made.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.config.json_values import JsonError, parse_json
from tpusd.config.typed import read
from tpusd.errors import UserError, show, show_path
from tpusd.records.layout import MAX_SWEEP_BYTES, SWEEP
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
    file = path / SWEEP
    try:
        sweep = _parse_sweep(storage.read_file(file, MAX_SWEEP_BYTES))
    except OSError as error:
        raise UserError(f"{show_path(file)}: cannot be read: {error.strerror}") from None
    except (JsonError, UserError) as error:
        raise UserError(f"{show_path(file)}: does not describe a sweep ({error}); was it edited?") from None
    for run in sweep.runs:
        directory = path / run.name
        if storage.exists(directory) and not storage.is_plain_directory(directory):
            raise UserError(f"{show_path(directory)}: is a link or a file, and a run must be a directory; replace it")
    return sweep


def _parse_sweep(data: bytes) -> Sweep:
    """Raises JsonError and UserError, whose line says no file."""
    values = parse_json(data)
    if not isinstance(values, dict) or values.get("version") != VERSION:
        raise UserError(f"its version is not {VERSION}")
    sweep = read(Sweep, {name: value for name, value in values.items() if name != "version"})
    names: set[str] = set()
    for number, run in enumerate(sweep.runs):
        where = f"runs[{number}]"
        if re.fullmatch(r"\d{3,}[\w.=+-]*", run.name, re.A) is None or len(run.name) > MAX_NAME:
            raise UserError(f"{where}.name={show(run.name)}: is not the name of a run")
        if run.name in names:
            raise UserError(f"{where}.name={show(run.name)}: is the name of two runs")
        names.add(run.name)
        if run.at.keys() != sweep.axes.keys() or any(run.at[key] not in axis for key, axis in sweep.axes.items()):
            raise UserError(f"{where}.at={show(dict(run.at))}: is not a place on the axes")
    return sweep


def write_sweep(path: Path, sweep: Sweep) -> None:
    """Raises UserError for a sweep that could not be read again, and OSError."""
    data = json.dumps({"version": VERSION} | asdict(sweep), indent=1, ensure_ascii=False).encode()
    if len(data) > MAX_SWEEP_BYTES:
        raise UserError(
            f"{show_path(path / SWEEP)}: its runs and their values take over {MAX_SWEEP_BYTES >> 20} MiB; "
            "start several sweeps, or put long prompts in a file"
        )
    storage.write_file(path / SWEEP, data)


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
