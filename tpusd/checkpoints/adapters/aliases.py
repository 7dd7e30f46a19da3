"""Every name that a layer of our networks has in LoRA files.

The table is built forward, from our own layers: kohya's names have underscores for dots, and no rule turns those back.
Knows no files.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tpusd.checkpoints.ldm_names import ldm_unet_names
from tpusd.families.base import Family

Layer = tuple[str, str]  # part of the model, and the layer's path in it
_PROJECTION = re.compile(r"(.*\.attn[12])\.(to_[qkv]|to_out)(?:\.0)?")
_COMFY_CLIP = (("clip_l", "clip_h"), ("clip_g",))  # ComfyUI's names of the first and of the second text encoder


def layer_aliases(family: Family, layers: Mapping[str, Iterable[str]]) -> dict[str, Layer]:
    """Name in a file -> our layer. A name that two layers have is left out.

    layers: part -> the paths of its layers, such as `down_blocks.0.resnets.0.conv1`.
    """
    encoders = family.parts("encode")
    found: dict[str, Layer] = {}
    count: Counter[str] = Counter()
    for part, paths in layers.items():
        paths = list(paths)
        if part in encoders:
            names = _text_names(paths, encoders.index(part), alone=len(encoders) == 1)
        elif part in family.parts("denoise"):
            names = _unet_names(paths)
        else:
            continue
        for path, aliases in names:
            unique = set(aliases)
            count.update(unique)
            found |= dict.fromkeys(unique, (part, path))
    return {name: layer for name, layer in found.items() if count[name] == 1}


def _unet_names(paths: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    originals = ldm_unet_names(paths)
    for path in paths:
        original = originals[path]
        names = [f"{prefix}{_underscored(name)}" for prefix in ("lora_unet_", "lycoris_") for name in (path, original)]
        names += [f"{prefix}{path}" for prefix in ("unet.", "", "base_model.model.", "unet.base_model.model.")]
        names += [f"{prefix}{original}" for prefix in ("diffusion_model.", "model.diffusion_model.")]
        if m := _PROJECTION.fullmatch(path):  # diffusers had attention processors with layers of their own
            names += [f"{prefix}{m[1]}.processor.{m[2]}" for prefix in ("unet.", "")]
        yield path, names


def _text_names(paths: Sequence[str], index: int, *, alone: bool) -> Iterator[tuple[str, list[str]]]:
    """index: of the text encoder. alone: whether the model has no other."""
    kohya = "lora_te_" if alone else f"lora_te{index + 1}_"
    diffusers = "text_encoder." if index == 0 else f"text_encoder_{index + 1}."
    for path in paths:
        names = [f"{kohya}{_underscored(path)}"]
        for name in {path, path.removeprefix("text_model.")}:  # transformers 5 has no prefix
            names.append(f"{diffusers}{name}")
        names += [f"text_encoders.{clip}.transformer.{path}" for clip in _COMFY_CLIP[index]]
        if alone:
            names.append(f"base_model.model.{path}")
        yield path, names


def _underscored(name: str) -> str:
    return name.replace(".", "_")
