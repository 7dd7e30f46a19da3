"""Kills and fails a run at every one of its disk operations, goes on with it, and compares with an uninterrupted one.

    python tests/support/crash_harness.py                 every mode, a line each; --json for a machine
    python tests/support/crash_harness.py kill --random 300

A process forks a child for each case, so that a kill is a real SIGKILL. In the child `tpusd.storage.local`, which makes
all disk operations of a run, gets an `os` that counts them and stops or fails the Nth; N rises until a run ends without
reaching it. The pools work inline, so that the Nth operation is the same in each run; random kills leave them alone.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")  # jax was imported; it has no threads yet

import jax  # noqa: E402

import tpusd.gallery.thumbnails  # noqa: E402
import tpusd.runs.executors.local  # noqa: E402
import tpusd.runs.writer  # noqa: E402
from support.runs import StandInPipeline, config, prepare  # noqa: E402
from tpusd.errors import UserError  # noqa: E402
from tpusd.records.layout import CONFIG  # noqa: E402
from tpusd.records.manifest import read_manifest  # noqa: E402
from tpusd.records.repair import repair  # noqa: E402, F401  imported once for all children
from tpusd.records.run_json import read_run  # noqa: E402
from tpusd.records.saved import read_config  # noqa: E402
from tpusd.runs.resume import resume_run  # noqa: E402
from tpusd.runs.start import start_run  # noqa: E402
from tpusd.storage import local as storage  # noqa: E402

CHANGING = {"open", "write", "fsync", "close", "rename", "unlink", "mkdir", "rmdir", "ftruncate"}
LOOKING = {"lstat", "stat", "fstat", "listdir", "access", "pread"}
MODES = ("kill", "torn", "once", "forever")
ROWS = 'prompts.rows=[{prompt: "a red fox"}, {prompt: "an owl", guidance_scale: 1}]'
SIZE = ("height=8", "width=8")
SHAPES = {"run": (1, 1), "resume": (2, 1), "random": (2, 2)}  # copies, batch size
POOLS = (tpusd.runs.writer, tpusd.runs.executors.local, tpusd.gallery.thumbnails)
HYDRA = {"overrides.yaml": ["seed=0"]}


class Faulty:
    """A module (`os`, `fcntl`) whose counted functions pass through `count`, which stops or fails the nth."""

    def __init__(self, module, names, count):
        self._module, self._names, self._count = module, names, count

    def __getattr__(self, name):
        real = getattr(self._module, name)
        return real if name not in self._names else lambda *a, **k: self._count(name, real, *a, **k)


class Disk:
    """Counts operations. kill: SIGKILL before the nth; torn: after half of it, a write; once, forever: an error."""

    def __init__(self, mode, nth):
        self.mode, self.nth, self.calls = mode, nth, 0

    def __call__(self, name, real, *arguments, **options):
        self.calls += 1
        reached = self.calls == self.nth or (self.mode == "forever" and self.calls > self.nth > 0)
        if reached and self.mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if reached and self.mode == "torn":
            descriptor, data = arguments
            real(descriptor, bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        if reached and self.mode in ("once", "forever"):
            if name == "close":  # an error of close still closes
                real(*arguments)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    def install(self):
        names = {"kill": CHANGING, "torn": {"write"}}.get(self.mode, CHANGING | LOOKING)
        storage.os = Faulty(os, names, self)
        if self.mode not in ("kill", "torn"):
            storage.fcntl = Faulty(fcntl, {"flock"}, self)


def stand_in_devices():
    """JAX's own would start threads, which do not survive a fork."""
    return [SimpleNamespace(platform="cpu", device_kind="stand-in")]


jax.local_devices = stand_in_devices


class Inline:
    """A pool that works at once."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future

    def map(self, function, items):
        return [function(item) for item in items]

    def shutdown(self, wait=True):
        pass


def inline_pools():
    for module in POOLS:
        module.ThreadPoolExecutor = Inline


class Unreached(BaseException):
    """The run ended before the fault was due."""


def attempt(function) -> int:
    """Runs `function`. 0: done; 2: it told the fault as one line; 3: any other exception; 9: Unreached."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            function()
    except UserError as error:
        if os.environ.get("CRASH_VERBOSE"):
            print(error, file=sys.stderr)
        return 2 if "\n" not in str(error) else 3
    except Unreached:
        return 9
    except Exception:
        traceback.print_exc()
        return 3
    return 0


