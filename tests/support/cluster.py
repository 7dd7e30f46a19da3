"""Hosts without Ray: real workers in threads of this process, which a test ends when it likes."""

import contextlib
import dataclasses
import time
from types import SimpleNamespace

import numpy as np

from support.runs import StandInPipeline, stand_in_checkpoint
from tpusd.runs.executors.cluster import Ended, Finished, Joined
from tpusd.runs.executors.worker import Worker
from tpusd.runs.loras import open_loras as open_loras_here
from tpusd.samplers.rows import COLUMNS, Table


def open_stand_in(model):
    checkpoint = stand_in_checkpoint()

    def schedule(settings, scheduler_config, height, width, *, strength=1.0):
        return Table(np.zeros((settings.num_inference_steps, COLUMNS)), 1.0)

    checkpoint.family = SimpleNamespace(schedule=schedule)
    return checkpoint


class FakeHosts:
    """Places `host 0`, `host 1`, ... with a worker each.

    pipelines: place -> what makes the images of its workers.
    hello: changes what a worker says of itself; gets the place and a Hello.
    open_model: place, model -> checkpoint.
    open_loras: place and the arguments of tpusd.runs.loras.open_loras -> LoRAs.
    """

    def __init__(self, number=2, *, pipelines=None, hello=lambda place, hello: hello, open_model=None, open_loras=None):
        self.names = [f"host {place}" for place in range(number)]
        self.pipelines, self.change_hello = pipelines or {}, hello
        self.open_model = open_model or (lambda place, model: open_stand_in(model))
        self.open_loras = open_loras or (lambda place, *arguments: open_loras_here(*arguments))
        self.workers, self.place_of, self.pending = {}, {}, []
        self.started, self.made, self.closed = 0, 0, False

    def describe(self):
        return "a cluster of threads"

    def now(self):
        return time.monotonic()

    def places(self):
        return self.names

    def start(self, place):
        self.started += 1
        name = f"worker {self.started}"
        pipeline = self.pipelines.get(place) or StandInPipeline()
        worker = Worker(
            load=lambda *_, **__: pipeline,
            open_model=lambda model: self.open_model(place, model),
            open_loras=lambda *arguments: self.open_loras(place, *arguments),
        )
        self.workers[name], self.place_of[name] = worker, place
        self.pending.append(Joined(worker=name, hello=self.change_hello(place, worker.hello())))
        return name

    def give(self, worker, batches):
        if worker in self.workers:
            self.workers[worker].give(batches)

    def drop(self, worker, numbers):
        if worker in self.workers:
            self.workers[worker].drop(numbers)

    def end(self, worker):
        if (gone := self.workers.pop(worker, None)) is not None:
            with contextlib.suppress(RuntimeError):  # the worker's own thread, which cannot wait for itself
                gone.stop(0)

    def kill(self, worker, reason="it was killed"):
        """As a host that is preempted: what the worker has made and nobody has taken is lost."""
        self.end(worker)
        self.pending.append(Ended(worker=worker, reason=reason))

    def events(self, seconds):
        found, self.pending = self.pending, []
        for name, worker in list(self.workers.items()):
            if results := worker.take(0.002):
                self.made += sum(result.images is not None for result in results)
                found.append(Finished(worker=name, results=results))
        return [event for event in found if event.worker in self.workers or isinstance(event, Ended)]

    def close(self):
        self.closed = True
        for worker in list(self.workers):
            self.end(worker)


def with_versions(hello, **versions):
    return dataclasses.replace(hello, versions=dict(hello.versions) | versions)
