"""Workers on a Ray cluster: an actor each. Ray places them and says when they are gone. No other module imports Ray."""

import contextlib
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tpusd.config.executor import ExecutorConfig, Resources
from tpusd.errors import UserError, show
from tpusd.process.waiting import waiting
from tpusd.runs.executors.cluster import Ended, Event, Finished, Joined
from tpusd.runs.executors.local import LoadPipeline, load_pipeline
from tpusd.runs.executors.worker import Hello, RemoteBatch, RemoteResult, Worker

ACCELERATORS = ("TPU", "GPU")
CALLS = 4  # that an actor answers at a time: one waits for finished batches
REACH_SECONDS = 5.0
STOP_SECONDS = 6.0
STORE_BYTES = 512 << 20  # of a cluster of this machine alone: some finished batches
LISTED = 5  # kinds of hosts that a message names
INTERNAL = re.compile(r"node:|memory$|object_store_memory$|accelerator_type:|.*_group_")


class RayWorker:
    """The actor: a Worker that is made with the first call, so that a fault of the host is the error of that call."""

    def __init__(self, load: LoadPipeline = load_pipeline):
        self._load = load
        self._worker: Worker | None = None

    def hello(self) -> Hello:
        self._worker = Worker(load=self._load)
        return self._worker.hello()

    def give(self, batches: Sequence[RemoteBatch]) -> None:
        self._known().give(batches)

    def drop(self, numbers: Sequence[int]) -> None:
        self._known().drop(numbers)

    def take(self) -> list[RemoteResult]:
        return self._known().take()

    def stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()

    def _known(self) -> Worker:
        assert self._worker is not None
        return self._worker


class RayHosts:
    """The hosts of a Ray cluster. `connect` makes one."""

    def __init__(self, ray: ModuleType, config: ExecutorConfig, *, is_own: bool, load: LoadPipeline):
        """is_own: whether the connection ends with this object."""
        self._ray, self._config, self._is_own = ray, config, is_own
        self._load = load
        self._actors: dict[str, Any] = {}
        self._calls: dict[Any, tuple[str, bool]] = {}  # a call that has not answered -> (worker, whether it is hello)
        self._number = 0
        self._closed = False

    @classmethod
    def connect(cls, config: ExecutorConfig, *, load: LoadPipeline = load_pipeline) -> "RayHosts":
        """Connects to the cluster, or starts one of this machine alone. Raises UserError."""
        ray = check_cluster(config.address)
        is_own = not ray.is_initialized()
        if is_own:
            _connect(ray, config.address)
        hosts = cls(ray, config, is_own=is_own, load=load)
        try:
            hosts.check()
        except BaseException:
            hosts.close()
            raise
        return hosts

    def describe(self) -> str:
        return "a Ray cluster" if self._config.address is None else f"the Ray cluster at {show(self._config.address)}"

    def now(self) -> float:
        return time.monotonic()

    def check(self) -> None:
        """Raises UserError where no host has what a worker takes."""
        nodes = self._nodes()
        if any(self._suits(has) for has in nodes.values()):
            return
        listed = _kinds_of_hosts(nodes.values())
        asked = self._config.resources_per_worker
        if asked is None:
            raise UserError(f"executor=ray: no host of the cluster has a TPU, a GPU or a CPU; its hosts have {listed}")
        raise UserError(
            f"executor.resources_per_worker={asked}: no host of the cluster has that; its hosts have {listed}"
        )

    def places(self) -> Sequence[str]:
        """Hosts by their ID; for a fixed number of workers, as many places as there are workers, on any host."""
        if self._config.num_workers is not None:
            return [f"{number}" for number in range(self._config.num_workers)]
        nodes = self._nodes()
        suiting = [name for name, has in nodes.items() if self._suits(has)]
        fast = [name for name in suiting if _accelerators(nodes[name])]
        return fast if fast and self._config.resources_per_worker is None else suiting

    def start(self, place: str) -> str:
        self._number += 1
        name = f"worker {self._number}"
        options: dict[str, Any] = {"max_restarts": 0, "max_concurrency": CALLS}
        if self._config.num_workers is None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(place, soft=False)
        actor = self._ray.remote(RayWorker).options(**options, **_actor_resources(self._amounts(place)))
        self._actors[name] = actor.remote(self._load)
        self._call(name, is_hello=True)
        return name

    def give(self, worker: str, batches: Sequence[RemoteBatch]) -> None:
        if worker in self._actors:  # else its end is among the events that the caller has not seen yet
            self._actors[worker].give.remote(batches)

    def drop(self, worker: str, numbers: Sequence[int]) -> None:
        if worker in self._actors:
            self._actors[worker].drop.remote(numbers)

    def end(self, worker: str) -> None:
        actor = self._actors.pop(worker, None)
        if actor is not None:
            self._ray.kill(actor, no_restart=True)

    def events(self, seconds: float) -> Sequence[Event]:
        calls = list(self._calls)
        if not calls:
            time.sleep(min(seconds, 0.2))
            return ()
        ready, _ = self._ray.wait(calls, num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        found = (self._event(call) for call in ready)
        return [event for event in found if event is not None]

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(Exception):  # the cluster may be gone
            calls = [actor.stop.remote() for actor in self._actors.values()]
            if calls:
                self._ray.wait(calls, num_returns=len(calls), timeout=STOP_SECONDS)
            for actor in self._actors.values():
                self._ray.kill(actor, no_restart=True)
        self._actors.clear()
        self._calls.clear()
        if self._is_own:
            with _signals_kept(), contextlib.suppress(Exception):
                self._ray.shutdown()

    def _call(self, worker: str, *, is_hello: bool = False) -> None:
        actor = self._actors[worker]
        self._calls[(actor.hello if is_hello else actor.take).remote()] = worker, is_hello

    def _event(self, call: object) -> Event | None:
        worker, is_hello = self._calls.pop(call)
        if worker not in self._actors:
            return None
        try:
            value = self._ray.get(call)
        except Exception as error:
            self.end(worker)
            return Ended(worker=worker, reason=reason_of(error))
        self._call(worker)
        return Joined(worker=worker, hello=value) if is_hello else Finished(worker=worker, results=value)

    def _nodes(self) -> Mapping[str, Mapping[str, float]]:
        """ID of a host that is there -> what it has."""
        try:
            nodes = self._ray.nodes()
        except Exception as error:
            raise UserError(f"executor=ray: the cluster is gone: {reason_of(error)}") from None
        return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}

    def _suits(self, has: Mapping[str, float]) -> bool:
        asked = self._config.resources_per_worker
        if asked is None:
            return bool(_accelerators(has)) or has.get("CPU", 0) >= 1
        return all(has.get(name, 0) >= amount for name, amount in asked.amounts)

    def _amounts(self, place: str) -> Mapping[str, float]:
        """What a worker takes in a place."""
        asked = self._config.resources_per_worker
        if asked is not None:
            return dict(asked.amounts)
        nodes = self._nodes()
        if self._config.num_workers is None:
            has = nodes.get(place, {})
            return _accelerators(has) or {"CPU": has.get("CPU", 1)}
        found = (_accelerators(has) for has in nodes.values())
        return next(filter(None, found), {"CPU": 1})


