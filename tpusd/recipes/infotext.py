"""The `parameters` text of A1111, Civitai and similar programs: written for tpusd's images, and read from any picture.

The rules are those of A1111's own reader. The last line holds the settings if it has at least three of the form
`Name: value`, joined by commas; a value that holds a comma, a colon or a newline is a JSON string. The lines before it
are the prompt, and from a line that begins with `Negative prompt:` the negative prompt. Knows nothing of files or
configs.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tpusd import __version__
from tpusd.samplers.registry import find_sampler

NEGATIVE = "Negative prompt:"
SCHEDULE_TYPES = {"use_karras_sigmas": "Karras", "use_exponential_sigmas": "Exponential", "use_beta_sigmas": "Beta"}
RNG = {"torch_cpu": "CPU", "torch_cuda": "NV"}  # our noise -> A1111's name of what draws it
_NAME_ENDS = re.compile(r"[^\w \-/]")
_VALUE = re.compile(r'\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_FEWEST_SETTINGS = 3


@dataclass(frozen=True, kw_only=True)
class Infotext:
    """`settings`: name -> text, in their order in the text."""

    prompt: str
    negative_prompt: str
    settings: Mapping[str, str]


def write_infotext(recipe: Mapping[str, Any], *, max_chars: int) -> str:
    """The text of one image.

    recipe: the image's manifest fields.
    max_chars: of each prompt; the rest is cut off. NUL is left out, for no text chunk can hold it.
    """
    noise = recipe.get("noise", "")
    settings = {
        "Steps": recipe["num_inference_steps"],
        "Sampler": find_sampler(recipe["sampler"]).a1111,
        "CFG scale": f"{max(1.0, recipe['guidance_scale']):g}",  # below 1 A1111 would not take the prompt alone
        "Seed": recipe["seed"] + (recipe["copy"] // recipe.get("noise_batch_size", 1) if noise else 0),
        "Size": f"{recipe['width']}x{recipe['height']}",
        **({} if recipe.get("strength") is None else {"Denoising strength": f"{recipe['strength']:g}"}),
        "Model": recipe["model"],
        "RNG": RNG.get(noise, "JAX"),
        "Version": f"tpusd {__version__}",
    }
    if recipe.get("prompt_weighting") == "a1111_no_norm":
        settings["Emphasis"] = "No norm"
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
    settings = list(_settings(last))
    if len(settings) < _FEWEST_SETTINGS:
        lines, settings = [*lines, last], []
    parts: tuple[list[str], list[str]] = ([], [])
    negative = False
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            negative, line = True, line[len(NEGATIVE) :].strip()
        if parts[negative] or line:  # leading empty lines are dropped
            parts[negative].append(line)
    return Infotext(
        prompt="\n".join(parts[False]),
        negative_prompt="\n".join(parts[True]),
        settings={name: _unquoted(value) for name, value in settings},
    )


def _settings(line: str) -> Iterator[tuple[str, str]]:
    """The pairs that A1111's expression finds in a line: `\\s*(\\w[\\w \\-/]+):` and then `_VALUE`.

    That expression takes time with the square of a line without colons; this search, in proportion to the line.
    """
    position = 0
    while (colon := line.find(":", position)) >= 0:
        name = _NAME_ENDS.split(line[position:colon])[-1].lstrip(" -/")
        position = colon + 1
        value = _VALUE.match(line, position) if len(name) > 1 else None
        if value is not None:
            yield name, value[1]
            position = value.end()


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:"\n') else text


def _unquoted(value: str) -> str:
    if not (value.startswith('"') and value.endswith('"')):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
