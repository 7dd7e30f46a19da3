"""What a command says to the person who started it, on stderr."""

import contextlib
import sys


def report(message: str) -> None:
    """Prints one line, `tpusd: MESSAGE`. Line breaks in `message` become spaces.

    A stderr that nobody reads any more is no reason to stop what is made.
    """
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        print(f"tpusd: {' '.join(message.split())}", file=sys.stderr, flush=True)