def check_cluster(address: str | None) -> ModuleType:
    """Ray's module. Raises UserError where it is not installed, or nobody answers at the address."""
    try:
        with waiting("loading Ray"):
            import ray
    except ImportError:
        raise UserError("executor=ray: Ray is not installed; pip install 'tpusd[ray]'") from None
    if address is not None and not ray.is_initialized():
        _check_reachable(address)
    module: ModuleType = ray
    return module


def reason_of(error: BaseException) -> str:
    """Why a worker is gone, in a few words."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return str(cause)
    if isinstance(cause, BaseException):
        return f"{type(cause).__name__}: {show(' '.join(str(cause).split()), 200)}"
    text = " ".join(str(error).split())
    if re.search(r"node (has )?died|node .{0,80}(dead|removed|terminated)|node failure", text, re.IGNORECASE):
        return "its host is gone"
    if "OutOfMemory" in type(error).__name__ or "memory" in text and "killed" in text:
        return "its host is out of memory"
    detail = re.search(r"exit detail: (.{0,160}?)(?:\. |$)", text)
    return f"its process ended: {show(detail[1])}" if detail else f"{type(error).__name__}: {show(text, 200)}"


def _connect(ray: ModuleType, address: str | None) -> None:
    """Raises UserError where there is no cluster at the address."""
    own: dict[str, Any] = {"address": address}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {"address": "local", "include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        with waiting("starting Ray" if address is None else "connecting to Ray"), _signals_kept():
            ray.init(**own, log_to_driver=False, logging_level="ERROR")
    except (Exception, SystemExit) as error:  # Ray ends the process where a cluster does not answer
        shown = "executor=ray" if address is None else f"executor.address={show(address)}"
        line = show(" ".join(str(error).split()), 200)
        raise UserError(f"{shown}: Ray cannot use it ({type(error).__name__}: {line})") from None


def _check_reachable(address: str) -> None:
    """Ray itself waits for minutes. Raises UserError."""
    asked = f"executor.address={show(address)}"
    if address == "auto":
        found = os.environ.get("RAY_ADDRESS") or _current_cluster()
        if not found:
            raise UserError(f"{asked}: no Ray cluster runs on this machine; start one with: ray start --head")
        address, asked = found, f"{asked} ({show(found)})"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{asked}: cannot be reached ({reason}); see whether the cluster runs, and its address"
        ) from None


def _current_cluster() -> str:
    """The address that `ray start` leaves for programs of this machine."""
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    with contextlib.suppress(OSError):
        return (folder / "ray_current_cluster").read_text(encoding="utf-8").strip()
    return ""


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts its own handler of SIGTERM in the place of ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _accelerators(has: Mapping[str, float]) -> dict[str, float]:
    return {name: has[name] for name in ACCELERATORS if has.get(name, 0) > 0}


def _shown(has: Mapping[str, float]) -> Resources:
    return Resources(tuple((name, amount) for name, amount in has.items() if not INTERNAL.match(name)))


def _kinds_of_hosts(hosts: Iterable[Mapping[str, float]]) -> str:
    """What hosts have, the most frequent kind first: a head that works for nobody is not the first to be named."""
    kinds = Counter(str(_shown(has)) for has in hosts).most_common()
    listed = ", ".join(f"{kind} ({count} {'host' if count == 1 else 'hosts'})" for kind, count in kinds[:LISTED])
    return listed + (f" and {len(kinds) - LISTED} more kinds" if len(kinds) > LISTED else "")


def _actor_resources(amounts: Mapping[str, float]) -> dict[str, Any]:
    names = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    options: dict[str, Any] = {"num_cpus": 0}
    options |= {names[name]: amount for name, amount in amounts.items() if name in names}
    others = {name: amount for name, amount in amounts.items() if name not in names}
    return options | ({"resources": others} if others else {})
