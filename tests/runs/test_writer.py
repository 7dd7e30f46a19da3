"""The writer's threads, where what they call fails or a signal comes: no error is lost, and the command ends."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.runs import INLINE, StandInPipeline, config, manifest, prepare

from tpusd.errors import IncompleteRun, UserError
from tpusd.process import signals
from tpusd.records.directory import Claim, RunDir
from tpusd.runs.executors.local import LocalExecutor
from tpusd.runs.make import make_runs
from tpusd.runs.session import RunSession
from tpusd.runs.writer import BatchWriter

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


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
    append, writing = RunDir.append_records, threading.Event()

    def slow(self, *records):
        writing.set()
        time.sleep(0.3)
        append(self, *records)

    monkeypatch.setattr(RunDir, "append_records", slow)
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


def ends(runs) -> bool:
    """Whether the command ends; in a thread, because it would wait for ever."""
    thread = threading.Thread(target=make_runs, args=(runs, executor()), daemon=True)
    thread.start()
    thread.join(20)
    return not thread.is_alive()


def test_an_image_that_is_not_what_it_should_be_fails_its_run_and_does_not_hang_the_command(tmp_path, monkeypatch):
    """A fault of the program in a thread: the main thread waits for the room of that image."""
    monkeypatch.setattr(StandInPipeline, "generate", lambda self, specs, tables, **options: [object()] * len(specs))
    run = session(tmp_path / "run", "num_images_per_prompt=20")
    assert ends([run])
    assert isinstance(run.error, AttributeError)


@pytest.mark.parametrize("pool", ["encode", "commit"])
def test_no_more_threads_fail_the_run_and_do_not_hang_the_command(tmp_path, monkeypatch, pool):
    submit = ThreadPoolExecutor.submit

    def refuses(self, function, *arguments):
        if self._thread_name_prefix.startswith(pool) and function is not int:  # int: as the writer starts its threads
            raise RuntimeError("can't start new thread")
        return submit(self, function, *arguments)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuses)
    run = session(tmp_path / "run", "num_images_per_prompt=20")
    assert ends([run])
    assert "can't start new thread" in str(run.error)


@pytest.mark.parametrize("lost", ["submit", "fail"])
def test_a_run_whose_error_is_lost_does_not_count_as_made(tmp_path, monkeypatch, lost):
    """A run of which no batch could be made ended with "0 images" and exit status 0: the machine was out of memory."""
    submit = ThreadPoolExecutor.submit

    def refuses(self, function, *arguments):
        if self._thread_name_prefix.startswith("commit") and function is not int:
            raise RuntimeError("can't allocate lock")
        return submit(self, function, *arguments)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuses)
    if lost == "fail":
        monkeypatch.setattr(BatchWriter, "_fail", lambda *_: (_ for _ in ()).throw(MemoryError))
    pipeline = StandInPipeline(fails_at=0, error=MemoryError("of the model"))
    run = RunSession(prepare(config(INLINE)), Claim(output=tmp_path / "run"), name="run")
    reported = []
    make_runs(
        [run], LocalExecutor(Unwatched(), load=lambda *_: pipeline), on_failure=lambda _, error: reported.append(error)
    )
    assert reported == [run.error] and not run.is_complete
    if lost == "submit":
        assert str(run.error) == "of the model"
    else:
        assert isinstance(run.error, IncompleteRun) and "ended without 3 of its 3 images" in str(run.error)


def test_lines_of_images_that_wait_for_the_disk_are_appended_together_and_in_order(tmp_path, monkeypatch):
    """Each append costs two calls of fsync: one at a time, they would be what a cluster waits for."""
    append, groups, all_written = RunDir.append_records, [], threading.Event()
    write, written = RunDir.write_image, []

    def slow(self, *records):
        groups.append([record.key for record in records])
        assert all_written.wait(20)
        append(self, *records)

    def noted(self, name, data):
        fields = write(self, name, data)
        written.append(name)
        if len(written) == 15:
            all_written.set()
        return fields

    monkeypatch.setattr(RunDir, "append_records", slow)
    monkeypatch.setattr(RunDir, "write_image", noted)
    run = session(tmp_path / "run", "num_images_per_prompt=5", "batch_size_per_device=15")
    assert ends([run]) and run.error is None
    keys = [(row, copy) for row in range(3) for copy in range(5)]
    assert [key for group in groups for key in group] == keys and len(groups) < 15
    assert [(line["row"], line["copy"]) for line in manifest(run.path)] == keys


def test_image_that_cannot_be_written_fails_its_run_after_those_before_it(tmp_path, monkeypatch):
    write = RunDir.write_image

    def refuses(self, name, data):
        if name == "00001-000.png":
            raise UserError("the disk refuses")
        return write(self, name, data)

    monkeypatch.setattr(RunDir, "write_image", refuses)
    run = session(tmp_path / "run", "batch_size_per_device=3")
    assert ends([run]) and str(run.error) == "the disk refuses"
    assert [line["row"] for line in manifest(run.path)] == [0]


def test_memory_of_the_writer_does_not_grow_with_the_images_that_are_written(tmp_path, monkeypatch):
    """A call for each image waited behind calls that took many images each, and there were ever more of them."""
    append, waiting = RunDir.append_records, []

    def slow(self, *records):
        time.sleep(0.005)
        append(self, *records)
        waiting.append(writers[0]._committer._work_queue.qsize())

    writers, enter = [], BatchWriter.__enter__
    monkeypatch.setattr(BatchWriter, "__enter__", lambda self: writers.append(self) or enter(self))
    monkeypatch.setattr(RunDir, "append_records", slow)
    run = session(tmp_path / "run", "num_images_per_prompt=60", "batch_size_per_device=5")
    assert ends([run]) and run.error is None and run.num_made == 180
    assert max(waiting) <= 10  # as many as may be pending
