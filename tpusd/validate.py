"""`python -m tpusd.validate runs/DIR ...`: whether run directories, or all of a sweep's, are whole, without a model.

A line on stdout for each fault. Exit status: 0 no fault, 1 faults, 2 where a directory is not a run directory.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tpusd import storage
from tpusd.config.paths import path_argument
from tpusd.errors import show_path
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status
from tpusd.process.report import say
from tpusd.process.waiting import waiting
from tpusd.records.sweep import is_sweep, read_sweep
from tpusd.records.validate import faults
from tpusd.scores.limits import limit_faults

EXIT_FAULTS = 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = Parser(
        prog="python -m tpusd.validate",
        description="Checks run directories without a model: every line, file, hash and size, and the plan complete.",
        epilog="Exit status: 0 no fault, 1 faults, a line each, 2 not a run directory.",
    )
    parser.add_argument(
        "directories", nargs="+", type=path_argument, metavar="directory", help="run directories, or sweeps'"
    )
    parser.add_argument("--sizes", action="store_true", help="look at the sizes of the images, and read none of them")
    with exit_status() as status:
        arguments = parser.parse_args(argv)
        for path in _run_directories(arguments.directories):
            found = _faults(path, only_sizes=arguments.sizes)
            with waiting(f"checking {show_path(path)}"):
                first = next(found, None)
            number = 0
            for fault in [] if first is None else itertools.chain([first], found):
                say(f"{path}: {fault}")
                number += 1
            if number:
                status[0] = EXIT_FAULTS
            else:
                say(f"{path}: whole")
    return status[0]


def _faults(path: Path, *, only_sizes: bool) -> Iterator[str]:
    if is_sweep(path.parent) and not storage.exists(path):
        yield "was never made"
        return
    yield from faults(path, only_sizes=only_sizes)
    yield from limit_faults(path)


def _run_directories(directories: Sequence[Path]) -> Iterator[Path]:
    """Run directories as they are, and of a sweep all that it should hold."""
    for path in directories:
        yield from (path / run.name for run in read_sweep(path).runs) if is_sweep(path) else (path,)


if __name__ == "__main__":
    sys.exit(main())
