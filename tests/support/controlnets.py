"""Random ControlNets for tiny checkpoints, as directories of diffusers that both sides read."""

import atexit
import dataclasses
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np

from support.checkpoints import load_tool
from tpusd.checkpoints.save import save_part
from tpusd.families.controls import CONTROLNET_COMPONENT
from tpusd.networks.controlnet import ControlNetConfig, ControlNetModel

WEIGHTS = "diffusion_pytorch_model.safetensors"
WIDTHS = (4, 8, 8, 16)  # of the convolutions that read the picture


def tiny_config(layout: str = "sd1", **changes) -> ControlNetConfig:
    unet = load_tool("make_tiny_checkpoint").tiny_configs(layout)["unet"]
    own = dataclasses.replace(ControlNetConfig.of_unet(unet), conditioning_embedding_out_channels=WIDTHS)
    return dataclasses.replace(own, **changes)


@functools.cache
def tiny_controlnet(layout: str = "sd1", seed: int = 0, **changes) -> Path:
    """A random float32 ControlNet for `tiny(layout)`, shared by all tests of the process: do not write to it."""
    root = Path(tempfile.mkdtemp(prefix="tpusd-controlnet-"))
    atexit.register(shutil.rmtree, root)
    config = tiny_config(layout, **changes)
    state = load_tool("make_tiny_checkpoint").random_state(ControlNetModel, config, np.random.default_rng([7, seed]))
    save_part(root, "controlnet", CONTROLNET_COMPONENT, config, state, dtype=np.dtype("float32"))
    return root
