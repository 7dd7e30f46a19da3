"""Which model a LoRA was trained for, as far as its file says: for error lines and for the user.

Trainers write it into the file's metadata; otherwise the names and widths of its layers tell, or the name of the
checkpoint that it was trained on, or its title.
"""

import re
from collections.abc import Mapping

from tpusd.errors import show

# What a value of `modelspec.architecture` or `ss_base_model_version` begins with -> the model's name.
_SPOKEN = {
    "stable-diffusion-xl": "Stable Diffusion XL",
    "sdxl": "Stable Diffusion XL",
    "stable-diffusion-v1": "Stable Diffusion 1.x",
    "sd_v1": "Stable Diffusion 1.x",
    "sd_1": "Stable Diffusion 1.x",
    "stable-diffusion-v2": "Stable Diffusion 2.x",
    "sd_v2": "Stable Diffusion 2.x",
    "sd_2": "Stable Diffusion 2.x",
    "stable-diffusion-v3": "Stable Diffusion 3",
    "sd3": "Stable Diffusion 3",
    "flux": "Flux",
}
# A piece of a layer's name that only this model has.
_PIECES = {
    "double_blocks": "Flux",
    "single_transformer_blocks": "Flux",
    "joint_blocks": "Stable Diffusion 3",
    "lora_te3_": "Stable Diffusion 3 or Flux",
    "lora_te2_": "Stable Diffusion XL",
    "text_encoder_2.": "Stable Diffusion XL",
    "label_emb": "Stable Diffusion XL",
    "add_embedding": "Stable Diffusion XL",
}
# Values that the cross-attention reads of the text.
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
# What a checkpoint's name or a title has in it -> the model's name.
_SD = r"(?<![a-z])(?:sd|stable[ _.-]?diffusion)[ _.-]?v?"
_WORDS = {
    re.compile(rf"{_SD}[ _.-]?xl"): "Stable Diffusion XL",
    re.compile(r"(?<![a-z])flux(?![a-z])"): "Flux",
    re.compile(rf"{_SD}3(?:[ _.-]?5)?(?!\d)"): "Stable Diffusion 3",
    re.compile(rf"(?:{_SD}2(?:[ _.-]?[01])?|\Av2-[01])(?!\d)"): "Stable Diffusion 2.x",
    re.compile(rf"(?:{_SD}1(?:[ _.-]?[1-5])?|\Av1-[1-5])(?!\d)"): "Stable Diffusion 1.x",
}
_MAX_TEXT = 200  # characters of a name or a title that are looked at


def base_model(metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The model's name; None where nothing in the file tells.

    metadata: of the file's header.
    shapes: stored name -> shape.
    """
    for field in ("modelspec.architecture", "ss_base_model_version"):
        value = metadata.get(field, "").lower()
        for beginning, name in _SPOKEN.items():
            if value.startswith(beginning):
                return name
        if value:
            return show(value)
    for piece, name in _PIECES.items():
        if any(piece in stored for stored in shapes):
            return name
    for stored, shape in shapes.items():
        if "attn2" in stored and "to_k" in stored and len(shape) > 1 and ("down" in stored or "lora_A" in stored):
            if shape[1] in _WIDTHS:
                return _WIDTHS[shape[1]]
    return _by_name(metadata)


def _by_name(metadata: Mapping[str, str]) -> str | None:
    checkpoint = re.split(r"[/\\]", metadata.get("ss_sd_model_name", ""))[-1]
    for text in (checkpoint, metadata.get("modelspec.title", "")):
        for word, name in _WORDS.items():
            if word.search(text[:_MAX_TEXT].lower()):
                return name
    return show(checkpoint) if checkpoint else None
