"""The exit status of a command. A UserError becomes one line on stderr and status 2; an IncompleteRun, status 1.

A signal that stops the command gives 128 plus its number, as in a shell. A reader of stdout that stops reading, as in
`... --help | head`, gives the status of SIGPIPE.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from tpusd.errors import IncompleteRun, UserError
from tpusd.process import signals
from tpusd.process.report import report

EXIT_INCOMPLETE = 1
EXIT_USER_ERROR = 2
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


@contextlib.contextmanager
def exit_status() -> Iterator[list[int]]:
    """Yields [0]. The block may change the item; after the block the item is the command's exit status."""
    status = [0]
    try:
        with signals.handled():
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
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, signals.Interrupted) else signals.Interrupted(signals.SIGNALS[0])
        report(f"interrupted ({stopped}){stopped.advice}")
        status[0] = stopped.exit_status


def _reader_gone() -> bool:
    """True if no process reads stdout. Then the rest of the output is dropped, also at the interpreter's end."""
    try:
        print(flush=True)  # writes a byte: stdout does not always keep what failed before
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
