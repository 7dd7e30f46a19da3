"""The console script: `tpusd run ...` equals `python -m tpusd.run ...`. A subcommand is one row of a table."""

import importlib
import os
import shlex
import sys
from collections.abc import Sequence

from tpusd import __version__
from tpusd.errors import UserError, show, suggest
from tpusd.process.exit import exit_status

# Name -> (module with main(argv) -> exit status, what it does). A module is imported only when its command is called.
COMMANDS = {
    "run": ("tpusd.run", "makes images from a config, in a run directory that explains itself"),
    "preflight": ("tpusd.preflight", "compiles a run for a TPU slice that is not there: memory, time, compilations"),
    "verify": ("tpusd.verify", "makes a run's images by PyTorch diffusers too, and says where they differ"),
    "reproduce": ("tpusd.reproduce", "makes a past run again and compares each image"),
    "validate": ("tpusd.validate", "checks that a run directory is whole: every line, file, hash and size"),
    "results": ("tpusd.results", "makes a run's page, contact sheet and metadata.jsonl again"),
    "score": ("tpusd.score", "scores a run's images: columns of numbers beside its manifest"),
    "export": ("tpusd.export", "writes a run or a sweep as WebDataset shards or in GenEval's layout"),
    "merge": ("tpusd.merge", "joins the run directories that shards made on separate disks"),
    "status": ("tpusd.status", "says how far a run, a sweep or its shards are, at work or not"),
    "inspect": ("tpusd.inspect", "says what a checkpoint, LoRA or embedding is, and whether a run would take it"),
    "recipe": ("tpusd.recipe", "shows a picture's recipe and the command that makes it again"),
}
WITH_FIELDS = ("run", "preflight", "verify", "reproduce")  # commands that take field=value


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
            raise UserError(f"{show(argv[0])}: no such command{_advice(argv[0])}; the commands: {' '.join(COMMANDS)}")
    return status[0]


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        f"tpusd {__version__}: reproducible Stable Diffusion images with JAX\n\n{rows}\n\n"
        'tpusd COMMAND --help says more. Tab completion for bash: eval "$(tpusd -sc install=bash)"'
    )


def _advice(word: str) -> str:
    if "=" in word or " " in word:
        return f"; fields come after run: tpusd run {show(shlex.quote(word))}"
    if os.path.exists(word):
        return f"; a command comes first, as in tpusd validate {show(shlex.quote(word))}"
    return suggest(word, COMMANDS)


def _complete(argv: Sequence[str]) -> int:
    """Tab completion. The shell's function, which Hydra writes, calls the program with the line in COMP_LINE."""
    kind, _, shell = argv[1].partition("=") if len(argv) > 1 else ("", "", "")
    if kind != "query":
        from tpusd.run import main as run_main

        return run_main(argv)
    _, *words = os.environ.get("COMP_LINE", "").split(" ")
    if len(words) < 2:
        found = [name for name in COMMANDS if name.startswith("".join(words))]
    elif words[0] in WITH_FIELDS:
        from tpusd.config.completion import candidates

        found = candidates(words[1:-1], words[-1])
    else:
        found = []  # the shell then completes names of files
    print(("\n" if shell == "fish" else " ").join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
