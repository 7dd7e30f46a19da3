"""8-bit weights that are stored with a scale, as ComfyUI writes them: weight = stored * scale, in float32.

Two forms: `X.scale_weight` beside `X.weight`, and the later `X.weight_scale`, whose format is named in `X.comfy_quant`
or in the file's header. Scales of a layer's input are for arithmetic in 8 bits, which is not done here.
"""

import json
import math
from collections.abc import Mapping

import numpy as np

from tpusd.checkpoints.formats.safetensors import FLOAT8, Safetensors
from tpusd.errors import UserError, show

_SCALES = (".scale_weight", ".weight_scale")
_UNUSED = (".scale_input", ".input_scale", ".comfy_quant")
_MARKER = "scaled_fp8"  # an empty tensor, whose type is that of the weights
_HEADER = "_quantization_metadata"
_MAX_FORMAT_BYTES = 4096  # of the JSON of one layer
_FLOATS = ("float32", "float16", "bfloat16")


def find_scales(file: Safetensors, where: str) -> dict[str, str]:
    """The name of a stored weight -> the name of its scale. Raises UserError for a form that is not implemented."""
    for name, format_name in _named_formats(file, where).items():
        if format_name not in FLOAT8:
            raise UserError(
                f"{where}: {show(name)} is quantized as {show(format_name)}, which is not implemented (implemented: "
                f"{', '.join(FLOAT8)}); choose a file in fp16, bf16 or fp8"
            )
    scales = {}
    for name, info in file.tensors.items():
        layer, dot, kind = name.rpartition(".")
        weight = f"{layer}.weight"
        if dot + kind not in _SCALES or weight not in file.tensors:
            continue
        shape = file.tensors[weight].shape
        fits = math.prod(info.shape) == 1 or (shape and info.shape in ((shape[0],), (shape[0], 1)))
        if file.tensors[weight].dtype not in FLOAT8 or info.dtype not in _FLOATS or not fits:
            raise UserError(
                f"{where}: {show(name)} {info.dtype} {show(info.shape)} is not a scale for a weight of "
                f"{show(file.tensors[weight].dtype)} {show(shape)}; choose a file in fp16, bf16 or fp8"
            )
        scales[weight] = name
    return scales


def is_about_scales(name: str) -> bool:
    """Whether a tensor describes how others are stored, and is no weight itself."""
    return name.endswith((*_SCALES, *_UNUSED)) or name.rpartition(".")[2] == _MARKER


def scaled(stored: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """stored * scale in float32. scale: one number, or one for each row."""
    factors = scale.astype(np.float32).reshape(-1, *[1] * (stored.ndim - 1)) if scale.size > 1 else scale.reshape(())
    return stored.astype(np.float32) * np.float32(factors)


def _named_formats(file: Safetensors, where: str) -> Mapping[str, object]:
    """Layer -> the format that the file names for it: text, if the file is sound."""
    formats: dict[str, object] = {}
    if (header := file.metadata.get(_HEADER)) is not None:
        layers = _json(header, where).get("layers")
        if isinstance(layers, dict):
            formats |= {str(name): _format(value) for name, value in layers.items()}
    for name, info in file.tensors.items():
        if name.endswith(".comfy_quant"):
            if info.dtype != "uint8" or math.prod(info.shape) > _MAX_FORMAT_BYTES:
                raise UserError(f"{where}: {show(name)} must be a short JSON text; get the checkpoint again")
            text = file.read(name).tobytes().decode(errors="replace")
            formats[name.removesuffix(".comfy_quant")] = _format(_json(text, where))
    return formats


def _format(value: object) -> object:
    return value.get("format") if isinstance(value, dict) else value


def _json(text: str, where: str) -> dict[str, object]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{where}: the names of its 8-bit formats are not valid JSON; get the checkpoint again")
    return values
