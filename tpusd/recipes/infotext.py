"""The `parameters` text of A1111, Civitai and their like: written for our images, and read from anybody's.

The rules are those of A1111's own reader: the last line holds the settings if at least three `Name: value` stand in it,
joined by commas, and a value that holds a comma, a colon or a newline is a JSON string; what stands before is the
prompt, up to a line that begins with `Negative prompt:`. Knows nothing of files or configs.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tpusd import __version__
from tpusd.samplers.registry import find_sampler

NEGATIVE = "Negative prompt:"
SCHEDULE_TYPES = {"use_karras_sigmas": "Karras", "use_exponential_sigmas": "Exponential", "use_beta_sigmas": "Beta"}
_SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_FEWEST_SETTINGS = 3


@dataclass(frozen=True, kw_only=True)
class Infotext:
    """`settings`: name -> text, in the order that they stand in."""

    prompt: str
    negative_prompt: str
    settings: Mapping[str, str]


def write_infotext(recipe: Mapping[str, Any], *, max_chars: int) -> str:
    """recipe: an image's manifest fields. Prompts are cut at `max_chars`, and NUL goes, which no text chunk holds."""
    settings = {
        "Steps": recipe["num_inference_steps"],
        "Sampler": find_sampler(recipe["sampler"]).a1111,
        "CFG scale": f"{recipe['guidance_scale']:g}",
        "Seed": recipe["seed"],
        "Size": f"{recipe['width']}x{recipe['height']}",
        "Model": recipe["model"],
        "RNG": "JAX",
        "Version": f"tpusd {__version__}",
    }
    for option, name in SCHEDULE_TYPES.items():
        if recipe.get("sampler_settings", {}).get(option):
            settings["Schedule type"] = name
    lines = [recipe["prompt"][:max_chars]]
    if recipe["negative_prompt"]:
        lines.append(f"{NEGATIVE} {recipe['negative_prompt'][:max_chars]}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(line.replace("\0", "") for line in lines)


def read_infotext(text: str) -> Infotext:
    """The inverse, for texts of any program. White space around lines is lost, as in A1111."""
    *lines, last = text.strip().split("\n")
    if len(_SETTING.findall(last)) < _FEWEST_SETTINGS:
        lines, last = [*lines, last], ""
    parts: tuple[list[str], list[str]] = ([], [])
    negative = False
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            negative, line = True, line[len(NEGATIVE) :].strip()
        if parts[negative] or line:  # leading empty lines go
            parts[negative].append(line)
    return Infotext(
        prompt="\n".join(parts[False]),
        negative_prompt="\n".join(parts[True]),
        settings={name: _unquoted(value) for name, value in _SETTING.findall(last)},
    )


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:"\n') else text


def _unquoted(value: str) -> str:
    if not (value.startswith('"') and value.endswith('"')):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
