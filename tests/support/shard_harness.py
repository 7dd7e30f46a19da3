"""Shards of one run on a shared directory, killed with SIGKILL at random times and started again, until all have ended.

    python tests/support/shard_harness.py                     20 runs of 3 shards; a line, and --json for a machine
    python tests/support/shard_harness.py --runs 5 --shards 4 --seed 7

Each shard is a process, which makes each image in some milliseconds. It is started again when it was killed, as a Slurm
array or a Kubernetes Job does. After each kill, every line's image must be whole; at the end, the directory must be the
one that a single process makes: images byte for byte, manifest.jsonl, metadata.jsonl, contact sheet, config.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import jax
from crash_harness import stand_in_devices

jax.local_devices = stand_in_devices

from support.runs import StandInPipeline  # noqa: E402
from support.shards import content, shard  # noqa: E402
from tpusd.errors import UserError  # noqa: E402
from tpusd.records.manifest import read_manifest  # noqa: E402
from tpusd.records.validate import faults  # noqa: E402

COPIES = "num_images_per_prompt=8"  # of three rows
LIMIT = 60.0  # seconds for one run


class Slow(StandInPipeline):
    """Takes some milliseconds for an image, so that kills meet every part of a run."""

    def generate(self, specs, tables, **options):
        time.sleep(0.02)
        return super().generate(specs, tables, **options)


def started(path: Path, which: str | None) -> int:
    """The process of one shard; it ends with status 1 where the program says that something is wrong."""
    pid = os.fork()
    if pid:
        return pid
    status = 3
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            shard(path, which, COPIES, pipeline=Slow())
        status = 0
    except UserError as error:
        print(f"shard {which}: {error}", file=sys.__stderr__)
        status = 1
    finally:
        os._exit(status)


def check_truth(path: Path) -> None:
    """Each line's image is whole, whatever else is there."""
    if not (path / "config.yaml").exists():
        return
    for record in read_manifest(path):
        data = (path / record.file_name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == record.sha256, record.file_name


def one_run(path: Path, num_shards: int, generator: random.Random, wanted: object, mean: float) -> int:
    """Returns how often a shard was killed. mean: seconds between kills."""
    names = [f"{index}/{num_shards}" for index in range(1, num_shards + 1)]
    at_work = {started(path, name): name for name in names}
    try:
        kills = _until_all_have_ended(path, at_work, generator, mean)
    finally:
        for pid in at_work:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert list(faults(path)) == [], list(faults(path))
    assert content(path) == wanted, "differs from the run of one process"
    return kills


def _until_all_have_ended(path: Path, at_work: dict[int, str], generator: random.Random, mean: float) -> int:
    """at_work: process -> its shard. Returns the number of kills."""
    kills, until = 0, time.monotonic() + LIMIT
    next_kill = time.monotonic() + generator.expovariate(1 / mean)
    while at_work:
        assert time.monotonic() < until, "takes too long"
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in at_work:
            name = at_work.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, -signal.SIGKILL), f"shard {name} ended with {code}"
            if code:
                check_truth(path)
                at_work[started(path, name)] = name
        elif time.monotonic() >= next_kill:
            os.kill(generator.choice(sorted(at_work)), signal.SIGKILL)
            kills += 1
            next_kill = time.monotonic() + generator.expovariate(1 / mean)
        else:
            time.sleep(0.001)
    return kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the times and the victims")
    parser.add_argument("--mean", type=float, default=0.1, help="seconds between kills")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    generator, kills, failures = random.Random(arguments.seed), 0, []
    with tempfile.TemporaryDirectory(prefix="tpusd-shards-") as folder:
        whole = Path(folder) / "whole"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            shard(whole, None, COPIES)  # what is slow is loaded once, before the forks
        for number in range(arguments.runs):
            try:
                kills += one_run(
                    Path(folder) / str(number), arguments.shards, generator, content(whole), arguments.mean
                )
            except (AssertionError, UserError, OSError) as error:
                failures.append(f"run {number}: {error}"[:500])
    report = {"runs": arguments.runs, "shards": arguments.shards, "kills": kills, "failures": failures}
    print(json.dumps(report) if arguments.json else "\n".join(f"{name}: {value}" for name, value in report.items()))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
