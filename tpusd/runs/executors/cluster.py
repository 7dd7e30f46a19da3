"""The driver of a cluster: keeps each worker fed, and hands on what they make. Knows nothing of Ray.

    batches -> Schedule -> units -> workers (hosts) -> encoded pictures -> the run's writer, in this process

The driver alone writes: a worker that ends leaves nothing behind. What a worker is, and where it runs, is `Hosts`.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from tpusd.config.executor import LOCAL
from tpusd.config.packed_rows import first_rows, pack
from tpusd.config.rows import Row
from tpusd.config.schema import SavedConfig
from tpusd.errors import UserError, show
from tpusd.plan.batches import Batch, WeightsKey, weights_key
from tpusd.process import signals
from tpusd.process.report import report
from tpusd.process.waiting import waiting
from tpusd.records.provenance import hash_checkpoint, versions
from tpusd.runs.executors.base import ClusterWatcher, FailedBatch, MadeBatch, Outcome, Run, SetAsideBatch, Writing
from tpusd.runs.executors.schedule import Schedule, Task
from tpusd.runs.executors.worker import Hello, RemoteBatch, RemoteResult
from tpusd.runs.prepare import PreparedRun

SAME_VERSIONS = ("tpusd", "jax")  # without which a worker does not take part
POLL_SECONDS = 1.0
STAFF_SECONDS = 2.0  # between looks at where a worker could run
FEED_SECONDS = 0.2  # between looks at who is idle
MOST_FAULTS = 6  # of a place, without a batch between them; a worker that does not even start counts as two
PREPARING = "each worker loads the model and compiles, once"
STARTING = "starting workers"


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A worker has started."""

    worker: str
    hello: Hello


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A worker has finished batches."""

    worker: str
    results: Sequence[RemoteResult]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A worker is gone. reason: why, in words."""

    worker: str
    reason: str


Event = Joined | Finished | Ended


class Hosts(Protocol):
    """Machines on which workers can run. A place is where one worker fits; a worker has a name."""

    def describe(self) -> str: ...
    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        ...

    def places(self) -> Sequence[str]:
        """Where workers may run now. Raises UserError where the cluster is gone."""
        ...

    def start(self, place: str) -> str:
        """Starts a worker, which joins later. Returns its name."""
        ...

    def give(self, worker: str, batches: Sequence[RemoteBatch]) -> None: ...
    def drop(self, worker: str, numbers: Sequence[int]) -> None: ...
    def end(self, worker: str) -> None:
        """Ends a worker; no event follows."""
        ...

    def events(self, seconds: float) -> Sequence[Event]:
        """What has happened; waits for it at most so long."""
        ...

    def close(self) -> None:
        """Ends all workers, and what was started for them. May be called again."""
        ...


class WorkerError(Exception):
    """An error of a worker: its line, and its traceback there."""

    def __init__(self, line: str, trace: str):
        super().__init__(line)
        self.add_note(trace)


@dataclass(kw_only=True)
class _Place:
    """faults: workers that ended here, since the last batch that was made here. refused: why no worker is started."""

    worker: str | None = None
    faults: int = 0
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Member:
    """A worker that has joined."""

    place: str
    hello: Hello


