"""How long a large run takes on a cluster that is not there: the real driver, simulated hosts and a simulated clock.

    python -m benchmarks.cluster_simulation [--workers 1000] [--images 1000000] [--seed 0]

A worker joins 20 s after its start and takes 100 s more before its first batch; hosts are taken away at random, 5 % of
them an hour, and come back at once with a new worker; a tenth of the workers has half the speed. Every image that the
driver hands to the writer is counted; the writer itself is left out. The ideal is start-up, and then all workers at
their own speed until the last image, with no host taken away.
"""

import argparse
import contextlib
import heapq
import io
import random
import resource
import sys
import time
from collections import deque
from dataclasses import replace
from types import SimpleNamespace

from tpusd import checkpoints
from tpusd.config.compose import compose_jobs
from tpusd.config.rows import Row
from tpusd.config.schema import make_config, saved_config
from tpusd.plan.batches import pack
from tpusd.plan.specs import make_specs
from tpusd.records.provenance import BatchProvenance, versions
from tpusd.runs.executors.base import EncodedImage, MadeBatch
from tpusd.runs.executors.cluster import ClusterExecutor, Ended, Finished, Joined
from tpusd.runs.executors.worker import Hello, RemoteResult
from tpusd.runs.prepare import PreparedRun

SHA256 = {"unet/weights.safetensors": "0" * 64}
COPIES = 4000  # of a prompt
DEVICES = 8  # of a worker
HELLO, FIRST = 20.0, 100.0  # seconds
IMAGE = EncodedImage(data=b"", trace={}, not_finite=None)


class SimulatedHosts:
    """Workers as numbers: a queue of batches, a pace, and when they end."""

    def __init__(self, number, seconds_a_batch, *, an_hour, slow, seed):
        self.names = [f"host {place}" for place in range(number)]
        self.chance = random.Random(seed)
        self.paces = {name: seconds_a_batch * (2 if self.chance.random() < slow else 1) for name in self.names}
        self.an_hour, self.clock, self.number, self.num_ended = an_hour, 0.0, 0, 0
        self.workers, self.heap = {}, []
        self.provenance = BatchProvenance(
            environment={"weights": checkpoints.weights_digest(SHA256)}, programs={}, checkpoint={}
        )

    def describe(self):
        return "simulated hosts"

    def now(self):
        return self.clock

    def places(self):
        return self.names

    def start(self, place):
        self.number += 1
        name = f"worker {self.number}"
        self.workers[name] = SimpleNamespace(place=place, queue=deque(), current=None, is_new=True)
        self._later(HELLO, name, "join")
        if self.an_hour:
            self._later(self.chance.expovariate(self.an_hour / 3600), name, "end")
        return name

    def give(self, worker, batches):
        own = self.workers[worker]
        own.queue.extend((batch.number, len(batch.entries)) for batch in batches)
        self._next(worker, own)

    def drop(self, worker, numbers):
        own, numbers = self.workers[worker], set(numbers)
        own.queue = deque(one for one in own.queue if one[0] not in numbers)

    def end(self, worker):
        self.workers.pop(worker, None)

    def close(self):
        self.workers.clear()

    def events(self, seconds):
        found, until = [], self.clock + seconds
        while self.heap and self.heap[0][0] <= (self.clock if found else until):
            self.clock, _, name, kind = heapq.heappop(self.heap)
            if (own := self.workers.get(name)) is not None:
                found.append(self._event(name, own, kind))
        if not found:
            self.clock = until
        return found

    def _event(self, name, own, kind):
        if kind == "join":
            devices = {"platform": "tpu", "kind": "simulated", "count": DEVICES}
            return Joined(worker=name, hello=Hello(host=own.place, versions=versions(), devices=devices))
        if kind == "end":
            self.num_ended += 1
            del self.workers[name]
            return Ended(worker=name, reason="its host is gone")
        (number, size), spent = own.current
        own.current = None
        self._next(name, own)
        seconds = {"generate": spent, "compile": spent - self.paces[own.place], "weights": 0.0}
        images = [IMAGE] * size
        result = RemoteResult(number=number, images=images, provenance=self.provenance, seconds=seconds)
        return Finished(worker=name, results=[result])

    def _next(self, name, own):
        if own.current is None and own.queue:
            spent = self.paces[own.place] + (FIRST if own.is_new else 0.0)
            own.current, own.is_new = (own.queue.popleft(), spent), False
            self._later(spent, name, "made")

    def _later(self, seconds, name, kind):
        self.number_of_events = getattr(self, "number_of_events", 0) + 1
        heapq.heappush(self.heap, (self.clock + seconds, self.number_of_events, name, kind))


class SimulatedRun:
    """What the driver needs to know of a run."""

    def __init__(self, prepared):
        self.prepared = prepared


def a_run(images):
    """A run of so many images, as the driver needs it, and its config."""
    (job,) = compose_jobs(["model=sdxl", "precision=bf16"])
    made = make_config(job.values)
    rows = tuple(Row(prompt=f"prompt {number}") for number in range(images // COPIES))
    config = replace(saved_config(made, rows=rows, height=1024, width=1024), num_images_per_prompt=COPIES)
    checkpoint = SimpleNamespace(identity=SimpleNamespace(repo=None, commit=None, variant=None, sha256=SHA256))
    tokens = {row.prompt: (4, False) for row in rows}
    prepared = PreparedRun(
        config=config, checkpoint=checkpoint, tokens=tokens, table=lambda spec: range(20), warnings=()
    )
    return SimulatedRun(prepared), config


def simulate(arguments):
    """Prints one row."""
    run, config = a_run(arguments.images)
    seconds_a_batch = DEVICES / arguments.images_per_second
    hosts = SimulatedHosts(
        arguments.workers,
        seconds_a_batch,
        an_hour=arguments.ended / 100,
        slow=arguments.slow / 100,
        seed=arguments.seed,
    )
    executor = ClusterExecutor(hosts, unit_seconds=arguments.unit_seconds)
    began, count = time.monotonic(), bytearray(arguments.images)
    set_aside = 0
    with contextlib.redirect_stderr(io.StringIO()), executor:
        executor.start()
        images = ((run, spec) for spec in make_specs(config))
        for made in executor.generate(pack(images, executor.batch_size(config), lambda run, spec: 20)):
            set_aside += not isinstance(made, MadeBatch)
            for spec in made.batch.specs:
                count[spec.row * COPIES + spec.copy] += 1
    speed = sum(DEVICES / pace for pace in hosts.paces.values())
    ideal = HELLO + FIRST + arguments.images / speed
    once = count.count(1)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{arguments.workers} workers, {arguments.images} images: {hosts.clock:.0f} s, ideal {ideal:.0f} s, "
        f"{ideal / hosts.clock:.1%} of it; {hosts.num_ended} workers ended, {once} images made once, "
        f"{arguments.images - once} not, {set_aside} batches set aside; {time.monotonic() - began:.0f} s of this "
        f"machine, peak memory {memory:.0f} MiB"
    )
    return once == arguments.images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1_000_000, help=f"a multiple of {COPIES}")
    parser.add_argument("--images-per-second", type=float, default=3.5, help="of a worker: SDXL, 20 steps, on a v5e-8")
    parser.add_argument("--ended", type=float, default=5.0, help="workers that end in an hour, in percent")
    parser.add_argument("--slow", type=float, default=10.0, help="workers of half the speed, in percent")
    parser.add_argument("--unit-seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    return 0 if simulate(parser.parse_args()) else 1


if __name__ == "__main__":
    sys.exit(main())
