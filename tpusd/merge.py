"""`python -m tpusd.merge OUT DIR ...`: joins the run directories that shards made on separate disks, or their sweeps'.

OUT ends as the directory that one process would have made: images byte for byte, and the manifest in the order of the
plan. The others stay as they are. The same command again continues a merge that was stopped. Exit status: 0 the run is
complete, 1 images are missing, 2 a directory is not of this run.
"""

import sys
from collections.abc import Sequence

from tpusd.config.paths import path_argument
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status

EXIT_MISSING = 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = Parser(
        prog="python -m tpusd.merge",
        description="Joins the run directories that shards made on separate disks, or their sweeps'.",
        epilog="Exit status: 0 the run is complete, 1 images are missing, 2 a directory is not of this run.",
    )
    parser.add_argument("out", type=path_argument, metavar="OUT", help="a new directory, or one of the same run")
    parser.add_argument("directories", nargs="+", type=path_argument, metavar="DIR", help="what the shards made")
    with exit_status() as status:
        arguments = parser.parse_args(argv)
        from tpusd.runs.merge import merge

        if merge(arguments.out, arguments.directories):
            status[0] = EXIT_MISSING
    return status[0]


if __name__ == "__main__":
    sys.exit(main())
