"""How far a run is, from its files alone: from any machine that sees them, at work or not. Changes and locks nothing.

An image was made at the time of its file. Knows nothing of processes, so one that ended without a word is `silent`.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tpusd import storage
from tpusd.config.shards import Shard
from tpusd.plan.specs import Stripe, planned
from tpusd.records.dropped import read_dropped
from tpusd.records.layout import CHECK_PERMISSIONS, LOG, MANIFEST
from tpusd.records.manifest import key_of, manifest_lines, parse_line
from tpusd.records.parts import LINES, part_name, shards_of
from tpusd.records.parts import LOG as PART_LOG
from tpusd.records.run_json import read_run_if_valid
from tpusd.records.saved import read_saved
from tpusd.records.sweep import is_sweep
from tpusd.storage import os_errors_as_user_errors

State = Literal["finished", "at work", "stopped", "silent", "incomplete"]
NEWEST = 32  # images of a worker, whose times give its rate
PATIENCE = 120.0  # seconds without an image, or a line in the log, that mean nothing
TAIL_BYTES = 256 << 10  # of a file of lines: enough for its newest images
_LOG_TAIL_BYTES = 16 << 10


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """A process that makes a run, or one shard of it.

    shard: None: all of the run.
    num_images: that it is to make. num_done: of these.
    rate: images/s of its newest ones; None where there are not two.
    last: when it last did something, seconds since 1970.
    """

    shard: str | None
    state: State
    num_images: int
    num_done: int
    rate: float | None
    last: float | None


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """workers: one for each shard that has begun, or one for all. num_not_started: other shards."""

    path: Path
    state: State
    num_images: int
    num_done: int
    workers: tuple[WorkerStatus, ...]
    num_not_started: int = 0

    @property
    def rate(self) -> float | None:
        """images/s of those at work."""
        return sum(worker.rate or 0.0 for worker in self.workers if worker.state == "at work") or None

    @property
    def seconds_left(self) -> float | None:
        """Until its workers have made what is missing; None where no worker is at work."""
        return None if self.rate is None else (self.num_images - self.num_done) / self.rate


def run_status(path: Path, now: float) -> RunStatus:
    """The run at `path`. now: seconds since 1970. Raises UserError where it is not a run directory."""
    config = read_saved(path)
    number = re.match(r"\d+", path.name) if is_sweep(path.parent) else None
    offset = int(number[0]) if number is not None else 0
    finished = read_run_if_valid(path).get("state") == "finished"
    with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
        begun = {*shards_of(path), *shards_of(path, PART_LOG)}
        count = max((shard.count for shard in shards_of(path)), default=0)
        stripes = [Stripe(shard=shard, offset=offset) for shard in begun if shard.count == count]
        dropped = read_dropped(path, config)
        num_images, num_done = len(planned(config)), _num_lines(path) + len(dropped)
        if stripes and not finished:
            before = _done_before(path, count, offset)
            for key in dropped:
                index = Stripe.index_of(*key, count=count, offset=offset)
                before[index] = before.get(index, 0) + 1
            workers = [
                _worker(path, one.shard, len(planned(config, one)), before.get(one.shard.index, 0), now)
                for one in sorted(stripes, key=lambda one: one.shard.index)
            ]
        else:
            workers = [_worker(path, None, num_images, num_done, now, finished=finished)]
    states = [worker.state for worker in workers]
    order: Sequence[State] = ("at work", "silent", "stopped")
    state: State = "finished" if finished else next((one for one in order if one in states), "incomplete")
    return RunStatus(
        path=path,
        state=state,
        num_images=num_images,
        num_done=num_done,
        workers=tuple(workers),
        num_not_started=0 if finished else max(0, count - len(workers)),
    )


def _worker(
    path: Path, shard: Shard | None, num_images: int, num_done: int, now: float, *, finished: bool = False
) -> WorkerStatus:
    """num_done: of a shard, the images that its own file of lines does not have."""
    lines, log = (MANIFEST, LOG) if shard is None else (part_name(shard, LINES), part_name(shard, PART_LOG))
    if shard is not None:
        num_done += _count_lines(path / lines)
    times = _newest_times(path, lines)
    noted = storage.modified(path / log)
    last = max([*times, *([] if noted is None else [noted])], default=None)
    rate = (len(times) - 1) / (max(times) - min(times)) if len(times) > 1 and max(times) > min(times) else None
    state: State = "silent"
    if finished or (num_done >= num_images and shard is not None):
        state = "finished"
    elif _says_stopped(path / log):
        state = "stopped"
    elif last is not None and now - last < max(PATIENCE, 0.0 if rate is None else 5 / rate):
        state = "at work"
    name = None if shard is None else str(shard)
    return WorkerStatus(shard=name, state=state, num_images=num_images, num_done=num_done, rate=rate, last=last)


def _num_lines(path: Path) -> int:
    """How many images of a run have a line."""
    parts = [part_name(shard, LINES) for shard in shards_of(path)]
    counts = [_count_lines(path / name) for name in parts]
    whole = _count_lines(path / MANIFEST)
    return sum(1 for _ in manifest_lines(path)) if whole and any(counts) else whole + sum(counts)


def _done_before(path: Path, count: int, offset: int) -> dict[int, int]:
    """Index of a shard -> its images whose lines are in the run's manifest and not in the shard's own."""
    found: dict[int, int] = {}
    if storage.file_size(path / MANIFEST):
        for file, _, line in manifest_lines(path):
            values = parse_line(line) if file == MANIFEST else None
            key = None if values is None else key_of(values)
            if key is not None:
                index = Stripe.index_of(*key, count=count, offset=offset)
                found[index] = found.get(index, 0) + 1
    return found


def _count_lines(path: Path) -> int:
    if storage.file_size(path) is None:
        return 0
    with storage.open_file(path) as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def _tail(path: Path, num_bytes: int) -> list[bytes]:
    """The last whole lines of a file."""
    size = storage.file_size(path)
    if not size:
        return []
    with storage.open_file(path) as file:
        file.seek(max(0, size - num_bytes), os.SEEK_SET)
        lines = file.read(num_bytes).split(b"\n")[:-1]
    return lines if size <= num_bytes else lines[1:]


def _newest_times(path: Path, name: str) -> list[float]:
    """When the newest images of a file of lines were written."""
    times = []
    for line in _tail(path / name, TAIL_BYTES)[-NEWEST:]:
        values = parse_line(line)
        time = None if values is None else storage.modified(path / values["file_name"])
        if time is not None:
            times.append(time)
    return times


def _says_stopped(log: Path) -> bool:
    """Whether the last entry of a log says that its process stopped. The lines of a traceback are indented."""
    entries = [line for line in _tail(log, _LOG_TAIL_BYTES) if line and not line.startswith(b" ")]
    return bool(entries) and re.match(rb"\S+ stopped\b", entries[-1]) is not None
