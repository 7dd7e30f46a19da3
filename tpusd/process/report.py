"""What a command says to the person who started it, on stderr."""

import sys


def report(message: str) -> None:
    """Prints one line, `tpusd: MESSAGE`. Line breaks in `message` become spaces."""
    print(f"tpusd: {' '.join(message.split())}", file=sys.stderr, flush=True)
