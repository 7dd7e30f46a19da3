"""A diffusers directory as one file of the original code: the converter that the reader is tested against.

Written from the layout of CompVis' and Stability's code, key by key and in the other direction, so that it shares no
table with tpusd/checkpoints/ldm_names.py: here a stored name is taken apart, there it is looked up.
"""

import json
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

UNET, VAE = "model.diffusion_model.", "first_stage_model."


def to_original(root: Path, **options) -> dict[str, np.ndarray]:
    """The tensors of a directory of diffusers under the original's names. options: as in `text_tensors`."""
    config = json.loads((root / "unet" / "config.json").read_text())
    tensors = {}
    for name, value in load_file(root / "unet" / "diffusion_pytorch_model.safetensors").items():
        tensors[UNET + unet_name(name, config)] = value
    levels = len(json.loads((root / "vae" / "config.json").read_text())["block_out_channels"])
    for name, value in load_file(root / "vae" / "diffusion_pytorch_model.safetensors").items():
        own = vae_name(name, levels)
        is_conv = ".attn_1." in own and value.ndim == 2
        tensors[VAE + own] = value[:, :, None, None] if is_conv else value
    return tensors | text_tensors(root, **options)


def text_tensors(
    root: Path, *, with_level: bool = True, linear_projection: bool = False, extra_layer: bool = True
) -> dict[str, np.ndarray]:
    """Of the text encoders. with_level: CLIP's names begin with `text_model.`.

    linear_projection: OpenCLIP's projection is stored as that of a linear layer. extra_layer: SD 2's file has the layer
    that the model does not use.
    """
    is_xl = (root / "text_encoder_2").is_dir()
    clip = load_file(root / "text_encoder" / "model.safetensors")
    is_open = json.loads((root / "text_encoder" / "config.json").read_text())["hidden_act"] == "gelu"
    if not is_xl and is_open:
        return open_clip(clip, "cond_stage_model.model.", extra_layer=extra_layer)
    prefix = "conditioner.embedders.0.transformer." if is_xl else "cond_stage_model.transformer."
    found = {prefix + (name if with_level else name.removeprefix("text_model.")): value for name, value in clip.items()}
    positions = np.arange(77, dtype=np.float32)[None] + np.float32(1e-7)  # as files have them that were merged
    found[f"{prefix}{'text_model.' if with_level else ''}embeddings.position_ids"] = positions
    if is_xl:
        second = load_file(root / "text_encoder_2" / "model.safetensors")
        found |= open_clip(second, "conditioner.embedders.1.model.", linear_projection=linear_projection)
    return found


def unet_name(name: str, config: dict) -> str:
    """One name of UNet2DConditionModel -> the original's."""
    per_level = config["layers_per_block"]
    has_attention = [kind.startswith("CrossAttn") for kind in config["up_block_types"]]
    whole = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    }  # fmt: skip
    module, _, leaf = name.rpartition(".")
    if module in whole:
        return f"{whole[module]}.{leaf}"
    if m := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        place = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}[m[1], m[2]]
        return f"middle_block.{place}.{resnet_layer(m[3]) if m[1] == 'resnets' else m[3]}"
    m = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    half, level, kind, layer, rest = m[1], int(m[2]), m[3], int(m[4]), m[5]
    if kind == "downsamplers":
        return f"input_blocks.{(per_level + 1) * (level + 1)}.0.op.{leaf}"
    if kind == "upsamplers":
        place = 2 if has_attention[level] else 1
        return f"output_blocks.{(per_level + 1) * level + per_level}.{place}.conv.{leaf}"
    number = (per_level + 1) * level + layer + (1 if half == "down" else 0)
    blocks = "input_blocks" if half == "down" else "output_blocks"
    if kind == "resnets":
        return f"{blocks}.{number}.0.{resnet_layer(rest)}"
    return f"{blocks}.{number}.1.{rest}"


def resnet_layer(rest: str) -> str:
    """A layer of diffusers' ResnetBlock2D -> that of the original's ResBlock."""
    layers = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    layer, _, leaf = rest.partition(".")
    return f"{layers[layer]}.{leaf}"


