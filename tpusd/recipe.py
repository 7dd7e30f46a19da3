"""`python -m tpusd.recipe image.png`: a picture's recipe, and the command that makes it again.

For pictures of ours the command is exact; for those of A1111 and programs that write as it does, a line for each thing
that cannot carry over goes to stderr.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpusd.config.rows import Row
from tpusd.config.schema import RunConfig, config_values, make_config
from tpusd.errors import UserError, show, show_path
from tpusd.process.arguments import Parser
from tpusd.process.exit import exit_status
from tpusd.process.report import report
from tpusd.prompts.rows import read_rows

COPIED = ("seed", "guidance_scale", "guidance_rescale", "height", "width", "image_format", "image_quality")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`source`: the program that wrote it; `overrides`: what makes the picture; `left_out`: what they cannot say."""

    source: str
    values: Mapping[str, Any]
    overrides: tuple[str, ...]
    left_out: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = Parser(
        prog="python -m tpusd.recipe", description="A picture's recipe, and the command that makes it again."
    )
    parser.add_argument("image", type=Path, help="a PNG, WebP or JPEG file of tpusd, A1111 or their like")
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


def read_recipe(path: Path) -> Recipe:
    """Raises UserError where the picture carries no recipe, or one that is none."""
    from tpusd.recipes.a1111 import carry_over
    from tpusd.recipes.command import config_overrides, hydra_value, image_overrides
    from tpusd.recipes.files import read_metadata
    from tpusd.recipes.infotext import read_infotext

    metadata = read_metadata(path)
    if metadata.recipe is not None:
        config, row = _own_config(path, metadata.recipe)
        overrides = config_overrides(config) + image_overrides(row, config.first_row, config.first_copy)
        return Recipe(source="tpusd", values=metadata.recipe, overrides=tuple(overrides), left_out=())
    infotext = read_infotext(metadata.parameters or "")
    if not infotext.settings:
        raise UserError(f"{show_path(path)}: carries no recipe; some programs that copy or shrink pictures drop it")
    carried = carry_over(infotext)
    values = {"Prompt": infotext.prompt, "Negative prompt": infotext.negative_prompt} | dict(infotext.settings)
    return Recipe(
        source=infotext.settings.get("Version", "A1111"),
        values=values,
        overrides=tuple(f"{name}={hydra_value(value)}" for name, value in carried.overrides.items()),
        left_out=carried.left_out,
    )


def _own_config(path: Path, recipe: Mapping[str, Any]) -> tuple[RunConfig, Row]:
    """A recipe comes from a file that anybody may have written, so it goes through the checks of every config."""
    try:
        row = {"prompt": recipe["prompt"], "negative_prompt": recipe["negative_prompt"], "seed": recipe["row_seed"]}
        values = {name: recipe[name] for name in COPIED} | {
            "first_row": recipe["row"],
            "first_copy": recipe["copy"],
            "model": recipe["model_settings"],
            "precision": recipe["precision_settings"],
            "sampler": recipe["sampler_settings"],
            "prompts": {"name": "recipe", "rows": [row]},
        }
        if row["seed"] is not None:
            values["seed"] = 0  # the row's own seed decides, and the recipe's `seed` repeats it
        config = make_config(values)
        return config, read_rows(config.prompts)[0]
    except KeyError as error:
        raise UserError(f"{show_path(path)}: its recipe lacks {show(str(error))}; it cannot be made again") from None
    except UserError as error:
        raise UserError(f"{show_path(path)}: its recipe is none: {error}") from None


def _shown(recipe: Recipe, form: str) -> str:
    from tpusd.recipes.command import shell_command

    command = shell_command(recipe.overrides)
    if form == "command":
        return command
    if form == "json":
        return json.dumps(
            {"source": recipe.source, "recipe": recipe.values, "command": command, "left_out": recipe.left_out},
            indent=2,
            ensure_ascii=False,
        )
    if form == "yaml":
        from tpusd.config.compose import compose_jobs
        from tpusd.records.directory import to_yaml

        (job,) = compose_jobs(recipe.overrides)
        return to_yaml(config_values(make_config(job.values))).rstrip()
    width = max(map(len, recipe.values))
    lines = [f"{name:<{width}}  {_text(value)}" for name, value in recipe.values.items()]
    return "\n".join([f"Made by {show(recipe.source)}.", "", *lines, "", command])


def _text(value: Any) -> str:
    """Terminals act on control characters, so these are shown as escapes."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


if __name__ == "__main__":
    sys.exit(main())
