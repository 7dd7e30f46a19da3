"""The console script: `tpusd run ...` equals `python -m tpusd.run ...`. A subcommand is one row of a table."""

import importlib
import os
import re
import sys
from collections.abc import Sequence

from tpusd import __version__
from tpusd.errors import UserError, show, suggest
from tpusd.process.exit import exit_status

# Name -> (module with main(argv) -> exit status, what it does). A module is imported only when its command is called.
COMMANDS = {
    "run": ("tpusd.run", "makes images from a config, in a run directory that explains itself"),
    "preflight": ("tpusd.preflight", "compiles a run for a TPU slice that is not there: memory, time, compilations"),
    "reproduce": ("tpusd.reproduce", "makes a past run again and compares each image"),
    "validate": ("tpusd.validate", "checks that a run directory is whole: every line, file, hash and size"),
    "results": ("tpusd.results", "makes a run's page, contact sheet and metadata.jsonl again"),
    "export": ("tpusd.export", "writes a run or a sweep as WebDataset shards or in GenEval's layout"),
    "recipe": ("tpusd.recipe", "shows a picture's recipe and the command that makes it again"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """argv: without the program's name; sys.argv if None. Returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with exit_status() as status:
        if not argv or argv[0] in ("-h", "--help"):
            print(_help())
        elif argv[0] == "--version":
            print(f"tpusd {__version__}")
        elif argv[0] in ("-sc", "--shell-completion"):
            status[0] = _complete(argv)
        elif argv[0] in COMMANDS:
            status[0] = importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
        else:
            hint = (
                "; fields come after run: tpusd run " + show(argv[0]) if "=" in argv[0] else suggest(argv[0], COMMANDS)
            )
            raise UserError(f"{show(argv[0])}: no such command{hint}; the commands: {' '.join(COMMANDS)}")
    return status[0]


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        f"tpusd {__version__}: reproducible Stable Diffusion images with JAX\n\n{rows}\n\n"
        'tpusd COMMAND --help says more. Tab completion for bash: eval "$(tpusd -sc install=bash)"'
    )


def _complete(argv: list[str]) -> int:
    """Tab completion. Hydra's own calls the program with the line so far in COMP_LINE; it knows no subcommands."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if len(words) == 2:
        print(" ".join(name for name in COMMANDS if name.startswith(words[1])))
        return 0
    if len(words) > 2:
        if words[1] != "run":  # only `run` completes the fields of a config
            return 0
        os.environ["COMP_LINE"] = re.sub(r"^(\S+) +run", r"\1", os.environ["COMP_LINE"])
    from tpusd.run import main as run_main

    return run_main(argv)


if __name__ == "__main__":
    sys.exit(main())
