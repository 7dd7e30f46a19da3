"""The writer's threads, where what they call fails or a signal comes: no error is lost, and the command ends."""

import signal
import threading
import time

import pytest
from support.runs import INLINE, StandInPipeline, config, manifest, prepare

from tpusd.process import signals
from tpusd.records.directory import Claim, RunDir
from tpusd.runs.executors.local import LocalExecutor
from tpusd.runs.make import make_runs
from tpusd.runs.session import RunSession

pytestmark = pytest.mark.usefixtures("one_device")


class Unwatched:
    def start_batch(self, num_images): ...

    def prepare(self, what): ...
    def step(self, done, total): ...
    def end_batch(self): ...


def session(path, *overrides):
    return RunSession(prepare(config(INLINE, *overrides)), Claim(output=path), name=path.name)


def executor():
    return LocalExecutor(Unwatched(), load=lambda *_: StandInPipeline())


def test_failures_that_cannot_be_shown_do_not_hang_the_command(tmp_path):
    """As when the reader of stderr is gone. Each failure would keep the room of a batch, and the next would wait."""
    runs = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("in use")
        runs.append(session(tmp_path / name))

    def broken(run, error):
        raise BrokenPipeError

    thread = threading.Thread(target=make_runs, args=(runs, executor()), kwargs={"on_failure": broken}, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert all("exists and is not empty" in str(run.error) for run in runs)


def test_signal_while_the_last_images_are_written_waits_for_them(tmp_path, monkeypatch):
    """The directory is closed when no thread writes into it any more."""
    append, writing = RunDir.append_record, threading.Event()

    def slow(self, record):
        writing.set()
        time.sleep(0.3)
        append(self, record)

    monkeypatch.setattr(RunDir, "append_record", slow)
    run = session(tmp_path / "run", "batch_size_per_device=3")  # one batch: the main thread waits for the writer alone
    leave, lines_when_left = run.leave, []

    def watched(error=None):
        lines_when_left.append(len(manifest(run.path)))
        leave(error)

    monkeypatch.setattr(run, "leave", watched)

    def interrupt():
        assert writing.wait(20)
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    with pytest.raises(signals.Interrupted), signals.handled():
        threading.Thread(target=interrupt, daemon=True).start()
        make_runs([run], executor())
    assert lines_when_left == [3] and run.error is None
