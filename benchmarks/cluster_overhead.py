"""What a cluster's driver costs: beside a local run of the embedded model, and with hosts that take no time.

    python -m benchmarks.cluster_overhead --images 64 --rounds 3          needs the extra ray
    python -m benchmarks.cluster_overhead --commits 12000 100000          needs no Ray

The first makes the same images alternately with executor=local and executor=ray (one worker, all CPUs), each in a
process of its own, and compares the seconds after start-up, as run.json has them. The second has simulated workers hand
out one small picture again and again: the real driver and writer write files and manifest lines, without the page.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import cluster_simulation
from benchmarks.cluster_simulation import COPIES, SimulatedHosts, a_run
from tpusd.records.directory import Claim
from tpusd.runs.executors.base import EncodedImage
from tpusd.runs.executors.cluster import ClusterExecutor
from tpusd.runs.make import make_runs
from tpusd.runs.session import RunSession

NUM_PROMPTS = 8  # of prompts=portraits
WORKERS = 16  # of the hosts that take no time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=64, help=f"a multiple of {NUM_PROMPTS}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commits", type=int, nargs="+", help=f"numbers of images, multiples of {COPIES}")
    parser.add_argument("--output", type=Path, help="the disk that is written to; default: the system's temporary one")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    arguments, overrides = parser.parse_known_args()  # what is left are fields of tpusd.run
    if any(number % COPIES for number in arguments.commits or ()):
        parser.error(f"--commits: must be multiples of {COPIES}")
    if arguments.work:
        print(json.dumps(commit(arguments.work, arguments.output)))
    elif arguments.commits:
        print("| images | images/s | memory before, MiB | peak, MiB |\n| --- | --- | --- | --- |")
        for number in arguments.commits:
            command = [sys.executable, "-m", "benchmarks.cluster_overhead", "--work", str(number)]
            command += ["--output", str(arguments.output)] if arguments.output else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds, before, peak = json.loads(done.stdout)
            print(f"| {number} | {number / seconds:.0f} | {before:.0f} | {peak:.0f} |", flush=True)
    else:
        compare(arguments.images, arguments.rounds, overrides)


def compare(images: int, rounds: int, overrides: list[str]) -> None:
    """Prints the seconds of each round and the overhead of the medians."""
    words = ["prompts=portraits", f"num_images_per_prompt={images // NUM_PROMPTS}", *overrides]
    seconds: dict[str, list[float]] = {"local": [], "ray": []}
    for number in range(rounds):
        for name in list(seconds)[:: 1 if number % 2 else -1]:
            seconds[name].append(_once([*words, f"executor={name}"]))
        print(
            f"round {number}: " + ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items()),
            flush=True,
        )
    local, ray = (statistics.median(seconds[name]) for name in ("local", "ray"))
    print(f"{images} images: local {local:.2f} s, ray {ray:.2f} s, {ray / local - 1:+.1%}")


def _once(words: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        command = [sys.executable, "-m", "tpusd.run", *words, f"output={path}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        spent = json.loads((path / "run.json").read_text())["sessions"][-1]["seconds"]
    return float(spent["generate"] - spent["compile"] - spent["weights"])


def commit(images: int, output: Path | None) -> tuple[float, float, float]:
    """Seconds for so many images, and this process's memory before them and at most, in MiB."""
    from PIL import Image

    picture = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(picture, "png")
    cluster_simulation.IMAGE = EncodedImage(data=picture.getvalue(), trace={"tokens": "0" * 16}, not_finite=None)
    run, config = a_run(images)
    hosts = SimulatedHosts(WORKERS, 1e-3, an_hour=0.0, slow=0.0, seed=0)
    executor = ClusterExecutor(hosts, unit_seconds=60.0)
    with tempfile.TemporaryDirectory(dir=output) as folder, contextlib.redirect_stderr(io.StringIO()):
        session = WithoutPage(replace(run.prepared, config=config), Claim(output=Path(folder) / "run"), name="run")
        executor.start()
        before, began = _memory(), time.monotonic()
        make_runs([session], executor)
        seconds = time.monotonic() - began
        if session.num_made != images:
            raise SystemExit(f"{session.num_made} of {images} images: {session.error}")
        return seconds, before, _peak()


class WithoutPage(RunSession):
    """A run whose page, which is no commit, is not written."""

    def complete(self) -> None:
        self.is_complete = True


def _memory() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _peak() -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
