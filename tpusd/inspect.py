"""`python -m tpusd.inspect FILE|DIR|REPO`: what a checkpoint, LoRA or embedding is, and whether a run would take it.

No weights are read, and nothing is downloaded.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tpusd.errors import printable, show
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status

MAX_SHOWN = 160  # characters of a text from the file's header


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = Parser(prog="python -m tpusd.inspect", description="What a checkpoint, LoRA or embedding is.")
    parser.add_argument(
        "place", help="a .safetensors file, a directory in the layout of diffusers, or owner/name on the Hub"
    )
    parser.add_argument("--config", help="as model.config: the architecture of a single file, by name or directory")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    with exit_status() as status:
        arguments = parser.parse_args(argv)
        from tpusd.checkpoints.inspection import inspect  # brings JAX with it

        report = inspect(arguments.place, arguments.config)
        print(json.dumps(report, indent=2) if arguments.json else "\n".join(_lines(report)))
    return status[0]


def _lines(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """values: JSON values. A group has its lines below its name."""
    for name, value in values.items():
        shown = printable(show(name, MAX_SHOWN))
        if isinstance(value, Mapping) and value:
            yield f"{indent}{shown}:"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list):
            yield from (f"{indent}{shown}: {printable(str(item))}" for item in value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{indent}{shown}: {value:,}"
        elif value is not None and value != {}:
            text = str(value)
            yield f"{indent}{shown}: {printable(text if name in ('refused', 'path') else show(text, MAX_SHOWN))}"


if __name__ == "__main__":
    sys.exit(main())
