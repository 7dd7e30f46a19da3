"""The reader of tpusd's own pictures: the whole recipe as JSON, so the command makes the very picture again."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tpusd.config.json_values import JsonError, parse_json
from tpusd.config.rows import Row
from tpusd.config.schema import RunConfig, make_config
from tpusd.config.sizes import SIZE_FIELDS
from tpusd.errors import UserError, show
from tpusd.recipes import xmp
from tpusd.recipes.base import OWN, PictureTexts, Recipe
from tpusd.recipes.command import config_overrides, fitting_row, image_overrides
from tpusd.samplers.registry import find_sampler

# In a recipe only where they are not the usual ones; the second, of the image's row.
OPTIONAL = (
    "guidance_interval",
    "guidance_schedule",
    "noise",
    "noise_batch_size",
    "noise_threads",
    "resize",
    "paste_back",
    "mask_feather",
    "on_truncate",
    "guess_mode",
)
OPTIONAL_OF_ROW = (
    "image",
    "image_sha256",
    "mask",
    "mask_sha256",
    "strength",
    "prompt_template",
    "negative_prompt_template",
    "control_images",
    "control_images_sha256",
    "control_scale",
    *SIZE_FIELDS,
)
OF_CACHE = {"cache": "name", "cache_interval": "interval", "cache_branch": "branch", "cache_steps": "steps"}
COPIED = ("seed", "guidance_scale", "guidance_rescale", "height", "width", "image_format", "image_quality")


def read_own(texts: PictureTexts) -> Recipe | None:
    """Raises UserError for a recipe that is not a valid one."""
    values = recipe_values(texts)
    if values is None:
        return None
    config, row = _config(values)
    texts_of_row = {name: value for name, value in row.to_values().items() if isinstance(value, str)}
    fitted, left_out = fitting_row(texts_of_row)
    overrides = config_overrides(config) + image_overrides(replace(row, **fitted), config.first_row, config.first_copy)
    return Recipe(source="tpusd", values=values, overrides=tuple(overrides), left_out=tuple(left_out))


def recipe_values(texts: PictureTexts) -> dict[str, Any] | None:
    """The recipe's JSON as it was written, unchecked. None if the picture has none."""
    text = texts.chunks.get(OWN) or xmp.recipe_in(texts.xmp or "")
    try:
        value = None if text is None else parse_json(text)
    except JsonError:
        return None
    return value if isinstance(value, dict) else None


def _config(recipe: Mapping[str, Any]) -> tuple[RunConfig, Row]:
    """Anybody may have written the file that the recipe comes from, so it goes through the checks of every config."""
    try:
        row = {"prompt": recipe["prompt"], "negative_prompt": recipe["negative_prompt"], "seed": recipe["row_seed"]}
        row |= {name: recipe[name] for name in OPTIONAL_OF_ROW if name in recipe}
        copied = (*COPIED, *(name for name in OPTIONAL if name in recipe))
        values = {name: recipe[name] for name in copied} | {
            "first_row": recipe["row"],
            "first_copy": recipe["copy"],
            "model": recipe["model_settings"],
            "precision": recipe["precision_settings"],
            "sampler": recipe["sampler_settings"],
            "loras": recipe.get("lora_settings", []),
            "embeddings": recipe.get("embedding_settings", []),
            "prompts": {"name": "recipe", "rows": [row]},
            "cache": {name: recipe[own] for own, name in OF_CACHE.items() if own in recipe},
        }
        for name, own in (("syntax", "prompt_syntax"), ("weighting", "prompt_weighting")):
            if own in recipe:
                values["prompts"][name] = recipe[own]
        if row["seed"] is not None:
            values["seed"] = 0  # the row's own seed decides, and the recipe's `seed` repeats it
        config = make_config(values)
        find_sampler(config.sampler.name)
        assert config.prompts.rows is not None
        return config, config.prompts.rows[0]
    except KeyError as error:
        raise UserError(f"its recipe lacks {show(str(error))}; it cannot be made again") from None
    except UserError as error:
        raise UserError(f"its recipe is invalid: {error}") from None
