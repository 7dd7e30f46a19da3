"""`python -m tpusd.results runs/DIR`: makes the page, the thumbnails, the contact sheet and metadata.jsonl again.

    index.html  .thumbs/  contact_sheet.png  metadata.jsonl

All of them follow from config.yaml, run.json, manifest.jsonl and the images, so they can be deleted. A run writes them
at its end. `datasets.load_dataset("imagefolder", data_dir=DIR)` reads metadata.jsonl.

    python -m tpusd.results SWEEP --grid-columns=seed --grid-rows=prompt --grid-prompts=0,3-5 --grid-at sampler=ddim

makes the sweep's grid.png alone, with these axes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tpusd.config.paths import path_argument
from tpusd.errors import UserError, show, show_path
from tpusd.gallery.sweep import write_all_results, write_sweep_grid
from tpusd.gallery.sweep_grid import GridChoice, parse_prompts
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status
from tpusd.process.report import say
from tpusd.process.waiting import waiting
from tpusd.records.layout import GRID
from tpusd.records.sweep import is_sweep, read_sweep
from tpusd.storage import os_errors_as_user_errors


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    with exit_status() as status:
        arguments = _parser().parse_args(argv)
        path = arguments.directory
        choice = _grid_choice(arguments)
        permissions = "check the directory's permissions"
        with waiting(f"making the results of {show_path(path)}"), os_errors_as_user_errors(path, permissions):
            made = write_all_results(path) if choice is None else _write_grid(path, choice, arguments.grid_file)
        say(made)
    return status[0]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m tpusd.results",
        description="Makes the page, thumbnails, contact sheet and metadata.jsonl of a run or a sweep again.",
    )
    parser.add_argument("directory", type=path_argument, help="a run directory, finished or not, or a sweep's")
    grid = parser.add_argument_group(
        "grid.png", "With one of these options, only the grid of a sweep is made, and another results or resume= makes "
        "the usual one again."
    )  # fmt: skip
    axis = "a swept field, prompt or copy"
    grid.add_argument("--grid-columns", metavar="FIELD", help=axis)
    grid.add_argument("--grid-rows", metavar="FIELD", help=axis)
    grid.add_argument("--grid-prompts", metavar="ROWS", help="rows of the prompt set, such as 0,3,5-7")
    grid.add_argument(
        "--grid-at", metavar="FIELD=VALUE", action="append", default=[], help="the value of a field on no axis"
    )
    grid.add_argument(
        "--grid-file", metavar="FILE", type=path_argument, help="where the grid goes; default: the sweep's grid.png"
    )
    return parser


def _grid_choice(arguments: argparse.Namespace) -> GridChoice | None:
    """None where no option asks for a grid. Raises UserError."""
    columns, rows, prompts = arguments.grid_columns, arguments.grid_rows, arguments.grid_prompts
    if not arguments.grid_at and all(one is None for one in (columns, rows, prompts, arguments.grid_file)):
        return None
    pairs = [word.partition("=") for word in arguments.grid_at]
    for word, (_, sign, _) in zip(arguments.grid_at, pairs, strict=True):
        if not sign:
            raise UserError(f"--grid-at={show(word)}: must be FIELD=VALUE, such as seed=1")
    return GridChoice(
        columns=columns,
        rows=rows,
        prompts=None if prompts is None else parse_prompts(prompts),
        at={name: value for name, _, value in pairs},
    )


def _write_grid(path: Path, choice: GridChoice, file: Path | None) -> Path:
    if not is_sweep(path):
        raise UserError(f"{show_path(path)}: is not a sweep, and only a sweep has a grid.png; name a sweep's directory")
    file = path / GRID if file is None else file
    write_sweep_grid(path, read_sweep(path), choice, file)
    return file


if __name__ == "__main__":
    sys.exit(main())
