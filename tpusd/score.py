"""`python -m tpusd.score RUN|SWEEP metric=...`: numbers for a run's images, in columns beside its manifest.

    python -m tpusd.score runs/DIR metric=attributes,colorfulness
    python -m tpusd.score runs/SWEEP import=scores.csv columns=hpsv3

Only images without a score are scored, so it can be stopped and started again. The page, metadata.jsonl and a sweep's
index.jsonl are then made again. Exit status: 0, 1 where a picture could not be scored, 2 for a wrong word or weights
that are not there.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from tpusd.config.paths import path_argument
from tpusd.gallery.sweep import write_scored_results
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status
from tpusd.process.report import say
from tpusd.process.signals import Interrupted
from tpusd.process.waiting import waiting
from tpusd.scores.base import Metric
from tpusd.scores.command import carry_out, parse_words
from tpusd.scores.registry import metrics
from tpusd.scores.sets import SET_METRICS, SetMetric
from tpusd.storage import os_errors_as_user_errors

EXIT_LEFT_OUT = 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    with exit_status() as status:
        arguments = _parser().parse_args(argv)
        path = arguments.directory
        request = parse_words(arguments.words)
        try:
            faults = carry_out(path, request)
        except Interrupted as error:
            error.advice = "; every score so far is kept; the same command continues"
            raise
        permissions = "check the directory's permissions"
        with waiting("making the page again"), os_errors_as_user_errors(path, permissions):
            page = write_scored_results(path)
        say(f"see {page}")
        if faults:
            status[0] = EXIT_LEFT_OUT
    return status[0]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m tpusd.score",
        description="Scores the images of a run or a sweep; the numbers are columns beside its manifest.",
        epilog="\n".join(_metrics()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=path_argument, help="a run directory, finished or not, or a sweep's")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="field=value",
        help="metric=NAME,NAME; clip.path=DIR, or clip.repo and clip.revision: where weights are, by the names below; "
        "column=NAME: another name for the column; "
        "import=FILE: scores in a .csv, .tsv or .jsonl file, by file_name or by row and copy; columns=A,B: of it; "
        "reference=, features=: for metrics of the whole run",
    )
    return parser


def _metrics() -> Iterator[str]:
    yield "metrics:"
    every: dict[str, Metric | SetMetric] = {**metrics(), **SET_METRICS}
    width = max(map(len, every))
    for name, metric in every.items():
        needs = metric.needs.replace("`", "")
        yield f"  {name:<{width}}  {metric.about}; {metric.range}{f'; needs {needs}' if needs else ''}"


if __name__ == "__main__":
    sys.exit(main())
