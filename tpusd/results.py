"""`python -m tpusd.results runs/DIR`: what makes a run directory pleasant to look at and easy to load.

    index.html  .thumbs/  contact_sheet.png  metadata.jsonl

All of it follows from config.yaml, run.json, manifest.jsonl and the images, so it can be thrown away and made again. A
run writes it at its end. metadata.jsonl is what `datasets.load_dataset("imagefolder", data_dir=DIR)` reads.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from tpusd.gallery.run import write_results
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = Parser(
        prog="python -m tpusd.results",
        description="Makes the page, thumbnails, contact sheet and metadata.jsonl of a run or a sweep again.",
    )
    parser.add_argument("directory", type=Path, help="a run directory, finished or not, or a sweep's")
    with exit_status() as status:
        path = parser.parse_args(argv).directory
        from tpusd.records.sweep import is_sweep, read_sweep, run_directories
        from tpusd.storage.local import told_as_user_error

        with told_as_user_error(path, "check the directory's permissions"):
            if is_sweep(path):
                from tpusd.gallery.sweep import write_sweep_results

                for _, directory in run_directories(path):
                    write_results(directory)
                print(write_sweep_results(path, read_sweep(path)))
            else:
                print(write_results(path))
    return status[0]


if __name__ == "__main__":
    sys.exit(main())
