"""SIGINT, SIGTERM and SIGHUP: the first signal ends the work in good order, a second Ctrl-C ends the process at once.

Knows nothing of the work that it interrupts. Python runs the handlers in the main thread, and they raise there.
A second thread watches for the second Ctrl-C, so that it works while the main thread is in compiled code.

Where the handler runs in a `__del__`, a weakref's callback or a callback of the garbage collector (JAX has one), Python
prints the exception with its traceback and drops it. Then the second thread sends the signal again.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tpusd.process.report import report

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DROPPED = 0  # what the second thread reads, in place of a signal's number, where Python dropped the exception
AGAIN_AFTER = 0.01  # seconds, by which the finalizer has ended in which the exception was dropped


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
_dropped = False  # whether Python dropped the exception, and none was raised since


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within the block the three signals raise Interrupted. In another thread, or nested, this changes nothing."""
    global _active, _deferred, _dropped
    if _active or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watcher = threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True)
    with contextlib.suppress(RuntimeError):  # no more threads: a second Ctrl-C then ends nothing at once
        watcher.start()
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    hook_before = sys.unraisablehook
    sys.unraisablehook = _drop_silently(writer, hook_before)
    _active = True
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # nohup ignores SIGHUP, and a shell's & ignores SIGINT
                signal.signal(number, _handle)
        yield
    finally:
        _deferred, _dropped = True, False  # a signal that comes now finds the work done, and must not split these steps
        signal.set_wakeup_fd(wakeup_before)
        os.close(writer)  # this ends the watcher
        if watcher.ident is not None:
            watcher.join()
        os.close(reader)
        sys.unraisablehook = hook_before
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _received.clear()
        _active = _deferred = False


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
    global _dropped
    if _received:
        _dropped = False
        raise Interrupted(_received[0])


def _handle(signum: int, frame: object) -> None:
    global _dropped
    raises = (not _received or _dropped) and not _deferred
    _received.append(signum)
    if raises:
        _dropped = False
        raise Interrupted(_received[0])


def _drop_silently(
    writer: int, before: Callable[["sys.UnraisableHookArgs"], object]
) -> Callable[["sys.UnraisableHookArgs"], object]:
    """What Python calls with an exception that it cannot raise.

    writer: the pipe of the second thread.
    before: what it called before, and calls for all other exceptions.
    """

    def hook(dropped: "sys.UnraisableHookArgs") -> object:
        global _dropped
        if not isinstance(dropped.exc_value, Interrupted):
            return before(dropped)
        _dropped = True
        with contextlib.suppress(BlockingIOError):
            os.write(writer, bytes([DROPPED]))
        return None

    return hook


def _watch(reader: int) -> None:
    """Reads the signal numbers that Python's C handler writes, one byte each, until the pipe is closed."""
    seen: list[int] = []
    repeated = 0  # bytes to come of signals that this thread sent
    main = threading.main_thread().ident
    assert main is not None
    while data := os.read(reader, 64):
        for signum in data:
            if signum == DROPPED and seen:
                time.sleep(AGAIN_AFTER)
                repeated += 1
                signal.pthread_kill(main, seen[0])  # unlike _thread.interrupt_main, it also ends a wait
                continue
            if signum not in SIGNALS:
                continue
            if repeated and signum == seen[0]:
                repeated -= 1
                continue
            seen.append(signum)
            if len(seen) == 1:
                report("stopping; Ctrl-C again stops at once")
            elif signum == signal.SIGINT:
                os._exit(128 + signum)
