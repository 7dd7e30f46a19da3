"""A real Ray cluster on this machine, whose nodes a test ends with SIGKILL, and runs of the embedded model on it.

python tests/support/ray_nodes.py --nodes 20 --drivers 5      ends nodes in 20 runs, and the driver in 5 more
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STORE = 80 << 20  # bytes
NUM_IMAGES = 32
WORDS = (
    "prompts=portraits",
    "sampler=ddim",
    "sampler.num_inference_steps=3",
    f"num_images_per_prompt={NUM_IMAGES // 8}",
    "executor.unit_seconds=2",
)
ONE_DEVICE = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
SECONDS = 240  # that a run may take


class Nodes:
    """A cluster: a head without workers, and nodes with a CPU each, which is a worker's."""

    def __init__(self, number):
        from ray.cluster_utils import Cluster

        os.environ.update(ONE_DEVICE)
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False},
        )
        self.nodes = [self.add() for _ in range(number)]

    @property
    def address(self):
        return self._cluster.address

    def add(self):
        return self._cluster.add_node(num_cpus=1, object_store_memory=STORE)

    def replace(self, place):
        """Ends a node as a machine that is switched off, and starts another."""
        self._cluster.remove_node(self.nodes[place], allow_graceful=False)
        self.nodes[place] = self.add()

    def close(self):
        self._cluster.shutdown()


@contextlib.contextmanager
def nodes(number):
    made = Nodes(number)
    try:
        yield made
    finally:
        made.close()


def command(*words):
    return [sys.executable, "-m", "tpusd.run", *words]


def start(*words):
    """A command that runs beside this process."""
    return subprocess.Popen(
        command(*words),
        cwd=ROOT,
        env=os.environ | ONE_DEVICE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process):
    """Waits for a command; its exit status and what it said."""
    said, _ = process.communicate(timeout=SECONDS)
    return process.returncode, said


def run(*words):
    """A command from start to end, which succeeds."""
    status, said = ended(start(*words))
    assert status == 0, said
    return said


def files(path):
    """The images of a run, and the lines of its manifest in order."""
    lines = sorted((path / "manifest.jsonl").read_bytes().splitlines())
    return lines, {file.name: file.read_bytes() for file in sorted((path / "images").iterdir())}


def with_nodes_ended(cluster, path, chance, times=2):
    """A run in which nodes end at random moments; the moments, in seconds."""
    process = start(*WORDS, "executor=ray", f"executor.address={cluster.address}", f"output={path}")
    began, moments = time.monotonic(), []
    for _ in range(times):
        time.sleep(chance.uniform(1, 8))
        if process.poll() is None:
            moments.append(round(time.monotonic() - began, 1))
            cluster.replace(chance.randrange(len(cluster.nodes)))
    status, said = ended(process)
    assert status == 0, said
    return moments


def with_driver_ended(cluster, path, chance):
    """A run whose driver ends at a random moment, and which is then resumed; images that were there, and moment."""
    process = start(*WORDS, "executor=ray", f"executor.address={cluster.address}", f"output={path}")
    began, number = time.monotonic(), chance.randrange(NUM_IMAGES - 2)
    while process.poll() is None and num_lines(path) < number:
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 0.5 if number else 12))
    process.send_signal(signal.SIGKILL)
    moment = time.monotonic() - began
    process.communicate()
    if not (path / "config.yaml").exists():
        run(*WORDS, "executor=ray", f"executor.address={cluster.address}", f"output={path}")
        return 0, moment
    before = written(path)
    run(f"resume={path}")
    again = [name for name, when in written(path).items() if name in before and before[name] != when]
    assert not again, f"made again: {again}"
    return len(before), moment


def num_lines(path):
    """Images that the manifest of a run lists, which may not be there yet."""
    with contextlib.suppress(OSError):
        return (path / "manifest.jsonl").read_bytes().count(b"\n")
    return 0


def written(path):
    """Image that the manifest lists -> when its file was written."""
    lines = (path / "manifest.jsonl").read_bytes()
    listed = [json.loads(line)["file_name"] for line in lines[: lines.rfind(b"\n") + 1].splitlines()]
    return {name: (path / name).stat().st_mtime_ns for name in listed}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--drivers", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder, nodes(2) as cluster:
        local = Path(folder) / "local"
        run(*WORDS[:-1], f"output={local}")
        wanted = files(local)
        for number in range(arguments.nodes):
            path = Path(folder) / f"nodes{number}"
            moments = with_nodes_ended(cluster, path, chance)
            assert files(path) == wanted, path
            print(f"run {number}: nodes ended at {moments} s, same {len(wanted[0])} images", flush=True)
        for number in range(arguments.drivers):
            path = Path(folder) / f"driver{number}"
            there, moment = with_driver_ended(cluster, path, chance)
            assert files(path) == wanted, path
            print(f"driver ended at {moment:.1f} s with {there} images, resumed, same images", flush=True)


if __name__ == "__main__":
    main()
