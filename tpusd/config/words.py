"""Words of the command line that people try first: `prompt=TEXT`, and what is meant by a word that is not a field."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from tpusd.config.grammar import hydra_value, unescaped
from tpusd.config.paths import expanded_path
from tpusd.errors import UserError, show

PROMPT = "prompt="
PATHS = ("model.path", "prompts.path", "output")
# What other programs call our fields -> how a command says it here.
_FIELDS: Mapping[str, str] = {
    "steps": "sampler.num_inference_steps",
    "num_steps": "sampler.num_inference_steps",
    "num_inference_steps": "sampler.num_inference_steps",
    "ddim_steps": "sampler.num_inference_steps",
    "sampler.steps": "sampler.num_inference_steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "scale": "guidance_scale",
    "scheduler": "sampler",
    "sampler_name": "sampler",
    "method": "sampler",
    "eta": "sampler.eta",
    "karras": "sampler.use_karras_sigmas",
    "neg": "negative_prompt",
    "negative": "negative_prompt",
    "uncond": "negative_prompt",
    "prompts.negative_prompt": "negative_prompt",
    "prompts.prompt": "prompt",
    "text": "prompt",
    "n": "num_images_per_prompt",
    "num_images": "num_images_per_prompt",
    "n_samples": "num_images_per_prompt",
    "n_iter": "num_images_per_prompt",
    "samples": "num_images_per_prompt",
    "batch_count": "num_images_per_prompt",
    "copies": "num_images_per_prompt",
    "batch": "batch_size_per_device",
    "batch_size": "batch_size_per_device",
    "bs": "batch_size_per_device",
    "w": "width",
    "h": "height",
    "size": "height and width",
    "resolution": "height and width",
    "dtype": "precision",
    "torch_dtype": "precision",
    "fp16": "precision=fp16",
    "bf16": "precision=bf16",
    "fp32": "precision=fp32",
    "ckpt": "model=local model.path",
    "checkpoint": "model=local model.path",
    "model_path": "model=local model.path",
    "model_id": "model.repo",
    "pretrained_model_name_or_path": "model.repo",
    "repo": "model.repo",
    "revision": "model.revision",
    "variant": "model.variant",
    "out": "output",
    "outdir": "output",
    "output_dir": "output",
    "out_dir": "output",
    "dir": "output",
    "file": "prompts=file prompts.path",
    "prompt_file": "prompts=file prompts.path",
    "prompts_file": "prompts=file prompts.path",
    "format": "image_format",
    "quality": "image_quality",
    "config": "--config-dir",
}
# Names of choices in other programs, in lower case without spaces and signs.
_CHOICES: Mapping[str, Mapping[str, str]] = {
    "sampler": {
        "eulera": "euler_ancestral",
        "keulera": "euler_ancestral",
        "eulerancestraldiscrete": "euler_ancestral",
        "keuler": "euler",
        "eulerdiscrete": "euler",
        "kheun": "heun",
        "klms": "lms",
        "plms": "pndm",
        "dpm2m": "dpmpp_2m",
        "dpmpp": "dpmpp_2m",
        "dpmpp2m": "dpmpp_2m",
        "dpmsolver": "dpmpp_2m",
        "dpmsolvermultistep": "dpmpp_2m",
        "dpmpp2mkarras": "dpmpp_2m sampler.use_karras_sigmas=true",
        "dpm2mkarras": "dpmpp_2m sampler.use_karras_sigmas=true",
        "dpmpp2msde": "dpmpp_2m_sde",
        "dpm2msde": "dpmpp_2m_sde",
        "dpmpp2msdekarras": "dpmpp_2m_sde sampler.use_karras_sigmas=true",
        "dpm2msdekarras": "dpmpp_2m_sde sampler.use_karras_sigmas=true",
        "unipcmultistep": "unipc",
        "deismultistep": "deis",
    },
    "precision": {
        "half": "fp16",
        "float16": "fp16",
        "f16": "fp16",
        "16": "fp16",
        "bfloat16": "bf16",
        "full": "fp32",
        "float32": "fp32",
        "f32": "fp32",
        "32": "fp32",
    },
    "model": {
        "sd": "sd15",
        "15": "sd15",
        "sd1": "sd15",
        "stablediffusion": "sd15",
        "stablediffusionv15": "sd15",
        "stablediffusion15": "sd15",
        "stablediffusion14": "sd14",
        "stablediffusionv14": "sd14",
        "sd2": "sd21",
        "stablediffusion21": "sd21",
        "xl": "sdxl",
        "sdxlbase": "sdxl",
        "sdxl10": "sdxl",
        "stablediffusionxl": "sdxl",
        "stablediffusionxlbase10": "sdxl",
    },
}


def expanded(words: Sequence[str]) -> list[str]:
    """The words, with `prompt=TEXT` as the prompt set that it means, and ~ as the home. Raises UserError.

    The text is taken as it is: commas, colons and brackets need no quotes beside those of the shell. `prompt=[a,b]` is
    a prompt set of several rows; each may be in quotes, as in Hydra's lists.
    """
    words = [_with_home(word) for word in words]
    given = [word for word in words if word.startswith(PROMPT)]
    if not given:
        return words
    if len(given) > 1:
        raise UserError(f"{show(given[1])}: prompt= is given twice; write a list, as in 'prompt=[a red fox,an owl]'")
    if other := next((word for word in words if _chooses_prompts(word)), None):
        raise UserError(f"{show(other)}: prompt= is a prompt set of its own; leave one of the two out")
    texts = _texts(given[0].removeprefix(PROMPT))
    if not all(text.strip() for text in texts):
        raise UserError(f"{show(given[0])}: is empty; write the prompt behind the equals sign")
    rows = hydra_value([{"prompt": text} for text in texts])
    return [*(word for word in words if word is not given[0]), "prompts=inline", f"prompts.rows={rows}"]


def _chooses_prompts(word: str) -> bool:
    return word.startswith(("prompts=", "prompts.")) and not word.startswith("prompts.replace=")


def _with_home(word: str) -> str:
    """A path with a leading ~, which Hydra's grammar cannot read."""
    key, _, value = word.partition("=")
    if key in PATHS and value.startswith("~"):
        return f"{key}={hydra_value(expanded_path(value, key))}"
    return word


