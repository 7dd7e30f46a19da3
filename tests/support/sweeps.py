"""Sweeps without a model: stand-in pipelines, and what two sweep directories have in common."""

from pathlib import Path
from types import SimpleNamespace

from support.runs import StandInPipeline, prepare
from tpusd.runs.sweep import resume_sweep, start_sweep

# What tells of this or that session: when, how fast, and in which order batches came.
SESSION_FILES = {"run.json", "run.log", "sweep.log", "index.html"}


class Loads:
    """Counts what is loaded, and hands out stand-ins with these arguments."""

    def __init__(self, make=StandInPipeline):
        self.pipelines, self.shared, self._make = [], 0, make

    def __call__(self, prepared, devices, *, weights_of=None):
        self.shared += weights_of is not None
        self.pipelines.append(self._make())
        self.pipelines[-1].size = len(devices) * prepared.config.batch_size_per_device
        return self.pipelines[-1]

    @property
    def batches(self):
        return [batch for pipeline in self.pipelines for batch in pipeline.batches]


def make(*argv, make=StandInPipeline, prepare=prepare):
    """(exit status, what was loaded) of a sweep."""
    loads = Loads(make)
    return SimpleNamespace(status=start_sweep(["-m", *argv], prepare=prepare, load=loads), loads=loads)


def go_on(path, *argv, make=StandInPipeline, prepare=prepare):
    loads = Loads(make)
    return SimpleNamespace(status=resume_sweep(Path(path), argv, prepare=prepare, load=loads), loads=loads)


def contents(path):
    """File -> bytes, and of a manifest its lines as a set."""
    found = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name not in SESSION_FILES:
            data = file.read_bytes()
            in_any_order = file.name in ("manifest.jsonl", "metadata.jsonl")
            found[str(file.relative_to(path))] = frozenset(data.splitlines()) if in_any_order else data
    return found
