"""`python -m tpusd.results runs/DIR`: makes the page, the thumbnails, the contact sheet and metadata.jsonl again.

    index.html  .thumbs/  contact_sheet.png  metadata.jsonl

All of them follow from config.yaml, run.json, manifest.jsonl and the images, so they can be deleted. A run writes them
at its end. `datasets.load_dataset("imagefolder", data_dir=DIR)` reads metadata.jsonl.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from tpusd.gallery.run import write_results
from tpusd.gallery.sweep import write_sweep_results
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status
from tpusd.records.sweep import is_sweep, read_sweep, run_directories
from tpusd.storage import os_errors_as_user_errors


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = Parser(
        prog="python -m tpusd.results",
        description="Makes the page, thumbnails, contact sheet and metadata.jsonl of a run or a sweep again.",
    )
    parser.add_argument("directory", type=Path, help="a run directory, finished or not, or a sweep's")
    with exit_status() as status:
        path = parser.parse_args(argv).directory
        with os_errors_as_user_errors(path, "check the directory's permissions"):
            if is_sweep(path):
                for _, directory in run_directories(path):
                    write_results(directory)
                print(write_sweep_results(path, read_sweep(path)))
            else:
                print(write_results(path))
    return status[0]


if __name__ == "__main__":
    sys.exit(main())
