"""The exit status of a command. A UserError becomes one line on stderr and status 2; an IncompleteRun, status 1.

A signal that stops the command gives 128 plus its number, as in a shell. A reader of stdout that stops reading, as in
`... --help | head`, gives the status of SIGPIPE.
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator

from tpusd.errors import IncompleteRun, UserError, show_path
from tpusd.process import signals
from tpusd.process.collector import fewer_collections
from tpusd.process.report import report

EXIT_INCOMPLETE = 1
EXIT_USER_ERROR = 2
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE
NO_THREAD = "can't start new thread"  # the text of Python's RuntimeError, which has no type of its own


@contextlib.contextmanager
def exit_status() -> Iterator[list[int]]:
    """Yields [0]. The block may change the item; after the block the item is the command's exit status."""
    status = [0]
    _make_streams_usable()
    try:
        with signals.handled(), fewer_collections():
            try:
                yield status
            finally:
                print(end="", flush=True)  # raises BrokenPipeError here, even if stdout was closed before the start
    except BrokenPipeError:
        if not _reader_gone():
            raise
        status[0] = EXIT_BROKEN_PIPE
    except UserError as error:
        report(str(error))
        status[0] = EXIT_INCOMPLETE if isinstance(error, IncompleteRun) else EXIT_USER_ERROR
    except OSError as error:
        _drop_unwritable_stdout()
        report(_os_error(error))
        status[0] = EXIT_USER_ERROR
    except MemoryError:
        report("out of memory on this machine (not on its devices); close other programs, or make a smaller run")
        status[0] = EXIT_USER_ERROR
    except RuntimeError as error:
        if str(error) != NO_THREAD:
            raise
        report("this machine starts no more threads for this user; end other programs, or raise the limit (ulimit -u)")
        status[0] = EXIT_USER_ERROR
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, signals.Interrupted) else signals.Interrupted(signals.SIGNALS[0])
        report(f"interrupted ({stopped}){stopped.advice}")
        status[0] = stopped.exit_status


def _make_streams_usable() -> None:
    """Standard streams that were closed before the start lead nowhere, and a letter that stdout lacks is an escape.

    Else a file of a run could get the number of such a stream, and what a library prints would land in it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # by number, so that each gets its own
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _os_error(error: OSError) -> str:
    """What the machine refused, in one line."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{show_path(str(error.filename))}: {reason}"
    try:
        os.getcwd()
    except OSError:
        return "the working directory does not exist any more; change to another one"
    return f"{reason}; see whether a disk is full, and whether stdout and stderr can be written"


def _reader_gone() -> bool:
    """True if no process reads stdout. Then the rest of the output is dropped, also at the interpreter's end."""
    try:
        print(flush=True)  # writes a byte: stdout does not always keep what failed before
    except BrokenPipeError:
        _drop_stdout()
        return True
    return False


def _drop_unwritable_stdout() -> None:
    """So that the interpreter does not fail again at its end, when it writes what is left."""
    try:
        print(end="", flush=True)
    except OSError:
        _drop_stdout()


def _drop_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
