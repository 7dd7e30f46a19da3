"""The reader of A1111's pictures, and of programs that write as it does: infotext -> a like picture at best.

Knows nothing of files.
"""

import re
from collections.abc import Mapping

from tpusd.config.rows import MAX_LORAS
from tpusd.config.schema import Weighting
from tpusd.errors import UserError, show
from tpusd.prompts.networks import named_loras
from tpusd.recipes.base import PARAMETERS, PictureTexts, Recipe
from tpusd.recipes.carry_over import LORAS_PLACEHOLDER, MAX_LINES, NOT_GIVEN, CarryOver, Missing
from tpusd.recipes.infotext import SCHEDULE_TYPES, Infotext, read_infotext
from tpusd.samplers.registry import samplers
from tpusd.syntax.a1111 import parse

# The first ten digits of a checkpoint file's sha256, as A1111 writes them -> the choice of conf/model with its weights.
MODEL_HASHES = {
    "fe4efff1e1": "sd14",
    "6ce0161689": "sd15",
    "88ecb78256": "sd21_base",
    "ad2a33c361": "sd21",
    "31e35c80fc": "sdxl",
}
_OPTIONS = {name: option for option, name in SCHEDULE_TYPES.items()}
# A1111's name of what draws noise -> our `noise`. A picture without a name has A1111's default, GPU.
_NOISE = {"GPU": "torch_cuda", "NV": "torch_cuda", "CPU": "torch_cpu", "JAX": "threefry"}
_BROWNIAN = ("dpmpp_2m_sde",)  # A1111 draws the noise of their steps as a Brownian tree
_DEFAULT_SCHEDULES = ("Automatic", "Uniform", "Normal")
_READ = {
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Seed",
    "Size",
    "Model",
    "Model hash",
    "RNG",
    "Version",
    "Emphasis",
}
_LORA_HASHES = "Lora hashes"
_NETWORK = re.compile(r"<\w+:[^<>]*>")
# A1111's `Emphasis` -> our weighting; without a name it is Original.
_WEIGHTINGS: Mapping[str, Weighting | None] = {"Original": None, "No norm": "a1111_no_norm"}


def read_a1111(texts: PictureTexts) -> Recipe | None:
    infotext = read_infotext(texts.chunks.get(PARAMETERS) or texts.user_comment or "")
    if not infotext.settings:
        return None
    carried = carry_over(infotext)
    return Recipe(
        source=infotext.settings.get("Version", "A1111"),
        values={"Prompt": infotext.prompt, "Negative prompt": infotext.negative_prompt} | dict(infotext.settings),
        overrides=carried.overrides,
        left_out=carried.left_out,
    )


def carry_over(infotext: Infotext) -> CarryOver:
    """What of the picture tpusd can make, with the noise that A1111 drew where it is known."""
    settings, carried = infotext.settings, CarryOver()
    _model(settings, carried)
    _sampler(settings, carried)
    carried.steps("Steps", _number(settings.get("Steps")))
    carried.guidance("CFG scale", _number(settings.get("CFG scale")))
    carried.seed("Seed", _number(settings.get("Seed")))
    _size(settings, carried)
    read = _READ | ({_LORA_HASHES} if _prompts(infotext, carried) else set())
    carried.leave_out_each(
        (f"{show(name)}: {show(value)}" for name, value in settings.items() if name not in read),
        "has no counterpart",
    )
    _noise(settings, carried)
    return carried


def _model(settings: Mapping[str, str], carried: CarryOver) -> None:
    digits, name = settings.get("Model hash", ""), settings.get("Model")
    if digits in MODEL_HASHES:
        carried.set("model", MODEL_HASHES[digits])
    else:
        carried.model("Model", f"{show(name or '')} (hash {show(digits)})".lstrip() if digits else name or NOT_GIVEN)


def _sampler(settings: Mapping[str, str], carried: CarryOver) -> None:
    name, schedule = settings.get("Sampler", ""), settings.get("Schedule type", "Automatic")
    for ending in _OPTIONS:  # before version 1.9 the sampler's name ended in the schedule's
        if name.endswith(f" {ending}"):
            name, schedule = name.removesuffix(f" {ending}"), ending
    known = {sampler.a1111: sampler for sampler in samplers().values()}
    if name not in known:
        carried.leave_out("Sampler", name or "(empty)", f"is not one of {', '.join(known)}; the default is taken")
        return
    sampler = known[name]
    carried.set("sampler", sampler.name)
    if schedule in _DEFAULT_SCHEDULES:
        return
    option = _OPTIONS.get(schedule)
    if option is None or option not in sampler.defaults:
        carried.leave_out("Schedule type", schedule, f"sampler={sampler.name} has no such schedule; its own is taken")
    else:
        carried.set(f"sampler.{option}", True)


