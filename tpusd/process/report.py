"""What a command says to the person who started it. Foreign text, such as a directory's name, steers no terminal."""

import contextlib
import sys

from tpusd.errors import printable


def say(line: object) -> None:
    """Prints one line of a command's result on stdout, with escapes for what its encoding does not have."""
    text, encoding = printable(str(line)), getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding))


def report(message: str) -> None:
    """Prints one line on stderr, `tpusd: MESSAGE`. Line breaks in `message` become spaces.

    A stderr that nobody reads any more is no reason to stop what is made.
    """
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        print(f"tpusd: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)
