"""Random LoRA files for tiny checkpoints, in every naming, and the weights that a merge of ours gives."""

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
    opened_checkpoint, devices = checkpoint(layout), Devices(jax.devices()[:1])
    base = {part: base_weights(layout, part) for part in opened_checkpoint.parts}
    parts = MergedWeights(opened_checkpoint, devices, lambda part: base[part]).parts(loras)
    changed = {(d.part, d.parameter.path) for scaled in loras for d in scaled.lora.differences}
    found = {}
    for part in {part for part, _ in changed}:
        model = opened_checkpoint.abstract(part)
        structure = jax.tree.structure(nnx.state(model, nnx.Param))
        flat = dict(nnx.to_flat_state(jax.tree.unflatten(structure, parts(part))))
        for name, parameter in parameters(model).items():
            if (part, parameter.path) in changed:
                found[part, name] = parameter.to_torch(np.asarray(flat[parameter.path].get_value()))
    return found


@functools.cache
def base_weights(layout, part):
    return leaves(load_weights(checkpoint(layout), part, param_dtype=np.float32))