def _noise(settings: Mapping[str, str], carried: CarryOver) -> None:
    """After the sampler and the seed. An image of a batch has a seed of its own, and its text says that seed."""
    generator = settings.get("RNG", "GPU")
    noise = _NOISE.get(generator)
    if noise is None:
        carried.leave_out("RNG", generator, "from the same seed tpusd draws other noise, so the picture differs")
        return
    if noise == "threefry":
        return
    carried.set("noise", noise)
    if generator == "GPU":
        carried.leave_out(
            "RNG",
            generator,
            "the noise of a large NVIDIA GPU is taken; for a small one add noise_threads=, see docs/seeds.md; on other "
            "devices the picture differs",
        )
    if carried.sampler().name in _BROWNIAN:
        carried.leave_out("RNG", "A1111 draws the noise of this sampler's steps in another way")


def _size(settings: Mapping[str, str], carried: CarryOver) -> None:
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", settings.get("Size", ""), flags=re.ASCII)
    if size is None:
        carried.leave_out("Size", "is not given; the model's own size is taken")
        return
    carried.size("Width", "width", int(size[1]))
    carried.size("Height", "height", int(size[2]))


def _prompts(infotext: Infotext, carried: CarryOver) -> bool:
    """The prompts, and how they are read: whether marks of LoRAs stay in the prompt.

    A1111 reads none in a negative prompt.
    """
    emphasis = infotext.settings.get("Emphasis", "Original")
    bare, negative_prompt = (_NETWORK.sub("", text) for text in (infotext.prompt, infotext.negative_prompt))
    fault = None
    if emphasis != "None":
        try:
            parse(bare)
            parse(negative_prompt)
        except UserError as error:
            fault = error
    weighted = emphasis != "None" and fault is None
    loras = _loras(infotext.prompt) if weighted and bare.strip() else {}
    prompt = _NETWORK.sub(lambda mark: mark[0] if mark[0] in loras else "", infotext.prompt)
    texts = infotext.prompt, infotext.negative_prompt
    networks = {found[0] for text in texts for found in _NETWORK.finditer(text)}
    carried.prompts(prompt, negative_prompt)
    rule = "networks are files; put a LoRA's in loras=[{path: FILE, scale: 0.8}]"
    carried.leave_out_each(sorted(networks - loras.keys()), rule)
    if emphasis == "None":
        carried.set("on_truncate", "chunk")
    if fault is not None:
        carried.leave_out("prompt", f"{fault}; with prompts.syntax=a1111 weights are read")
    if not weighted:
        return False
    carried.set("prompts.syntax", "a1111")
    if emphasis not in _WEIGHTINGS:
        carried.leave_out("Emphasis", emphasis, "is not implemented; Original is taken")
    elif (weighting := _WEIGHTINGS[emphasis]) is not None:
        carried.set("prompts.weighting", weighting)
    if loras:
        carried.set("prompts.lora_dir", LORAS_PLACEHOLDER)
        _name_files(loras, infotext.settings.get(_LORA_HASHES, ""), carried)
    return bool(loras)


def _loras(prompt: str) -> dict[str, str]:
    """Mark -> name of each LoRA that a run reads in the prompt; empty where it would refuse one, or so many."""
    try:
        loras = named_loras(prompt)
    except UserError:
        return {}
    return dict(loras) if len(loras) <= MAX_LORAS else {}


def _name_files(loras: Mapping[str, str], hashes: str, carried: CarryOver) -> None:
    """A line for the files that the user has to have. hashes: `ink: 0a1b2c3d4e5f, hat: ...`, as A1111 writes them."""
    known = {name.strip(): digits.strip() for name, _, digits in (one.rpartition(":") for one in hashes.split(","))}
    files = [
        f"{name}.safetensors" + (f" (hash {known[name]})" if known.get(name) else "")
        for name in dict.fromkeys(loras.values())
    ]
    more = f", and {len(files) - MAX_LINES} more," if len(files) > MAX_LINES else ""
    listed = ", ".join(map(show, files[:MAX_LINES])) + more
    carried.leave_out(f"put the directory that holds {listed} in the place of {LORAS_PLACEHOLDER}")


def _number(text: str | None) -> int | float | str | Missing:
    """A whole number stays exact; text that is not a number stays text, for the check that follows to refuse."""
    if text is None:
        return NOT_GIVEN
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
