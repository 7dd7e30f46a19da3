import io
import threading
import time

import pytest

from tpusd.process.progress import Progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_rate_leaves_out_what_comes_before_the_first_step():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(10, stream=stream, clock=clock)
    progress.start_batch(4)
    clock.now += 1000  # compiling
    progress.step(1, 8)
    clock.now += 7
    progress.step(8, 8)
    progress.end_batch()  # 3.5 images in 7 s after the first step
    assert progress.text() == "4/10 images, 0.50 images/s, 0:12 left"


def test_moves_within_a_batch():
    clock = Clock()
    progress = Progress(4, stream=io.StringIO(), clock=clock)
    progress.start_batch(4)
    progress.step(1, 50)
    clock.now += 10
    progress.step(26, 50)  # two images' worth of steps in 10 s
    assert progress.text() == "0/4 images, step 26/50, 0.20 images/s, 0:10 left"


def test_images_that_exist_are_counted_as_done_and_not_as_speed():
    clock = Clock()
    progress = Progress(9, 5, stream=io.StringIO(), clock=clock)
    progress.start_batch(2)
    progress.step(1, 2)
    clock.now += 1
    progress.end_batch()
    assert progress.text() == "7/9 images, 1.00 images/s, 0:02 left"


def test_plain_lines_come_at_intervals():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(2, stream=stream, clock=clock)
    progress.start_batch(2)
    for step in range(1, 61):
        clock.now += 1
        progress.step(step, 60)
    assert stream.getvalue().count("\n") == 4
    assert stream.getvalue().splitlines()[1] == "tpusd: 0/2 images, step 30/60, 30.0 s/image, 0:30 left"


def test_terminal_gets_a_bar_that_is_cleared_at_the_end():
    clock, stream = Clock(), Terminal()
    progress = Progress(2, stream=stream, clock=clock)
    progress.start_batch(2)
    clock.now += 1
    progress.step(1, 2)
    progress.close()
    assert "0/2 images, step 1/2" in stream.getvalue() and "50%" in stream.getvalue()
    assert stream.getvalue().endswith("\r")


def test_a_log_says_what_happens_before_the_first_step_and_how_long_it_took():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(2, stream=stream, clock=clock)
    progress.start_batch(2)
    progress.prepare("compiling, once")
    assert stream.getvalue() == "tpusd: 0/2 images, compiling, once: 0:00\n"
    clock.now += 90
    progress.step(1, 2)
    assert stream.getvalue().splitlines()[1] == "tpusd: compiling, once: done in 90.0 s"
    progress.close()


@pytest.mark.slow
def test_a_terminal_shows_the_time_while_nothing_moves():
    """The clock of the display runs in a thread of its own: the main thread is in the compiler."""
    stream = Terminal()
    progress = Progress(2, stream=stream)
    progress.start_batch(2)
    progress.prepare("compiling, once")
    time.sleep(2.5)
    progress.step(1, 2)
    shown = stream.getvalue()
    assert "compiling, once: 0:00" in shown and "compiling, once: 0:02" in shown
    length = len(stream.getvalue())
    time.sleep(1.2)
    assert len(stream.getvalue()) == length  # the thread has ended
    progress.close()


@pytest.mark.slow
def test_a_stream_that_nobody_reads_does_not_stop_the_clock_with_a_traceback(capsys):
    class Closed(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            if threading.current_thread() is not threading.main_thread():
                raise BrokenPipeError
            return super().write(text)

    progress = Progress(1, stream=Closed())
    progress.prepare("compiling")
    time.sleep(1.3)
    progress.close()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("columns", [80, 200])
def test_the_bar_has_the_width_of_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    clock, stream = Clock(), Terminal()
    progress = Progress(4, stream=stream, clock=clock)
    progress.start_batch(4)
    clock.now += 1
    progress.step(1, 4)
    assert len(stream.getvalue().rpartition("\r")[2].rstrip("\n")) in range(columns - 2, columns + 1)
    progress.close()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stream_that_nobody_reads_does_not_stop_the_work(terminal):
    class Gone(io.StringIO):
        def isatty(self):
            return terminal

        def write(self, text):
            raise BrokenPipeError

    clock = Clock()
    progress = Progress(2, stream=Gone(), clock=clock)
    progress.prepare("compiling")
    progress.start_batch(2)
    clock.now += 100
    progress.step(1, 2)
    progress.end_batch()
    progress.close()
    assert progress.text().startswith("2/2 images")
