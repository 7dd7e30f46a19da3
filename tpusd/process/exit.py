"""What every command wraps its work in: what the user can mend is one line on stderr and exit status 2.

A signal that asks to stop gives the conventional status, 128 and its number. So does a reader of stdout that has gone,
as in `... --help | head`: that of SIGPIPE.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from tpusd.errors import UserError
from tpusd.process import signals

EXIT_USER_ERROR = 2
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


@contextlib.contextmanager
def exit_status() -> Iterator[list[int]]:
    """Yields [0], whose only item is the exit status after the block."""
    status = [0]
    try:
        with signals.handled():
            try:
                yield status
            finally:
                print(end="", flush=True)  # which knows a stdout that was closed before us
    except BrokenPipeError:
        if not _reader_gone():
            raise
        status[0] = EXIT_BROKEN_PIPE
    except UserError as error:
        _tell(str(error))
        status[0] = EXIT_USER_ERROR
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, signals.Interrupted) else signals.Interrupted(signals.SIGNALS[0])
        _tell(f"interrupted ({stopped}){stopped.advice}")
        status[0] = stopped.exit_status


def refuse_arguments(message: str) -> NoReturn:
    """argparse's `error`, as a line of ours."""
    raise UserError(f"{message}; --help says more")


def _reader_gone() -> bool:
    """Whether nobody reads stdout any more. What is left to be written, now or at the interpreter's end, is dropped."""
    try:
        print(flush=True)  # something to write: what failed before is not always kept
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _tell(line: str) -> None:
    print(f"tpusd: {' '.join(line.split())}", file=sys.stderr)