def child(function) -> int:
    """`attempt` in a fork; -9: it was killed."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    signal.alarm(60)  # a case that hangs is a failure, and not the end of the harness
    status = 3
    try:
        status = attempt(function)
    finally:
        os._exit(status)


@functools.cache
def composed(copies: int, batch: int = 1):
    return config(ROWS, *SIZE, f"num_images_per_prompt={copies}", f"batch_size_per_device={batch}")


def start(path: Path, copies: int = 1, batch: int = 1, pipeline=None) -> None:
    start_run(
        dataclasses.replace(composed(copies, batch), output=str(path)),
        hydra_files=HYDRA,
        prepare=prepare,
        load=lambda *_: pipeline or StandInPipeline(),
    )


def go_on(path: Path, copies: int = 1, batch: int = 1) -> None:
    """What a user does after a crash: go on, or the same command again where there is nothing to go on with."""
    if (path / CONFIG).exists():
        resume_run(path, prepare=prepare, load=lambda *_: StandInPipeline())
    else:
        start(path, copies, batch)


def half_done(path: Path) -> None:
    """A run that was killed: one image of four, half a line, half a file, a line without its file."""
    try:
        start(path, 2, pipeline=StandInPipeline(2, KeyboardInterrupt()))
    except KeyboardInterrupt:
        pass
    (path / "images" / "00000-000.png").unlink()
    (path / "images" / "00001-000.png.tmp").write_bytes(b"half")
    with open(path / "manifest.jsonl", "ab") as file:
        file.write(b'{"file_name": "ima')


def content(path: Path):
    """Names, image and config bytes, manifest lines as a set, and the state: all that must not depend on a crash."""
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    lines = (path / "manifest.jsonl").read_bytes().splitlines()
    assert len(lines) == len(set(lines)), "a line twice"
    hashes = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in files if name.endswith(".png")}
    return files, hashes, set(lines), read_config(path) | {"output": None}, read_run(path)["state"]


def check_truth(path: Path, taken_away: bool) -> None:
    """Right after a crash: each line's image is whole, but for the one that `half_done` took away."""
    for record in read_manifest(path):
        if taken_away and record.key == (0, 0) and not (path / record.file_name).exists():
            continue
        data = (path / record.file_name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == record.sha256, record.file_name


class Harness:
    def __init__(self, folder: Path):
        self.folder, self.failures = folder, []
        inline_pools()
        self.wanted, self.seconds = {}, {}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            start(folder / "warm")  # what is slow is loaded once, before the forks
        for name, shape in SHAPES.items():
            path = folder / f"whole-{name}" / "run"
            composed(*shape)
            started = time.monotonic()
            assert child(lambda path=path, shape=shape: start(path, *shape)) == 0
            self.seconds[name] = time.monotonic() - started
            self.wanted[name] = content(path)
        self.template = folder / "half"
        assert child(lambda: half_done(self.template)) == 0

    def every_point(self, what: str, mode: str) -> int:
        """what: "run" or "resume". Returns how many points there were."""
        nth = 0
        while True:
            nth += 1
            if not self.case(what, f"{what} {mode} {nth}", lambda path, n=nth: self._faulty(what, path, mode, n)):
                return nth - 1

    def random_kills(self, number: int, seed: int) -> int:
        """Kills after random times of a whole run's, with real pools. Returns how many came before the run's end."""
        generator, early = random.Random(seed), 0
        for i in range(number):
            delay = generator.uniform(0.0, self.seconds["random"])
            early += self.case("random", f"random {i}", lambda path, d=delay: self._killed_after(path, d))
        return early

    def case(self, what: str, name: str, crash) -> bool:
        """One crash, and what follows. Returns whether the fault was reached."""
        path = self.folder / "case" / "run"
        path.parent.mkdir()
        try:
            if what == "resume":
                shutil.copytree(self.template, path)
            status = crash(path)
            assert status in (0, 2, 9, -9), f"the crash itself ended with {status}"
            if path.exists():
                check_truth(path, what == "resume")
            reached = status != 9  # 9: ended without reaching the fault
            if status != 0 or not (path / CONFIG).exists():
                assert (then := attempt(lambda: go_on(path, *SHAPES[what]))) == 0, f"going on ended with {then}"
            else:
                assert attempt(lambda: go_on(path)) == 0
            assert content(path) == self.wanted[what], "differs from an uninterrupted run"
        except (AssertionError, UserError, OSError, KeyError) as error:
            self.failures.append(f"{name}: {error}"[:300])
            reached = "ended without" not in str(error)
        finally:
            shutil.rmtree(path.parent, ignore_errors=True)
        return reached

    def _faulty(self, what: str, path: Path, mode: str, nth: int) -> int:
        def crash():
            disk = Disk(mode, nth)
            disk.install()
            try:
                start(path) if what == "run" else go_on(path)
            finally:
                storage.os, storage.fcntl = os, fcntl
                if disk.calls < nth:
                    raise Unreached

        return child(crash) if mode in ("kill", "torn") else attempt(crash)

    def _killed_after(self, path: Path, delay: float) -> int:
        def crash():
            for module in POOLS:
                module.ThreadPoolExecutor = concurrent.futures.ThreadPoolExecutor
            if not os.fork():  # the killer: SIGKILL comes from outside, at no chosen instruction
                time.sleep(delay)
                os.kill(os.getppid(), signal.SIGKILL)
                os._exit(0)
            start(path, *SHAPES["random"])
            raise Unreached

        return child(crash)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"of {', '.join(MODES)}, or none; all unless given")
    parser.add_argument("--random", type=int, default=30, help="kills at random times")
    parser.add_argument("--seed", type=int, default=0, help="of the random times")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = {}
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # SIGKILL spares what the kernel holds
    with tempfile.TemporaryDirectory(prefix="tpusd-crash-", dir=memory) as folder:
        harness = Harness(Path(folder))
        for mode in (mode for mode in arguments.modes or MODES if mode != "none"):
            for what in ("run", "resume"):
                report[f"{what} {mode}"] = harness.every_point(what, mode)
        if arguments.random:
            report["random kills"] = arguments.random
            report["random kills before the end"] = harness.random_kills(arguments.random, arguments.seed)
    report["failures"] = harness.failures
    if arguments.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name}: {value if name != 'failures' else len(value)}")
        for failure in harness.failures:
            print(f"FAILED {failure}")
    return 1 if harness.failures else 0


if __name__ == "__main__":
    sys.exit(main())
