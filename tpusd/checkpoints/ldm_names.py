"""The original names of Stable Diffusion's layers, as single files have them -> the names of our modules.

The networks are those of CompVis' latent-diffusion (LDM), Stability's generative-models (SGM) and OpenCLIP; diffusers
numbers and names their layers otherwise. A table is built forward, from our names: no stored name is taken apart. So it
fits any number of levels and layers. Knows no files and no shapes.
"""

import re
from collections.abc import Iterable, Mapping

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_VAE_MID = {"resnets.0": "block_1", "attentions.0": "attn_1", "resnets.1": "block_2"}
_OPEN_CLIP_ENDS = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
OPEN_CLIP_PROJECTIONS = ("q_proj", "k_proj", "v_proj")  # one tensor holds all three, in this order


def ldm_unet_names(names: Iterable[str]) -> dict[str, str]:
    """Our name -> the original name, of modules or of parameters of UNet2DConditionModel.

    names: all names of one UNet, because the original numbers its blocks through all levels.
    """
    names = list(names)
    blocks = _unet_blocks(names)
    return {name: _mapped(name, _UNET_ENDS, blocks, {"resnets": _UNET_RESNET}) for name in names}


def ldm_controlnet_names(names: Iterable[str]) -> dict[str, str]:
    """Our name -> the original name, of modules or of parameters of ControlNetModel. names: all names of one."""
    names = list(names)
    numbers = {int(m[1]) for name in names if (m := re.match(r"controlnet_cond_embedding\.blocks\.(\d+)", name))}
    blocks = _unet_blocks(names) | {"controlnet_mid_block": "middle_block_out.0"}
    for number in {int(m[1]) for name in names if (m := re.match(r"controlnet_down_blocks\.(\d+)", name))}:
        blocks[f"controlnet_down_blocks.{number}"] = f"zero_convs.{number}.0"
    # The original counts the activations between the convolutions.
    blocks["controlnet_cond_embedding.conv_in"] = "input_hint_block.0"
    for number in numbers:
        blocks[f"controlnet_cond_embedding.blocks.{number}"] = f"input_hint_block.{2 * number + 2}"
    blocks["controlnet_cond_embedding.conv_out"] = f"input_hint_block.{2 * len(numbers) + 2}"
    return {name: _mapped(name, _UNET_ENDS, blocks, {"resnets": _UNET_RESNET}) for name in names}


def t2i_adapter_names(names: Iterable[str]) -> dict[str, str]:
    """Our name -> the original name, of parameters of T2IAdapter. names: all names of one.

    The original counts the resnets of a full adapter through all its levels.
    """
    names = list(names)
    resnets = 1 + max(int(m[1]) for name in names if (m := re.match(r"adapter\.body\.0\.resnets\.(\d+)", name)))
    is_light = not any(name.startswith("adapter.conv_in.") for name in names)
    found = {}
    for name in names:
        own = name.removeprefix("adapter.")
        place = re.match(r"body\.(\d+)\.(?:resnets\.(\d+)\.)?(.+)", own)
        if is_light:
            own = own.replace(".resnets.", ".body.")
        elif place is not None:
            own = f"body.{int(place[1]) * resnets + int(place[2] or 0)}.{place[3]}"
        found[name] = own
    return found


