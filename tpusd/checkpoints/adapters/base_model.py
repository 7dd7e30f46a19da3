"""Which model a LoRA was trained for, as far as its file says: for error lines and for the user.

Trainers write it into the file's metadata; otherwise the names and widths of its layers tell.
"""

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
            return _WIDTHS.get(shape[1])
    return None
