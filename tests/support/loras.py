"""Random LoRA files for tiny checkpoints, in every naming, and the weights that our merge gives."""

import functools
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from support.checkpoints import opened, tiny
from tpusd.checkpoints import load_weights
from tpusd.checkpoints.adapters import AdapterFile, open_lora
from tpusd.checkpoints.fill import parameters
from tpusd.engine.adapters import MergedWeights, ScaledLora
from tpusd.engine.blueprint import leaves
from tpusd.engine.devices import Devices


@functools.cache
def checkpoint(layout="sd1"):
    return opened(tiny(layout))


@functools.cache
def weight_shapes(layout, part):
    """Our layer's path -> the shape of its weight in PyTorch's layout."""
    own = parameters(checkpoint(layout).abstract(part))
    return {
        name.removesuffix(".weight"): parameter.stored_shapes("torch")[0]
        for name, parameter in own.items()
        if name.endswith(".weight")
    }


def layers(layout, part, *words, ndim=None):
    """The layers whose path has one of these words; all without words."""
    return [
        path
        for path, shape in weight_shapes(layout, part).items()
        if (not words or any(word in path for word in words)) and (ndim is None or len(shape) == ndim)
    ]


def random(*shape, seed=0, size=0.3):
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * size).astype(np.float32)


def write(path: Path, tensors, metadata=None) -> Path:
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def opened_lora(path, layout="sd1"):
    where = f"loras[0].path={path}"
    return open_lora(AdapterFile(path=Path(path), where=where), checkpoint(layout), "tiny")


def merged(path, layout="sd1", *, scale=1.0, text_encoder_scale=None):
    """(part, PyTorch name of a parameter) -> its merged value in PyTorch's layout, of those that the file changes."""
    lora = opened_lora(path, layout)
    return values(layout, [ScaledLora(lora=lora, scale=scale, text_encoder_scale=text_encoder_scale or scale)])


def values(layout, loras):
    """As `merged`, of several LoRAs with their scales."""
    found = {}
    parameters_of = {part: parameters(checkpoint(layout).abstract(part)) for part in checkpoint(layout).parts}
    for (part, path), array in merged_arrays(layout, loras).items():
        name, parameter = next((n, p) for n, p in parameters_of[part].items() if p.path == path)
        found[part, name] = parameter.to_torch(np.asarray(array))
    return found


def merged_arrays(layout, loras, *, devices=1, dtype="float32"):
    """(part, path of a parameter) -> its merged value on the devices, of those that the LoRAs change."""
    on = Devices(jax.devices()[:devices])

    def base(part):
        return jax.device_put(base_weights(layout, part, dtype), on.replicated)

    parts = MergedWeights(checkpoint(layout), on, base).parts(loras)
    changed = {(d.part, d.parameter.path) for scaled in loras for d in scaled.lora.differences}
    found = {}
    for part in {part for part, _ in changed}:
        structure = jax.tree.structure(nnx.state(checkpoint(layout).abstract(part), nnx.Param))
        flat = dict(nnx.to_flat_state(jax.tree.unflatten(structure, parts(part))))
        found |= {(part, path): flat[path].get_value() for own, path in changed if own == part}
    return found


@functools.cache
def base_weights(layout, part, dtype="float32"):
    return leaves(load_weights(checkpoint(layout), part, param_dtype=dtype))
