"""What a .safetensors file is, by the names and shapes of its tensors: a whole checkpoint, or something else.

Knows no contents, and none of our networks.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tpusd.checkpoints.formats.safetensors import TensorInfo

UNET = "model.diffusion_model."


@dataclass(frozen=True, kw_only=True)
class Kind:
    """name: a short one, for programs. text: what it is, as in `is a LoRA`. advice: what to do with it instead."""

    name: str
    text: str
    advice: str


_OTHER = "choose a file of Stable Diffusion 1, 2 or XL"
_ADAPTER = "a LoRA changes a checkpoint, and is not one itself; " + _OTHER
EMBEDDING = Kind(
    name="embedding",
    text="an embedding (textual inversion)",
    advice="use it beside a checkpoint: embeddings=[{path: FILE, token: NAME}]",
)
_CONTROLNET = Kind(
    name="controlnet",
    text="a ControlNet",
    advice="use it with model.controlnets=[{path: FILE}] beside a checkpoint of its base model",
)
_T2I_ADAPTER = Kind(
    name="t2i_adapter",
    text="a T2I-Adapter",
    advice="use it with model.controlnets=[{path: FILE}] beside a checkpoint of its base model",
)
# A pattern of which some tensor's name has a part -> what the file is. The first that is found decides.
_BY_NAME: tuple[tuple[str, Kind], ...] = (
    (r"^lora_controlnet$", Kind(name="control_lora", text="a Control-LoRA, which is not implemented", advice=_OTHER)),
    (r"^lllite_", Kind(name="lllite", text="a ControlNet-LLLite, which is not implemented", advice=_OTHER)),
    (r"^(control_model\.|controlnet_cond_embedding\.|controlnet_down_blocks\.|input_hint_block\.)", _CONTROLNET),
    (
        r"\.lora_(up|down|mid|A|B)\.|_lora\.(up|down)\.|\.lora\.(up|down)\.|\.lora_linear_layer\.|"
        r"\.hada_w|\.lokr_w|\.dora_scale$|\.(oft|boft)_",
        Kind(name="lora", text="a LoRA", advice=_ADAPTER),
    ),
    (
        r"^(emb_params|clip_[lg]|text_encoders_[01]|string_to_param\..*)$",
        EMBEDDING,
    ),
    (r"^(adapter\.)?body\.\d+\.((resnets|body)\.\d+\.)?block1\.", _T2I_ADAPTER),
    (r"^(image_proj|ip_adapter)\.", Kind(name="ip_adapter", text="an IP-Adapter", advice=_OTHER)),
    (r"motion_modules\.", Kind(name="motion", text="AnimateDiff's motion module", advice=_OTHER)),
    (r"(^|\.)joint_blocks\.\d", Kind(name="sd3", text="Stable Diffusion 3, which is not implemented", advice=_OTHER)),
    (r"(^|\.)double_blocks\.\d", Kind(name="flux", text="Flux, which is not implemented", advice=_OTHER)),
    (
        r"(^|\.)(noise_refiner|context_refiner|layers\.\d+\.adaLN_modulation)\.",
        Kind(name="transformer", text="a diffusion transformer, which is not implemented", advice=_OTHER),
    ),
    (r"^(down|prior|up)_?\w*\.effnet_|^effnet_mapper\.", Kind(
        name="cascade", text="Stable Cascade, which is not implemented", advice=_OTHER)),
)  # fmt: skip
_REFINER = Kind(name="sdxl_refiner", text="SDXL's refiner, which is not implemented", advice="choose SDXL's base model")
_EDIT = Kind(
    name="pix2pix", text="InstructPix2Pix (its UNet has 8 input channels), which is not implemented", advice=_OTHER
)
_DEPTH = Kind(
    name="depth", text="SD 2's depth model (its UNet has 5 input channels), which is not implemented", advice=_OTHER
)
_BY_CHANNELS = {8: _EDIT, 5: _DEPTH}
_UNET_ALONE = Kind(
    name="unet",
    text="a UNet alone",
    advice="use it with model.unet.path=FILE beside a checkpoint of its base model",
)
_VAE_ALONE = Kind(name="vae", text="a VAE alone", advice="use it with model.vae.path=FILE beside a checkpoint")
_TEXT_ALONE = Kind(name="text_encoder", text="a text encoder alone", advice=_OTHER)
_UNKNOWN = Kind(name="unknown", text="not a checkpoint of Stable Diffusion 1, 2 or XL", advice=_OTHER)


def other_kind(tensors: Mapping[str, TensorInfo]) -> Kind | None:
    """What the file is; None if it is a checkpoint whose networks may be implemented."""
    for pattern, kind in _BY_NAME:
        found = re.compile(pattern)
        if any(found.search(name) for name in tensors):
            return kind
    names = tensors.keys()
    if not any(name.startswith(UNET) for name in names):
        return _alone(tensors)
    if "conditioner.embedders.0.model.ln_final.weight" in names:  # the base model has OpenCLIP as its second encoder
        return _REFINER
    return _BY_CHANNELS.get(input_channels(tensors) or 0)


def input_channels(tensors: Mapping[str, TensorInfo]) -> int | None:
    """Of the UNet; None where its first layer is missing or has another shape."""
    first = tensors.get(f"{UNET}input_blocks.0.0.weight")
    return first.shape[1] if first is not None and len(first.shape) == 4 else None


def has_unet(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether the file has a UNet and nothing else."""
    return other_kind(tensors) is _UNET_ALONE


def is_vae(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether the file has an autoencoder and nothing else."""
    return _alone(tensors) is _VAE_ALONE


def is_controlnet(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether the file is a ControlNet."""
    return other_kind(tensors) is _CONTROLNET


def is_t2i_adapter(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether the file is a T2I-Adapter."""
    return other_kind(tensors) is _T2I_ADAPTER


def _alone(tensors: Mapping[str, TensorInfo]) -> Kind:
    """What a file without the original's UNet is."""
    names = [re.sub(r"^(first_stage_model|vae)\.", "", name) for name in tensors]
    if any(re.match(r"(input_blocks|down_blocks)\.\d", name) for name in names):
        return _UNET_ALONE
    if any(name.startswith("decoder.conv_in.") for name in names) or any(
        re.match(r"decoder\.(layers\.)?\d+\.", name) for name in names
    ):
        return _VAE_ALONE
    if any("text_model." in name or name.startswith("transformer.resblocks.") for name in names):
        return _TEXT_ALONE
    return _UNKNOWN