def meant_field(name: str) -> str | None:
    """How a command says here what another program calls `name`; None where that is not known."""
    return _FIELDS.get(name.lower().lstrip("-").replace("-", "_"))


def meant_choice(group: str, name: str) -> str | None:
    """The choice of a group that another program calls `name`; None where that is not known."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp")).removesuffix("scheduler")
    return _CHOICES.get(group, {}).get(plain)


def explained(word: str, following: str | None, names: Sequence[str]) -> str | None:
    """What to write in place of a word that is not `field=value`; None where that is not known.

    word: such as --seed, --seed=3, or a file's name.
    following: the next word, which may be the value.
    names: of all fields and groups.
    """
    if word.startswith("-"):
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        field = name if name in names or name in ("resume", "prompt") else meant_field(name)
        if field is None:
            return None
        if not equals:
            value = following if following is not None and not following.startswith("-") else "VALUE"
        return field if "=" in field and not field.endswith("path") else f"{field}={show(value)}"
    path = Path(word).expanduser()
    try:
        return _for_path(path, show(word))
    except (OSError, ValueError):
        return None


def _for_path(path: Path, word: str) -> str | None:
    if path.is_file():
        if path.suffix in (".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet"):
            return f"prompts=file prompts.path={word}"
        if path.suffix in (".png", ".jpg", ".jpeg", ".webp"):
            return f"python -m tpusd.recipe {word} (for the command that makes such a picture)"
        return f"model=local model.path={word}" if path.suffix == ".safetensors" else None
    if path.is_dir():
        if (path / "model_index.json").is_file():
            return f"model=local model.path={word}"
        if (path / "config.yaml").is_file() or (path / "sweep.json").is_file():
            return f"resume={word} (to continue it), or python -m tpusd.reproduce {word} (to make it again)"
    return None


def _texts(value: str) -> list[str]:
    """One text, or those of a list in Hydra's grammar."""
    if value.startswith("[") and value.endswith("]"):
        try:
            parsed = OverridesParser.create().parse_override(f"x={value}").value()
        except (HydraException, ValueError, RecursionError):
            return [value]
        if isinstance(parsed, list) and parsed and all(not isinstance(item, list | dict) for item in parsed):
            return [unescaped(str(item)) for item in parsed]
        return [value]
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return [value[1:-1]]
    return [value]