def ldm_vae_names(names: Iterable[str]) -> dict[str, str]:
    """Our name -> the original name, of modules or of parameters of AutoencoderKL.

    names: all names of one autoencoder, because the original numbers the decoder's levels in reverse.
    """
    names = list(names)
    last = max((int(m[1]) for name in names if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", name))), default=0)
    blocks = {}
    for level in range(last + 1):
        blocks[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        blocks[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{last - level}.upsample.conv"
        blocks[f"encoder.down_blocks.{level}.resnets"] = f"encoder.down.{level}.block"
        blocks[f"decoder.up_blocks.{level}.resnets"] = f"decoder.up.{last - level}.block"
    for half in ("encoder", "decoder"):
        blocks |= {f"{half}.mid_block.{ours}": f"{half}.mid.{theirs}" for ours, theirs in _VAE_MID.items()}
        blocks[f"{half}.conv_norm_out"] = f"{half}.norm_out"
    return {name: _mapped(name, {}, blocks, {"resnets": _VAE_RESNET, "attentions": _VAE_ATTENTION}) for name in names}


def open_clip_names(names: Iterable[str]) -> dict[str, str]:
    """Our name -> OpenCLIP's, of modules of CLIPTextModel, or of its parameters.

    q_proj, k_proj and v_proj all map to `attn.in_proj_weight` or `attn.in_proj_bias` (modules: `attn.in_proj`), which
    holds the three one after another. `text_projection` has no `.weight` there, and is transposed.
    """
    found = {}
    for name in names:
        if name.startswith("text_model.embeddings.position_embedding"):
            found[name] = "positional_embedding"
        elif name.startswith("text_projection"):
            found[name] = "text_projection"
        elif (
            m := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj(?:\.(\w+))?", name)
        ) is None:
            layer = re.sub(r"^text_model\.encoder\.layers\.", "transformer.resblocks.", name)
            found[name] = _renamed(layer, _OPEN_CLIP_ENDS | _within(layer))
        else:
            leaf = f"_{m[2]}" if m[2] is not None else ""
            found[name] = f"transformer.resblocks.{m[1]}.attn.in_proj{leaf}"
    return found


def _within(layer: str) -> dict[str, str]:
    """The names inside one of OpenCLIP's layers, with the layer's own."""
    prefix = ".".join(layer.split(".")[:3])
    return {f"{prefix}.{ours}": f"{prefix}.{theirs}" for ours, theirs in _OPEN_CLIP_LAYER.items()}


def _unet_blocks(names: Iterable[str]) -> dict[str, str]:
    """Blocks of our UNet -> blocks of the original, which counts every resnet and every downsampler."""
    there = {m[0] for name in names if (m := re.match(r"(?:down|up)_blocks\.\d+\.\w+\.\d+", name))}
    there |= {m[0] for name in names if (m := re.match(r"mid_block\.\w+\.\d+", name))}
    blocks = {}
    number = 1  # block 0 is conv_in
    for level in range(_length(there, "down_blocks.")):
        for layer in range(_length(there, f"down_blocks.{level}.resnets.")):
            blocks[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            blocks[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if f"down_blocks.{level}.downsamplers.0" in there:
            blocks[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    middle = ("resnets.0", "attentions.0", "resnets.1")
    present = [part for part in middle if f"mid_block.{part}" in there]
    blocks |= {f"mid_block.{part}": f"middle_block.{i}" for i, part in enumerate(present)}
    number = 0
    for level in range(_length(there, "up_blocks.")):
        layers = _length(there, f"up_blocks.{level}.resnets.")
        for layer in range(layers):
            blocks[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            blocks[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        place = 1 + (f"up_blocks.{level}.attentions.{layers - 1}" in there)  # after the attention, if there is one
        blocks[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{place}.conv"
    return blocks


def _length(names: Iterable[str], prefix: str) -> int:
    """One more than the highest number that follows `prefix`."""
    numbers = (name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix))
    return max(map(int, numbers), default=-1) + 1


def _mapped(
    name: str, ends: Mapping[str, str], blocks: Mapping[str, str], inside: Mapping[str, Mapping[str, str]]
) -> str:
    """One name. inside: for a kind of block, such as `resnets`, the names of the layers in it."""
    found = re.match(r"(.*\.(resnets|attentions)\.\d+)\.(.+)", name)
    if found is None:
        return _renamed(name, {**ends, **blocks})
    block, kind, rest = found.groups()
    return f"{_renamed(block, blocks)}.{_renamed(rest, inside.get(kind, {}))}"


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """`name` with its longest beginning that is in `table` replaced; a beginning ends at a dot or at the end."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        start = ".".join(parts[:length])
        if start in table:
            return ".".join([table[start], *parts[length:]])
    return name
