"""Which worker makes which batch: units, retries, doubled batches. Knows nothing of Ray and of how images are made.

A worker gets a unit of some batches at a time. Where a worker is lost, the batches that it had go to others. Where no
batch is left, idle workers take batches over from busy ones, and the last batches are made twice.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tpusd.plan.batches import Batch

Run = TypeVar("Run")

MAX_LOSSES = 3  # workers that a batch may end before it is set aside
MAX_ERRORS = 2  # workers that may fail at a batch before it counts as failed
MAX_UNIT = 4096  # batches
GROWTH = 4  # times the unit before, at most: the first batch of a worker says little about the next hundred
SMOOTHING = 0.3  # the weight of the newest batch in a worker's pace
AHEAD = 1  # batches that a worker still has when it gets its next unit


@dataclass(eq=False, kw_only=True)
class Task(Generic[Run]):
    """A batch that is not made yet.

    losses: how many workers ended while they made it.
    is_suspect: whether it may be why a worker ended: the next worker makes it with no other behind or before it.
    failed_on: the workers that raised an error for it.
    holders: the workers that have it.
    """

    number: int
    batch: Batch[Run]
    losses: int = 0
    is_suspect: bool = False
    failed_on: set[str] = field(default_factory=set)
    holders: set[str] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Lost(Generic[Run]):
    """A batch that is set aside. num_workers: how many ended while they made it."""

    batch: Batch[Run]
    num_workers: int


@dataclass(kw_only=True)
class _Worker(Generic[Run]):
    """queue: the batches that it has, in the order in which it makes them. pace: seconds a batch; None: not known."""

    queue: deque[Task[Run]] = field(default_factory=deque)
    pace: float | None = None
    last_unit: int = 0
    busy_since: float = 0.0

    def expected(self, number: int) -> float:
        """Seconds for so many batches; infinity while the pace is not known."""
        return float("inf") if self.pace is None else number * self.pace


class Schedule(Generic[Run]):
    """Batches -> units of workers. A caller says what happens, and when (`now`, in seconds of any clock)."""

    def __init__(self, batches: Iterator[Batch[Run]], *, unit_seconds: float):
        """batches: is asked for a batch when a worker has room for it.

        unit_seconds: how long a worker should take for a unit.
        """
        self._source, self._unit_seconds = batches, unit_seconds
        self._exhausted = False
        self._tasks: dict[int, Task[Run]] = {}  # that are not made yet
        self._again: deque[Task[Run]] = deque()  # of workers that were lost or failed
        self._workers: dict[str, _Worker[Run]] = {}
        self._drops: list[tuple[str, int]] = []
        self._next = 0

    @property
    def finished(self) -> bool:
        """Whether every batch is made or given up."""
        if not self._exhausted and not self._tasks:
            self._again.extend(self._pull(1))  # whether there is a batch is known only once it is asked for
        return self._exhausted and not self._tasks

    @property
    def has_again(self) -> bool:
        """Whether batches wait that another worker did not make."""
        return bool(self._again)

    def idle(self) -> list[str]:
        """The workers that have no batch, the fastest first."""
        idle = ((own.pace or 0.0, name) for name, own in self._workers.items() if not own.queue)
        return [name for _, name in sorted(idle)]

    def join(self, worker: str) -> None:
        self._workers[worker] = _Worker()

    def feed(self, worker: str, now: float) -> list[Task[Run]]:
        """The next unit for a worker; empty where it has enough, or where nothing is left for it."""
        own = self._workers[worker]
        if len(own.queue) > AHEAD or any(task.is_suspect for task in own.queue):
            return []
        unit = self._take_again(worker) or self._take_new(own)
        if not unit and not own.queue:
            unit = self._take_over(worker, now)
        if unit and not own.queue:
            own.busy_since = now
        for task in unit:
            task.holders.add(worker)
            own.queue.append(task)
        return unit

    def task(self, number: int) -> Task[Run] | None:
        """A batch that is not made yet; None where it is made or given up."""
        return self._tasks.get(number)

    def drops(self) -> list[tuple[str, int]]:
        """(worker, number of a batch) that the worker need not make any more; each is returned once."""
        dropped, self._drops = self._drops, []
        return dropped

    def made(self, worker: str, number: int, seconds: float, now: float) -> Batch[Run] | None:
        """A worker has made a batch. Returns the batch, or None where another worker was first."""
        own = self._workers.get(worker)
        if own is not None:
            own.pace = seconds if own.pace is None else own.pace + SMOOTHING * (seconds - own.pace)
            own.busy_since = now
        task = self._tasks.pop(number, None)
        if task is None:
            return None
        self._release(task)
        self._drops += [(holder, number) for holder in sorted(task.holders - {worker})]
        return task.batch

    def failed(self, worker: str, number: int) -> Batch[Run] | None:
        """A worker raised an error for a batch. Returns the batch where it counts as failed; else another tries it."""
        task = self._tasks.get(number)
        if task is None:
            return None
        parts = list(task.batch.parts())
        if len(parts) > 1:  # run by run, so that the others do not fail with the run that is at fault
            del self._tasks[number]
            self._release(task)
            self._again.extend(self._new(part) for part in parts)
            return None
        task.failed_on.add(worker)
        others = self._workers.keys() - task.failed_on
        if len(task.failed_on) >= MAX_ERRORS or not others:
            del self._tasks[number]
            self._release(task)
            self._drops += [(holder, number) for holder in sorted(task.holders - {worker})]
            return task.batch
        self._remove(worker, task)
        if not task.holders:
            self._again.append(task)
        return None

    def lose(self, worker: str, *, blame: bool = True) -> list[Lost[Run]]:
        """A worker has ended: others make its batches. Returns the batches that are set aside.

        blame: whether the batch that it made may be why it ended.
        """
        own = self._workers.pop(worker, None)
        lost: list[Lost[Run]] = []
        for place, task in enumerate([] if own is None else own.queue):
            task.holders.discard(worker)
            task.losses += place == 0 and blame
            task.is_suspect |= place <= AHEAD and blame  # the first may be made, and its result lost with the worker
            if task.losses >= MAX_LOSSES:
                self._tasks.pop(task.number, None)
                self._release(task)
                self._drops += [(holder, task.number) for holder in sorted(task.holders)]
                lost.append(Lost(batch=task.batch, num_workers=task.losses))
            elif not task.holders:
                self._again.append(task)
        return lost

    def _pull(self, number: int) -> list[Task[Run]]:
        """The next batches of the plan, at most so many."""
        tasks: list[Task[Run]] = []
        while len(tasks) < number and not self._exhausted:
            batch = next(self._source, None)
            if batch is None:
                self._exhausted = True
                break
            tasks.append(self._new(batch))
        return tasks

    def _new(self, batch: Batch[Run]) -> Task[Run]:
        task = Task(number=self._next, batch=batch)
        self._next += 1
        self._tasks[task.number] = task
        return task

    def _take_new(self, own: _Worker[Run]) -> list[Task[Run]]:
        wanted = 1
        if own.pace is not None:
            wanted = int(self._unit_seconds / max(own.pace, 1e-9))
        wanted = max(1, min(wanted, MAX_UNIT, GROWTH * own.last_unit))
        unit = self._pull(wanted)
        own.last_unit = len(unit) or own.last_unit
        return unit

    def _take_again(self, worker: str) -> list[Task[Run]]:
        """A batch that others did not make. One that may end its worker is made with no other behind it."""
        for task in self._again:
            if worker in task.failed_on and self._workers.keys() - task.failed_on:
                continue
            if task.is_suspect and self._workers[worker].queue:
                continue
            self._again.remove(task)
            return [task]
        return []

    def _take_over(self, worker: str, now: float) -> list[Task[Run]]:
        """Where no batch is left: the later half of what the slowest worker has, or its only batch a second time."""
        own = self._workers[worker]
        others = [
            (other.expected(len(other.queue)) - (now - other.busy_since), name)
            for name, other in self._workers.items()
            if name != worker and any(self._may_take(worker, task) for task in other.queue)
        ]
        for seconds, name in sorted(others, reverse=True):
            queue = self._workers[name].queue
            waiting = [task for task in list(queue)[1:] if self._may_take(worker, task)]
            if waiting:
                taken = waiting[len(waiting) // 2 :]
                for task in taken:
                    self._remove(name, task)
                    self._drops.append((name, task.number))
                return taken
            first = queue[0]
            if self._may_take(worker, first) and (own.pace is None or own.pace < seconds):
                return [first]
        return []

    def _may_take(self, worker: str, task: Task[Run]) -> bool:
        return len(task.holders) < 2 and worker not in task.holders | task.failed_on

    def _remove(self, worker: str, task: Task[Run]) -> None:
        task.holders.discard(worker)
        if worker in self._workers and task in self._workers[worker].queue:
            self._workers[worker].queue.remove(task)

    def _release(self, task: Task[Run]) -> None:
        """Takes a batch that is done out of the queues; `holders` still says who had it."""
        for holder in task.holders:
            if holder in self._workers and task in self._workers[holder].queue:
                self._workers[holder].queue.remove(task)
        if task in self._again:
            self._again.remove(task)
