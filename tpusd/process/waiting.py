"""A word about work that takes long before there is any progress to show, such as loading JAX."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from tpusd.process.progress import duration

PATIENCE = 0.5  # seconds that need no word on a terminal
PLAIN_PATIENCE = 10.0  # elsewhere
INTERVAL = 1.0  # seconds between updates


@contextlib.contextmanager
def waiting(what: str, *, stream: TextIO | None = None) -> Iterator[None]:
    """Says what the block does, with the time so far, if it takes long. A terminal's line is erased at the end.

    what: such as `loading JAX`.
    stream: where it is said; stderr if None.
    """
    stream = stream or sys.stderr
    if stream is None:  # the command was started without one
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_say, args=(what, stream, done), name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _say(what: str, stream: TextIO, done: threading.Event) -> None:
    began = time.monotonic()
    with contextlib.suppress(OSError, ValueError):  # nobody reads the stream any more
        terminal = stream.isatty()
        if done.wait(PATIENCE if terminal else PLAIN_PATIENCE):
            return
        if not terminal:
            print(f"tpusd: {what}", file=stream, flush=True)
            return
        line = ""
        while True:
            line = f"tpusd: {what}: {duration(time.monotonic() - began)}"
            print(f"\r{line}", end="", file=stream, flush=True)
            if done.wait(INTERVAL):
                break
        print(f"\r{' ' * len(line)}\r", end="", file=stream, flush=True)
