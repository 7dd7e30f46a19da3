"""`python -m tpusd.status DIR ...`: how far a run, a sweep or its shards are, at work or not. Changes nothing.

    runs/x: 60 of 100 images, at work, 1.20 images/s, 0:33 left
      shard 1/3: 20 of 34, at work, last active 0:03 ago

A process that ended without a word in its log is `silent`: it has made no image for a while. Exit status: 0, or 2 where
a directory is neither.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.config.paths import path_argument
from tpusd.errors import show
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status
from tpusd.process.progress import duration
from tpusd.process.report import say
from tpusd.records.layout import CONFIG
from tpusd.records.status import RunStatus, run_status
from tpusd.records.sweep import Sweep, is_sweep, read_sweep

MAX_LISTED = 40  # runs of a sweep that are not finished


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    with exit_status() as status:
        arguments = _parser().parse_args(argv)
        for path in arguments.directories:
            now = time.time()
            if is_sweep(path):
                sweep = read_sweep(path)
                runs = [
                    run_status(path / run.name, now)
                    for run in sweep.runs
                    if storage.file_size(path / run.name / CONFIG)
                ]
                lines = [json.dumps(_sweep_values(path, sweep, runs))] if arguments.json else _sweep(path, sweep, runs)
            else:
                one = run_status(path, now)
                lines = [json.dumps(_values(one))] if arguments.json else _run(one, now)
            for line in lines:
                say(line)
    return status[0]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m tpusd.status",
        description="Says how far runs are, from their files alone: from any machine, at work or not.",
        epilog="Exit status: 0, or 2 where a directory is not a run's or a sweep's.",
    )
    parser.add_argument(
        "directories", nargs="+", type=path_argument, metavar="directory", help="run directories, or sweeps'"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON for each directory")
    return parser


def _run(run: RunStatus, now: float) -> Iterator[str]:
    yield f"{run.path}: {_progress(run)}"
    if run.workers[0].shard is None and run.state != "silent":
        return
    for worker in run.workers:
        name = "its process" if worker.shard is None else f"shard {worker.shard}"
        ago = "" if worker.last is None else f", last active {duration(max(0.0, now - worker.last))} ago"
        yield f"  {name}: {worker.num_done} of {worker.num_images}, {worker.state}{ago}"
    if run.num_not_started:
        yield f"  {run.num_not_started} of {run.num_not_started + len(run.workers)} shards not started"


def _progress(run: RunStatus) -> str:
    parts = [f"{run.num_done} of {run.num_images} images", run.state]
    if run.rate is not None and run.seconds_left is not None:
        parts += [f"{run.rate:.2f} images/s", f"{duration(run.seconds_left)} left"]
    return ", ".join(parts)


def _sweep(path: Path, sweep: Sweep, runs: Sequence[RunStatus]) -> Iterator[str]:
    failed = {run.name: run.error for run in sweep.runs if run.error is not None}
    finished = sum(run.state == "finished" for run in runs)
    done, planned = sum(run.num_done for run in runs), sum(run.num_images for run in runs)
    rate = sum(run.rate or 0.0 for run in runs)
    waiting = len(sweep.runs) - len(runs)
    parts = [f"{len(sweep.runs)} runs, {finished} finished"]
    parts += [f"{len(failed)} failed"] if failed else []
    parts += [f"{waiting} not started"] if waiting else []
    parts += [f"{done} of {planned} images{' of those that have begun' if waiting else ''}"]
    parts += [f"{rate:.2f} images/s"] if rate else []
    yield f"{path}: {', '.join(parts)}"
    open_runs = [run for run in runs if run.state != "finished"]
    for run in open_runs[:MAX_LISTED]:
        error = failed.get(run.path.name)
        yield f"  {run.path.name}: {_progress(run)}{'' if error is None else f', failed: {show(error, 200)}'}"
    if len(open_runs) > MAX_LISTED:
        yield f"  and {len(open_runs) - MAX_LISTED} more"


def _values(run: RunStatus) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "state": run.state,
        "num_images": run.num_images,
        "num_done": run.num_done,
        "images_per_second": run.rate,
        "seconds_left": run.seconds_left,
        "num_not_started": run.num_not_started,
        "workers": [dataclasses.asdict(worker) for worker in run.workers],
    }


def _sweep_values(path: Path, sweep: Sweep, runs: Sequence[RunStatus]) -> dict[str, Any]:
    failed = {run.name: run.error for run in sweep.runs if run.error is not None}
    return {"path": str(path), "num_runs": len(sweep.runs), "failed": failed, "runs": [_values(run) for run in runs]}


if __name__ == "__main__":
    sys.exit(main())