class ClusterExecutor:
    """Makes batches on the workers of a cluster."""

    writing = Writing(threads=16, images=128)  # they are encoded already, and a disk syncs many files as fast as one

    def __init__(self, hosts: Hosts, *, unit_seconds: float):
        """unit_seconds: how long a worker should take for what it is given at a time."""
        self._hosts, self._unit_seconds = hosts, unit_seconds
        self._watcher: ClusterWatcher | None = None
        self._places: dict[str, _Place] = {}
        self._starting: dict[str, str] = {}  # worker -> its place
        self._members: dict[str, _Member] = {}
        self._num_devices = 0  # of the worker that joined first
        self._staffed: float | None = None
        self._fed = 0.0
        self._num_lost = 0
        self._background = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._hashes: dict[WeightsKey, Future[Mapping[str, str]]] = {}
        self._configs: dict[Any, SavedConfig] = {}  # of a run, without its rows

    def __enter__(self) -> "ClusterExecutor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers."""
        self._hosts.close()
        self._background.shutdown(wait=True)

    def start(self) -> None:
        """Starts workers, and waits for the first. Raises UserError where no worker can take part."""
        with waiting(STARTING):
            while not self._members:
                signals.check()
                self._staff()
                for event in self._hosts.events(POLL_SECONDS):
                    self._note(event, None)

    def watch(self, watcher: ClusterWatcher) -> None:
        """Shows progress from now on."""
        self._watcher = watcher

    def describe(self) -> str:
        kind = next(iter(self._members.values())).hello.devices["kind"] if self._members else "unknown"
        plural = "" if self._num_devices == 1 else "s"
        return f"{self._hosts.describe()}, whose workers have {self._num_devices} {kind} device{plural}"

    def batch_size(self, config: SavedConfig) -> int:
        return self._num_devices * config.batch_size_per_device

    def generate(self, batches: Iterable[Batch[Run]]) -> Iterator[Outcome[Run]]:
        schedule = Schedule(iter(batches), unit_seconds=self._unit_seconds)
        for worker in self._members:
            schedule.join(worker)
        if self._watcher is not None:
            self._watcher.prepare(PREPARING)
        last, first = self._hosts.now(), True
        self._fed = last - FEED_SECONDS
        while not schedule.finished:
            signals.check()
            self._staff()
            self._feed_idle(schedule)
            for event in self._hosts.events(POLL_SECONDS):
                lost = self._note(event, schedule)
                yield from lost
                if not isinstance(event, Finished):
                    continue
                for result in event.results:
                    outcome = self._outcome(event.worker, result, schedule)
                    if isinstance(outcome, MadeBatch):
                        now = self._hosts.now()
                        outcome = dataclasses.replace(outcome, seconds=_shares(result, now - last, first))
                        last, first = now, False
                        self._show(len(outcome.images))
                    if outcome is not None:
                        yield outcome
                self._feed(schedule, event.worker)

    def _feed_idle(self, schedule: Schedule[Run]) -> None:
        """Idle workers get what others lost or are slow at. Seldom, because it looks at every worker."""
        now = self._hosts.now()
        if now - self._fed < FEED_SECONDS:
            return
        self._fed = now
        for worker in schedule.idle():
            if not self._feed(schedule, worker) and not schedule.has_again:
                break  # the next is slower, and helps even less

    def _feed(self, schedule: Schedule[Run], worker: str) -> bool:
        """The next unit for a worker; whether there is one."""
        if worker not in self._members:
            return False
        if unit := schedule.feed(worker, self._hosts.now()):
            self._hosts.give(worker, [self._remote(task) for task in unit])
        for holder, numbers in _by_holder(schedule.drops()).items():
            if holder in self._members:
                self._hosts.drop(holder, numbers)
        return bool(unit)

    def _note(self, event: Event, schedule: Schedule[Run] | None) -> Sequence[SetAsideBatch[Run]]:
        """Who takes part after an event. Returns the batches that are set aside with a worker that is lost."""
        if isinstance(event, Joined):
            self._join(event, schedule)
        elif isinstance(event, Ended):
            return self._lose(event, schedule)
        elif event.worker in self._members:
            self._places[self._members[event.worker].place].faults = 0
        return ()

    def _join(self, event: Joined, schedule: Schedule[Run] | None) -> None:
        place = self._starting.pop(event.worker, None)
        if place is None:
            return
        if (why := refusal(event.hello)) is not None:
            self._refuse(event.worker, place, f"worker on {event.hello.host}: {why}")
            return
        self._members[event.worker] = _Member(place=place, hello=event.hello)
        self._num_devices = self._num_devices or int(event.hello.devices["count"])
        if schedule is not None:
            schedule.join(event.worker)
            self._feed(schedule, event.worker)
        self._show(0)

    def _lose(self, event: Ended, schedule: Schedule[Run] | None) -> Sequence[SetAsideBatch[Run]]:
        member = self._members.pop(event.worker, None)
        name = self._starting.pop(event.worker, None) if member is None else member.place
        if name is None:
            return ()
        place = self._places[name]
        place.worker, self._staffed = None, None  # another one starts at once
        place.faults += 2 if member is None else 1
        if place.faults >= MOST_FAULTS:
            place.refused = event.reason
        self._num_lost += 1
        where = "a worker that was starting" if member is None else f"worker on {member.hello.host}"
        report(f"{where}: ended ({event.reason}); its images go to others")
        self._show(0)
        if schedule is None:
            return ()
        return [
            SetAsideBatch(
                batch=lost.batch, reason=f"{lost.num_workers} workers ended while they made it: {event.reason}"
            )
            for lost in schedule.lose(event.worker)
        ]

    def _expel(self, worker: str, line: str, schedule: Schedule[Run]) -> None:
        """Ends a worker that took part and cannot go on; others make what it has."""
        member = self._members.pop(worker)
        schedule.lose(worker, blame=False)
        self._refuse(worker, member.place, f"worker on {member.hello.host}: {line}")

    def _refuse(self, worker: str, place: str, line: str) -> None:
        """Ends a worker for good, and starts no other in its place."""
        self._hosts.end(worker)
        self._places[place].worker, self._places[place].refused, self._staffed = None, line, None
        report(line)

    def _staff(self) -> None:
        """Starts a worker in each place that has none. Raises UserError where all places refuse."""
        now = self._hosts.now()
        if self._staffed is not None and now - self._staffed < STAFF_SECONDS:
            return
        self._staffed = now
        names = self._hosts.places()
        for name in names:
            place = self._places.setdefault(name, _Place())
            if place.worker is None and place.refused is None:
                place.worker = self._hosts.start(name)
                self._starting[place.worker] = name
        refused = [self._places[name].refused for name in names]
        if names and not self._members and not self._starting and all(line is not None for line in refused):
            raise UserError(f"executor=ray: no worker is left; the last one: {refused[-1]}")

    def _outcome(self, worker: str, result: RemoteResult, schedule: Schedule[Run]) -> Outcome[Run] | None:
        """What a worker's result means for the run; None: nothing."""
        if worker not in self._members:
            return None
        if result.lacks:
            self._expel(worker, result.lacks, schedule)
            return None
        if result.images is None:
            failed = schedule.failed(worker, result.number)
            if failed is None:
                return None
            error = UserError(result.error) if result.is_user_error else WorkerError(result.error, result.trace)
            return FailedBatch(batch=failed, error=error)
        task = schedule.task(result.number)
        if task is None:
            return None
        assert result.provenance is not None
        prepared = task.batch.entries[0][0].prepared
        digest = self._digest(prepared)
        if result.provenance.weights != digest:
            self._expel(
                worker,
                f"model={show(prepared.config.model.name)}: has other files: sha256 "
                f"{result.provenance.weights[:12]}..., not {digest[:12]}...; give every host the same checkpoint",
                schedule,
            )
            return None
        seconds = result.seconds.get("generate", 0.0) - _once(result)
        batch = schedule.made(worker, result.number, seconds, self._hosts.now())
        assert batch is not None
        provenance = result.provenance
        return MadeBatch(batch=batch, images=result.images, provenance=lambda: provenance, safety=result.safety)

    def _digest(self, prepared: PreparedRun) -> str:
        """`weights_digest` of the checkpoint as this machine has it."""
        from tpusd.checkpoints import weights_digest

        key = weights_key(prepared.config)
        if key not in self._hashes:
            self._hashes[key] = self._background.submit(hash_checkpoint, prepared.checkpoint)
        return weights_digest(self._hashes[key].result())

    def _remote(self, task: Task[Run]) -> RemoteBatch:
        runs = list(dict.fromkeys(run for run, _ in task.batch.entries))
        tokens: dict[str, tuple[int, bool]] = {}
        for run, spec in task.batch.entries:
            for text in (spec.prompt, spec.negative_prompt):
                if text is not None:
                    tokens[text] = run.prepared.tokens[text]
        return RemoteBatch(
            number=task.number,
            configs=[self._config(run) for run in runs],
            entries=[(runs.index(run), spec) for run, spec in task.batch.entries],
            tokens=tokens,
        )

    def _config(self, run: Run) -> SavedConfig:
        if run not in self._configs:
            config = run.prepared.config
            prompts = dataclasses.replace(config.prompts, rows=_loras_alone(config.prompts.rows))
            self._configs[run] = dataclasses.replace(config, prompts=prompts, executor=LOCAL)
            key = weights_key(config)
            if key not in self._hashes:  # beside all other work
                self._hashes[key] = self._background.submit(hash_checkpoint, run.prepared.checkpoint)
        return self._configs[run]

    def _show(self, num_images: int) -> None:
        if self._watcher is None:
            return
        number = len(self._members)
        lost = f", {self._num_lost} lost" if self._num_lost else ""
        self._watcher.note(f"{number} worker{'' if number == 1 else 's'}{lost}")
        if num_images:
            self._watcher.start_batch(num_images)
            self._watcher.end_batch()