def vae_name(name: str, levels: int) -> str:
    """One name of AutoencoderKL -> the original's."""
    name = re.sub(r"\.mid_block\.attentions\.0\.", ".mid.attn_1.", name)
    name = re.sub(r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", name)
    name = re.sub(r"\.down_blocks\.(\d)\.resnets\.", r".down.\1.block.", name)
    name = re.sub(r"\.down_blocks\.(\d)\.downsamplers\.0\.", r".down.\1.downsample.", name)
    name = re.sub(r"\.up_blocks\.(\d)\.resnets\.", lambda m: f".up.{levels - 1 - int(m[1])}.block.", name)
    name = re.sub(r"\.up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f".up.{levels - 1 - int(m[1])}.upsample.", name)
    name = name.replace(".conv_norm_out.", ".norm_out.").replace(".conv_shortcut.", ".nin_shortcut.")
    for theirs, ours in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        name = name.replace(f".attn_1.{theirs}.", f".attn_1.{ours}.")
    return name


def open_clip(
    clip: dict[str, np.ndarray], prefix: str, *, linear_projection: bool = False, extra_layer: bool = False
) -> dict[str, np.ndarray]:
    """The tensors of a CLIPTextModel as OpenCLIP has them."""
    found, layers = {}, 0
    for name, value in clip.items():
        if name == "text_projection.weight":
            found["text_projection.weight" if linear_projection else "text_projection"] = (
                value if linear_projection else np.ascontiguousarray(value.T)
            )
        elif name == "text_model.embeddings.position_embedding.weight":
            found["positional_embedding"] = value
        elif name == "text_model.embeddings.token_embedding.weight":
            found["token_embedding.weight"] = value
        elif name.startswith("text_model.final_layer_norm."):
            found[name.replace("text_model.final_layer_norm", "ln_final")] = value
        elif m := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            layers = max(layers, int(m[1]) + 1)
            block = f"transformer.resblocks.{m[1]}"
            if m[2] == "self_attn.q_proj":
                others = [clip[name.replace("q_proj", other)] for other in ("q_proj", "k_proj", "v_proj")]
                found[f"{block}.attn.in_proj_{m[3]}"] = np.concatenate(others)
            elif m[2] not in ("self_attn.k_proj", "self_attn.v_proj"):
                layer = {
                    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
                    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
                }[m[2]]  # fmt: skip
                found[f"{block}.{layer}.{m[3]}"] = value
    if extra_layer:
        last = f"transformer.resblocks.{layers - 1}."
        unused = {
            n.replace(last, f"transformer.resblocks.{layers}."): v for n, v in found.items() if n.startswith(last)
        }
        found |= {name: value * 2 for name, value in unused.items()}
        width = clip["text_model.final_layer_norm.weight"].shape[0]
        found["text_projection"] = np.ones((width, width), np.float32)
    found["logit_scale"] = np.float32(4.6)
    return {prefix + name: np.asarray(value) for name, value in found.items()}


def write_original(root: Path, file: Path, change=None, metadata=None, **options) -> Path:
    """A single file of the directory at `root`. change: gets the tensors and edits them."""
    tensors = to_original(root, **options)
    if change is not None:
        change(tensors)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, file, metadata=metadata)
    return file


def controlnet_name(name: str, config: dict) -> str:
    """One name of ControlNetModel -> the original's, without `control_model.`."""
    if m := re.fullmatch(r"controlnet_down_blocks\.(\d+)\.(\w+)", name):
        return f"zero_convs.{m[1]}.0.{m[2]}"
    if m := re.fullmatch(r"controlnet_mid_block\.(\w+)", name):
        return f"middle_block_out.0.{m[1]}"
    if m := re.fullmatch(r"controlnet_cond_embedding\.(\w+)(?:\.(\d+))?\.(\w+)", name):
        last = 4 * (len(config["conditioning_embedding_out_channels"]) - 1) + 2
        place = {"conv_in": 0, "conv_out": last}.get(m[1])
        return f"input_hint_block.{2 * (int(m[2]) + 1) if place is None else place}.{m[3]}"
    return unet_name(name, {**config, "up_block_types": config["down_block_types"]})
