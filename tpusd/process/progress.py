"""How far a run is: a bar on a terminal and in a notebook, elsewhere a line at intervals.

Knows nothing of what the run makes. A stream that nobody reads any more is no reason to stop the run: then nothing more
is shown.
"""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from tqdm import tqdm

from tpusd.process.notebook import NotebookBar, in_notebook

PLAIN_INTERVAL = 15.0  # seconds between lines if the stream is not a terminal
BAR_INTERVAL = 0.1  # seconds between updates of the bar
PREPARING_INTERVAL = 1.0  # seconds between looks at the clock before the first step
NOTEBOOK_INTERVAL = 0.5  # seconds between updates of a notebook's bar, which are messages to a browser


class Progress:
    """Images done, images/s, time left. It moves within a batch: each step counts as its share of the batch's images.

    The rate leaves out the time before the first step (compiling), because that happens once.
    """

    def __init__(
        self, total: int, done: int = 0, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ):
        """
        Args:
            total: images of the whole run.
            done: images that existed before; they count as done and not towards the rate.
            stream: where the progress is shown; stderr if None.
            clock: seconds; a test gives its own.
        """
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._total, self._finished = total, done
        self._batch, self._step, self._num_steps = 0, 0, 0
        self._anchor: tuple[float, float] | None = None  # (seconds, images) at the first step
        self._preparing: tuple[str, float] | None = None  # (what happens, since when)
        self._note = ""
        self._done_preparing = threading.Event()
        self._lock = threading.Lock()  # of the stream, which the thread of `prepare` writes too
        self._shown = clock()
        self._is_read = True  # the stream
        self._bar = None
        self._notebook = NotebookBar() if stream is None and in_notebook() else None
        if self._notebook is not None:
            self._show(force=True)
        elif self._stream.isatty():
            with self._showing():
                self._bar = tqdm(
                    total=total,
                    initial=done,
                    file=self._stream,
                    leave=False,
                    mininterval=0,
                    ncols=80,  # _show sets it each time; tqdm shows nothing if a terminal reports 0
                    nrows=20,
                    bar_format="{percentage:3.0f}%|{bar}| {desc}",
                )
            self._show(force=True)

    def prepare(self, what: str) -> None:
        """Says what happens before the first step, with the time that it has taken so far, until that step."""
        self._end_preparing()
        self._preparing, self._done_preparing = (what, self._clock()), threading.Event()
        self._show(force=True)
        thread = threading.Thread(target=self._tick, args=(self._done_preparing,), name="progress", daemon=True)
        thread.start()

    def note(self, text: str) -> None:
        """Words behind the number of images, such as `3 workers`."""
        self._note = text

    def start_batch(self, num_images: int) -> None:
        self._end_preparing()
        self._batch, self._step, self._num_steps = num_images, 0, 0
        self._show()

    def step(self, done: int, total: int) -> None:
        """`done` of the batch's `total` steps are finished."""
        self._end_preparing()
        self._step, self._num_steps = done, total
        if self._anchor is None:
            self._anchor = (self._clock(), self._position())
        self._show()

    def end_batch(self) -> None:
        self._end_preparing()
        self._finished += self._batch
        self._batch, self._step, self._num_steps = 0, 0, 0
        if self._anchor is None:
            self._anchor = (self._clock(), self._position())
        self._show()

    def close(self) -> None:
        self._end_preparing()
        if self._bar is not None:
            with self._showing():
                self._bar.close()
        if self._notebook is not None:
            self._show(force=True)

    def text(self) -> str:
        """The progress in words: `4/10 images, step 3/50, 0.50 images/s, 0:12 left`."""
        parts = [f"{self._finished}/{self._total} images", *([self._note] if self._note else [])]
        if self._preparing is not None:
            what, since = self._preparing
            parts.append(f"{what}: {duration(self._clock() - since)}")
        if self._num_steps:
            parts.append(f"step {self._step}/{self._num_steps}")
        rate = self._rate()
        if rate > 0:
            left = (self._total - self._position()) / rate
            parts += [f"{rate:.2f} images/s" if rate >= 0.1 else f"{1 / rate:.1f} s/image", f"{duration(left)} left"]
        return ", ".join(parts)

    def _end_preparing(self) -> None:
        if self._preparing is None:
            return
        with self._lock:
            (what, since), self._preparing = self._preparing, None
            self._done_preparing.set()
        seconds = self._clock() - since
        if self._bar is None and self._notebook is None and seconds >= 1:
            self._line(f"{what}: done in {seconds:.1f} s")

    def _tick(self, done: threading.Event) -> None:
        while not done.wait(PREPARING_INTERVAL):
            with self._lock:
                if done.is_set():
                    return
                self._show()

    def _line(self, text: str) -> None:
        with self._showing():
            print(f"tpusd: {text}", file=self._stream, flush=True)

    @contextlib.contextmanager
    def _showing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # ValueError: the stream is closed
            self._is_read = False

    def _position(self) -> float:
        return self._finished + (self._batch * self._step / self._num_steps if self._num_steps else 0)

    def _rate(self) -> float:
        if self._anchor is None:
            return 0.0
        seconds, images = self._clock() - self._anchor[0], self._position() - self._anchor[1]
        return images / seconds if seconds > 0 else 0.0

    def _show(self, force: bool = False) -> None:
        interval = PLAIN_INTERVAL
        if self._bar is not None:
            interval = BAR_INTERVAL
        elif self._notebook is not None:
            interval = NOTEBOOK_INTERVAL
        if not self._is_read or not force and self._clock() - self._shown < interval:
            return
        self._shown = self._clock()
        if self._notebook is not None:
            self._notebook.show(self._position(), self._total, self.text())
        elif self._bar is None:
            self._line(self.text())
        else:
            self._bar.ncols = shutil.get_terminal_size().columns  # 80 if the terminal reports 0
            self._bar.n = self._position()
            self._bar.set_description_str(self.text(), refresh=False)
            with self._showing():
                self._bar.refresh(nolock=True)  # its own lock would stay locked after an error, and `close` would wait


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