def refusal(hello: Hello, own: Mapping[str, str | None] | None = None) -> str | None:
    """Why a worker cannot take part; None where it can. own: the versions of the driver."""
    own = versions() if own is None else own
    for name in SAME_VERSIONS:
        if hello.versions.get(name) != own.get(name):
            there = hello.versions.get(name) or "none"
            return f"has {name} {there}, and the driver has {own.get(name)}; install the same version on every host"
    return None


def _loras_alone(rows: Sequence[Row]) -> Sequence[Row]:
    """What a worker needs of the prompt rows beside the specs of its images: LoRAs of their own, where any row has."""
    if not any(row.loras for _, row in first_rows(rows)):
        return ()
    return pack(Row(prompt=".", loras=row.loras) for row in rows)


def _once(result: RemoteResult) -> float:
    """Seconds of a batch that come only once."""
    return result.seconds.get("compile", 0.0) + result.seconds.get("weights", 0.0)


def _shares(result: RemoteResult, elapsed: float, first: bool) -> dict[str, float]:
    """Seconds of a batch, by part, so that all batches together took as long as the cluster did.

    elapsed: since the batch before, of any worker.
    first: whether it is the first one, whose start-up counts as the run's.
    """
    if not first:
        return {"generate": elapsed, "compile": 0.0, "weights": 0.0, "load": 0.0}
    generate = min(result.seconds.get("generate", 0.0), elapsed)
    compile_ = min(result.seconds.get("compile", 0.0), generate)
    weights = min(result.seconds.get("weights", 0.0), generate - compile_)
    return {"generate": generate, "compile": compile_, "weights": weights, "load": elapsed - generate}


def _by_holder(drops: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for holder, number in drops:
        numbers.setdefault(holder, []).append(number)
    return numbers
