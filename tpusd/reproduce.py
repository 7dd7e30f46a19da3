"""`python -m tpusd.reproduce runs/DIR`: a past run, or images of it, made again from its saved config and compared.

Exit status: 0 if every image is identical or within tolerance, 1 if one is not, 2 for what the user can mend.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from tpusd.config.choices import group_choices
from tpusd.config.meanings import flag_advice
from tpusd.config.paths import path_argument
from tpusd.errors import UserError, show
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status
from tpusd.runs.reproduce import reproduce

EXIT_DIFFERENT = 1
_UNKNOWN = "unrecognized arguments: -"  # argparse's words


class _Parser(Parser):
    """A flag such as --seed is said as a field."""

    def error(self, message: str) -> NoReturn:
        if message.startswith(_UNKNOWN):
            flag, *following = message.removeprefix(_UNKNOWN[:-1]).split(" ")
            advice = flag_advice(flag, following[0] if following else None, group_choices())
            raise UserError(f"{show(flag)}: no such option; {advice}")
        super().error(message)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = _Parser(
        prog="python -m tpusd.reproduce",
        description="Makes a past run again from its saved config, and says how each image compares.",
        epilog="Exit status: 0 all identical or within tolerance, 1 something differs, 2 it could not be tried.",
    )
    parser.add_argument(
        "directory", type=path_argument, help="a run directory, such as runs/2026-11-23_12-34-56_portraits"
    )
    parser.add_argument("--images", help="only these, such as 00003-001,00004-000")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of them, spread evenly over the run")
    parser.add_argument("--exact", action="store_true", help="within tolerance is not enough: status 1")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="fields with new values, as for tpusd.run")
    with exit_status() as status:
        given = parser.parse_intermixed_args(argv)
        names = None if given.images is None else [name.strip() for name in given.images.split(",") if name.strip()]
        same = reproduce(given.directory, given.overrides, names=names, sample=given.sample, exact=given.exact)
        status[0] = 0 if same else EXIT_DIFFERENT
    return status[0]


if __name__ == "__main__":
    sys.exit(main())
