import io

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
