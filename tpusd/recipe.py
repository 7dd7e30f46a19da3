"""`python -m tpusd.recipe image.png`: a picture's recipe, and the command that makes it again.

For tpusd's own pictures the command is exact. For those of A1111, of programs that write as it does, and of ComfyUI's
text-to-image graph, a line for each thing that cannot carry over goes to stderr.
"""

import json
import sys
from collections.abc import Sequence

from tpusd.config.paths import path_argument
from tpusd.config.schema import config_values, make_config
from tpusd.config.yaml_files import to_yaml
from tpusd.errors import printable, show
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status
from tpusd.process.report import report
from tpusd.recipes.base import Recipe
from tpusd.recipes.command import shell_command
from tpusd.recipes.readers import read_recipe
from tpusd.recipes.shell import is_utf_8

MAX_NAME_WIDTH = 30  # characters of the column of names


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = Parser(
        prog="python -m tpusd.recipe", description="A picture's recipe, and the command that makes it again."
    )
    parser.add_argument(
        "image", type=path_argument, help="a PNG, WebP or JPEG file of tpusd, A1111, ComfyUI and the like"
    )
    parser.add_argument(
        "--format",
        choices=("text", "command", "json", "yaml"),
        default="text",
        help="text: recipe and command; command: that alone; json: both; yaml: the config (default: text)",
    )
    with exit_status() as status:
        arguments = parser.parse_args(argv)
        recipe = read_recipe(arguments.image)
        for line in recipe.left_out:
            report(f"cannot carry over: {line}")
        ascii_only = not is_utf_8(sys.stdout.encoding)
        print(_shown(recipe, arguments.format, ascii_only=ascii_only))
    return status[0]


def _shown(recipe: Recipe, form: str, *, ascii_only: bool) -> str:
    """ascii_only: for a terminal that cannot show every character."""
    command = shell_command(recipe.overrides, ascii_only=ascii_only)
    if form == "command":
        return command
    if form == "json":
        values = {"source": recipe.source, "recipe": recipe.values, "command": command, "left_out": recipe.left_out}
        return _json(values, indent=2, ascii_only=ascii_only)
    if form == "yaml":
        from tpusd.config.compose import compose_jobs

        jobs = compose_jobs(recipe.overrides)
        assert jobs is not None
        values = config_values(make_config(jobs[0].values))
        text = to_yaml(values, ascii_only=ascii_only)
        return (text if _is_harmless(text) else to_yaml(values, ascii_only=True)).rstrip()
    width = min(MAX_NAME_WIDTH, max(map(len, recipe.values), default=0))
    lines = [f"{_text(name):<{width}}  {_text(value)}" for name, value in recipe.values.items()]
    shown = "\n".join([f"Made by {show(recipe.source)}.", "", *lines, ""])
    if ascii_only:
        shown = shown.encode("ascii", errors="backslashreplace").decode()
    return f"{shown}\n{command}"


def _text(value: object) -> str:
    """Terminals act on control characters, so these are shown as escapes."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text)


def _json(value: object, *, indent: int, ascii_only: bool) -> str:
    """Letters as they are where nothing steers a terminal and it can show them, else all but ASCII as escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    return text if _is_harmless(text) else json.dumps(value, indent=indent)


def _is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


if __name__ == "__main__":
    sys.exit(main())
