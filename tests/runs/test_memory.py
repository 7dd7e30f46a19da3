"""Memory of a run in which many images stream by: a process of its own, so that nothing else is counted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import gc, io, resource, sys
sys.path.insert(0, 'tests')
from types import SimpleNamespace
import numpy as np
from support.runs import *
from tpusd.process.progress import Progress
from tpusd.records.directory import Claim
from tpusd.runs.executors.local import LocalExecutor
from tpusd.runs.make import make_runs
from tpusd.runs.session import RunSession
from tpusd.storage import local as storage

made = config('num_images_per_prompt=2500', 'batch_size_per_device=10', 'height=8', 'width=8')
session = RunSession(prepare(made), Claim(output=Path(sys.argv[1])), name='memory')
assert session.num_images == 20_000
storage.sync_directory = lambda path: None  # what it costs in time is not the question here
image = SimpleNamespace(pixels=np.zeros((8, 8, 3), np.uint8), trace={}, not_finite=None)
readings = []

class Pipeline:
    seconds, fingerprints, made = {}, {}, 0

    def generate(self, specs, tables, **options):
        self.made += len(specs)
        if self.made in (2_000, 20_000):
            gc.collect()
            pages = int(open('/proc/self/statm').read().split()[1])
            readings.append(pages * resource.getpagesize())
        return [image] * len(specs)

progress = Progress(session.num_images, stream=io.StringIO())
make_runs([session], LocalExecutor(progress, load=lambda *_, pipeline=Pipeline(): pipeline))
assert session.error is None, session.error
print(*readings, len(manifest(sys.argv[1])))
"""


@pytest.mark.long
@pytest.mark.slow
def test_memory_stays_flat_while_20000_images_stream_by(tmp_path):
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    path = memory / f"tpusd-memory-{os.getpid()}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", CODE, path],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"XLA_FLAGS": ""},
        )
        assert done.returncode == 0, done.stderr
        early, late, lines = map(int, done.stdout.split())
        assert lines == 20_000
        assert late - early < 4 << 20, f"{early} -> {late} bytes"  # a kept ImageSpec an image would be 6 MB
    finally:
        subprocess.run(["rm", "-rf", path])
