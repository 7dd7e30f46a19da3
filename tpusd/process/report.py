"""What a command tells its user beside its results: one line at a time on stderr."""

import sys


def report(line: str) -> None:
    """Prints `tpusd: line`. Line breaks in it become spaces."""
    print(f"tpusd: {' '.join(line.split())}", file=sys.stderr, flush=True)
