"""A1111's settings -> a config of ours, and a line for each thing that cannot carry over. Knows nothing of files."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tpusd.config.limits import MAX_SEED
from tpusd.errors import show
from tpusd.recipes.infotext import SCHEDULE_TYPES, Infotext
from tpusd.samplers.registry import samplers

# The first ten digits of a checkpoint file's sha256, as A1111 writes them -> the choice of conf/model with its weights.
MODEL_HASHES = {
    "fe4efff1e1": "sd14",
    "6ce0161689": "sd15",
    "88ecb78256": "sd21_base",
    "ad2a33c361": "sd21",
    "31e35c80fc": "sdxl",
}
PLACEHOLDER = "MODEL_DIRECTORY"  # stands for weights that only the user can name
_OPTIONS = {name: option for option, name in SCHEDULE_TYPES.items()}
_DEFAULT_SCHEDULES = ("Automatic", "Uniform", "Normal")
_READ = {"Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model", "Model hash", "RNG", "Version"}
_WEIGHTED = re.compile(r"(?<!\\)[(\[].*?(?<!\\)[)\]]|\bBREAK\b|\bAND\b", re.DOTALL)
_NETWORK = re.compile(r"<(\w+):[^>]*>")


@dataclass(frozen=True, kw_only=True)
class CarriedOver:
    """`overrides`: of `python -m tpusd.run`, as field -> value; `left_out`: what they cannot say, a line each."""

    overrides: Mapping[str, Any]
    left_out: tuple[str, ...]


def carry_over(infotext: Infotext) -> CarriedOver:
    """What of an A1111 picture can be asked of tpusd: a like picture at best, for its noise has another source."""
    settings, overrides, left_out = infotext.settings, {}, []
    for part in (_model, _sampler, _numbers):
        values, lines = part(settings)
        overrides |= values
        left_out += lines
    prompt = {"prompt": infotext.prompt}
    if infotext.negative_prompt:
        prompt["negative_prompt"] = infotext.negative_prompt
    overrides["prompts.rows"] = [prompt]
    left_out += _of_prompts(infotext.prompt, infotext.negative_prompt)
    left_out += [
        f"{show(name)}: {show(value)}: has no counterpart" for name, value in settings.items() if name not in _READ
    ]
    if settings.get("RNG") != "JAX":
        generator = show(settings.get("RNG", "GPU"))
        left_out.append(f"RNG: {generator}: from the same seed tpusd draws other noise, so the picture differs")
    return CarriedOver(overrides=overrides, left_out=tuple(left_out))


def _model(settings: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    digits, name = settings.get("Model hash", ""), settings.get("Model")
    if digits in MODEL_HASHES:
        return {"model": MODEL_HASHES[digits]}, []
    words = f"{show(name or 'not said')}{f' (hash {show(digits)})' if digits else ''}"
    return (
        {"model": "local", "model.path": PLACEHOLDER},
        [f"Model: {words}: put the directory of these weights in the place of {PLACEHOLDER}, or choose another model="],
    )


def _sampler(settings: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    name, schedule = settings.get("Sampler", ""), settings.get("Schedule type", "Automatic")
    for ending in _OPTIONS:  # before version 1.9 the schedule stood in the sampler's name
        if name.endswith(f" {ending}"):
            name, schedule = name.removesuffix(f" {ending}"), ending
    known = {sampler.a1111: sampler for sampler in samplers().values()}
    if name not in known:
        return {}, [f"Sampler: {show(name) or 'not said'}: is not one of {', '.join(known)}; the default is taken"]
    sampler = known[name]
    if schedule in _DEFAULT_SCHEDULES:
        return {"sampler": sampler.name}, []
    option = _OPTIONS.get(schedule)
    if option is None or option not in sampler.defaults:
        return {"sampler": sampler.name}, [f"Schedule type: {show(schedule)}: sampler={sampler.name} has none like it"]
    return {"sampler": sampler.name, f"sampler.{option}": True}, []


def _numbers(settings: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    values, lines = {}, []
    for name, field, kind in (
        ("Steps", "sampler.num_inference_steps", int),
        ("CFG scale", "guidance_scale", float),
        ("Seed", "seed", int),
    ):
        try:
            values[field] = kind(settings[name])
        except KeyError:
            lines.append(f"{name}: not said; the default is taken")
        except ValueError:
            lines.append(f"{name}: {show(settings[name])}: is no number; the default is taken")
    if not 0 <= values.get("seed", 0) <= MAX_SEED:
        lines.append(f"Seed: {values.pop('seed')}: is beyond {MAX_SEED}; the default is taken")
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", settings.get("Size", ""))
    if size:
        values |= {"width": int(size[1]), "height": int(size[2])}
    else:
        lines.append("Size: not said; the model's own is taken")
    return values, lines


def _of_prompts(*prompts: str) -> Iterator[str]:
    networks = {found[0] for prompt in prompts for found in _NETWORK.finditer(prompt)}
    for network in sorted(networks):
        yield f"{show(network)}: networks such as this are not loaded, and the text model reads it as words"
    weighted = next((found[0] for prompt in prompts for found in _WEIGHTED.finditer(prompt)), None)
    if weighted is not None:
        yield f"{show(weighted)}: brackets, BREAK and AND weigh words in A1111; the text model reads them as text"
