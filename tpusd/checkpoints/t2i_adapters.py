"""The config of a T2I-Adapter in one file, which the names and shapes of its tensors say."""

import re
from collections.abc import Mapping

from tpusd.checkpoints.formats.safetensors import TensorInfo
from tpusd.errors import UserError
from tpusd.networks.config import MAX_LEVELS
from tpusd.networks.t2i_adapter import FULL, FULL_XL, LIGHT, T2IAdapterConfig

# Channels of the first layer, which reads squares of pixels -> channels of the picture, pixels along a square's side.
_INPUTS = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}
_RESNETS = 2  # of a level, in every published full adapter


def config_of(tensors: Mapping[str, TensorInfo], where: str) -> T2IAdapterConfig:
    """The config. tensors: with the names of diffusers or of the original code. Raises UserError."""
    shapes = {name.removeprefix("adapter."): info.shape for name, info in tensors.items()}
    is_light = "conv_in.weight" not in shapes
    first = shapes.get("body.0.in_conv.weight" if is_light else "conv_in.weight", ())
    inputs = _INPUTS.get(first[1]) if len(first) == 4 else None
    if inputs is None:
        raise UserError(
            f"{where}: has no first layer of a T2I-Adapter for 1 or 3 channels of 8 or 16 pixels; give a directory of "
            "diffusers, which has a config.json"
        )
    ends = [shapes.get(f"body.{level}.out_conv.weight", ()) for level in range(MAX_LEVELS + 1)]
    if is_light:
        resnets = _count(shapes, r"body\.0\.(?:resnets|body)\.(\d+)\.block1\.weight")
        widths = [shape[0] for shape in ends if shape][:-1]
    elif "body.0.resnets.0.block1.weight" in shapes:
        resnets = _count(shapes, r"body\.0\.resnets\.(\d+)\.block1\.weight")
        widths = _widths(shapes, "body.{}.resnets.0.block1.weight", 1)
    else:  # the original counts the resnets of all levels, the first of which may change the channels
        changes = [place for place in range(1, MAX_LEVELS**2) if f"body.{place}.in_conv.weight" in shapes]
        resnets = changes[0] if changes else _RESNETS
        widths = _widths(shapes, "body.{}.block1.weight", resnets)
    values = {
        "in_channels": inputs[0],
        "channels": widths,
        "num_res_blocks": resnets,
        "downscale_factor": inputs[1],
        "adapter_type": LIGHT if is_light else FULL_XL if inputs[1] == 16 else FULL,
    }
    try:
        return T2IAdapterConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{where}: {error}; choose another file") from None


def _widths(shapes: Mapping[str, tuple[int, ...]], name: str, step: int) -> list[int]:
    """Channels of each level. name: of a level's first convolution, by its number, of which each level has `step`."""
    found = [shapes.get(name.format(level * step), ()) for level in range(MAX_LEVELS + 1)]
    return [shape[0] for shape in found if shape]


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    numbers = (int(m[1]) for name in shapes if (m := re.fullmatch(pattern, name)))
    return 1 + max(numbers, default=-1)
