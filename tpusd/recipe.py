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
        print(_shown(recipe, arguments.format))
    return status[0]


def _shown(recipe: Recipe, form: str) -> str:
    command = shell_command(recipe.overrides)
    if form == "command":
        return command
    if form == "json":
        values = {"source": recipe.source, "recipe": recipe.values, "command": command, "left_out": recipe.left_out}
        return _json(values, indent=2)
    if form == "yaml":
        from tpusd.config.compose import compose_jobs

        jobs = compose_jobs(recipe.overrides)
        assert jobs is not None
        return to_yaml(config_values(make_config(jobs[0].values))).rstrip()
    width = min(MAX_NAME_WIDTH, max(map(len, recipe.values), default=0))
    lines = [f"{_text(name):<{width}}  {_text(value)}" for name, value in recipe.values.items()]
    return "\n".join([f"Made by {show(recipe.source)}.", "", *lines, "", command])


def _text(value: object) -> str:
    """Terminals act on control characters, so these are shown as escapes."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text)


def _json(value: object, *, indent: int) -> str:
    """Letters as they are; only half a surrogate pair, which is not Unicode text, needs its escape."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


if __name__ == "__main__":
    sys.exit(main())
