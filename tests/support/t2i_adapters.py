"""Random T2I-Adapters for tiny checkpoints, as directories of diffusers that both sides read."""

import atexit
import dataclasses
import functools
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np

from support.checkpoints import load_tool
from tpusd.checkpoints.save import save_part
from tpusd.families.controls import T2I_ADAPTER_COMPONENT
from tpusd.networks.t2i_adapter import T2IAdapter, T2IAdapterConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Of a checkpoint's layout; with three levels there is a feature map for the mid block of SDXL.
CONFIGS = {
    "sd1": T2IAdapterConfig(channels=(16, 32)),
    "sdxl": T2IAdapterConfig(channels=(16, 32), adapter_type="full_adapter_xl", downscale_factor=16),
    "sd1_three": T2IAdapterConfig(channels=(16, 32, 32)),
    "sdxl_three": T2IAdapterConfig(channels=(16, 32, 32, 32), adapter_type="full_adapter_xl", downscale_factor=16),
    "light": T2IAdapterConfig(channels=(16, 32), adapter_type="light_adapter", num_res_blocks=4),  # for sd1_three
}


def _temporary() -> Path:
    root = Path(tempfile.mkdtemp(prefix="tpusd-t2i-adapter-"))
    atexit.register(shutil.rmtree, root)
    return root


@functools.cache
def tiny_adapter(name: str = "sd1", seed: int = 0, **changes) -> Path:
    """A random float32 T2I-Adapter, shared by all tests of the process: do not write to it. name: of CONFIGS."""
    config = dataclasses.replace(CONFIGS[name], **changes)
    rng, root = np.random.default_rng([8, seed]), _temporary()
    state = load_tool("make_tiny_checkpoint").random_state(T2IAdapter, config, rng)
    save_part(root, "adapter", T2I_ADAPTER_COMPONENT, config, state, dtype=np.dtype("float32"))
    return root


@functools.cache
def three_levels(layout: str) -> Path:
    """A random checkpoint whose UNet has three levels. layout: sd1 or sdxl."""
    tool, root = load_tool("make_tiny_checkpoint"), _temporary()
    parts = tool.tiny_configs(layout)
    attends, plain = "CrossAttn{}Block2D", "{}Block2D"
    levels = (attends, attends, plain) if layout == "sd1" else (plain, attends, attends)
    changes = {
        "block_out_channels": (16, 32, 32),
        "down_block_types": tuple(level.format("Down") for level in levels),
        "up_block_types": tuple(level.format("Up") for level in reversed(levels)),
    }
    if layout == "sdxl":
        changes |= {"attention_head_dim": (2, 4, 4), "transformer_layers_per_block": (1, 1, 2)}
    unet = dataclasses.replace(parts["unet"], **changes)
    tool.tiny_configs = lambda layout: {**parts, "unet": unet}
    tool.make_tiny_checkpoint(root, layout=layout)
    return root


def original_name(name: str, config: T2IAdapterConfig) -> str:
    """One name of diffusers' T2IAdapter -> the original's."""
    name = name.removeprefix("adapter.")
    if config.adapter_type == "light_adapter":
        return name.replace(".resnets.", ".body.")
    if m := re.fullmatch(r"body\.(\d+)\.resnets\.(\d+)\.(.+)", name):
        return f"body.{int(m[1]) * config.num_res_blocks + int(m[2])}.{m[3]}"
    if m := re.fullmatch(r"body\.(\d+)\.in_conv\.(\w+)", name):
        return f"body.{int(m[1]) * config.num_res_blocks}.in_conv.{m[2]}"
    return name
