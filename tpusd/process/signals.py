"""SIGINT, SIGTERM and SIGHUP: the first signal ends the work in good order, a second Ctrl-C ends the process at once.

Knows nothing of the work that it interrupts. Python runs the handlers in the main thread, and they raise there.
A second thread watches for the second Ctrl-C, so that it works while the main thread is in compiled code.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to stop. `advice`: how the user can continue; the caller that knows it sets it."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.advice = ""

    @property
    def exit_status(self) -> int:
        return 128 + self.signum


_received: list[int] = []  # signals that the main thread received since `handled` began
_active = False
_deferred = False


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within the block the three signals raise Interrupted. In another thread, or nested, this changes nothing."""
    global _active
    if _active or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True)
    watcher.start()
    _active = True
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # nohup ignores SIGHUP, and a shell's & ignores SIGINT
                signal.signal(number, _handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _active = False
        _received.clear()
        signal.set_wakeup_fd(wakeup_before)
        os.close(writer)  # this ends the watcher
        watcher.join()
        os.close(reader)


def renew() -> None:
    """Sets the handlers again within `handled`. Call it after jax.distributed.initialize, which replaces SIGTERM's."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is _handle:
                signal.signal(number, _handle)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Delays a signal until the block ends, so that all of its steps happen. A second Ctrl-C still ends the process."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False
    check()


def check() -> None:
    """Raises Interrupted if a signal came. A library's callback, for example, may have lost the exception."""
    if _received:
        raise Interrupted(_received[0])


def _handle(signum: int, frame: object) -> None:
    _received.append(signum)
    if len(_received) == 1 and not _deferred:
        raise Interrupted(signum)


def _watch(reader: int) -> None:
    """Reads the signal numbers that Python's C handler writes, one byte each, until the pipe is closed."""
    seen: list[int] = []
    while data := os.read(reader, 64):
        for signum in data:
            if signum not in SIGNALS:
                continue
            seen.append(signum)
            if len(seen) == 1:
                print("tpusd: stopping; Ctrl-C again stops at once", file=sys.stderr, flush=True)
            elif signum == signal.SIGINT:
                os._exit(128 + signum)
