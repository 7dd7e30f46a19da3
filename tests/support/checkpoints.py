"""Tiny checkpoints for tests, made once per layout, and copies of them to damage."""

import atexit
import functools
import importlib.util
import json
import math
import shutil
import struct
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpusd.checkpoints import ModelSource, load_weights, open_checkpoint
from tpusd.errors import UserError

ROOT = Path(__file__).parents[2]
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def load_tool(name: str):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(layout: str = "sd1") -> Path:
    """A random float32 checkpoint of this layout, shared by all tests of the process: do not write to it."""
    return _tiny(layout)


@functools.cache
def _tiny(layout: str) -> Path:
    root = Path(tempfile.mkdtemp(prefix="tpusd-tiny-"))
    atexit.register(shutil.rmtree, root)
    load_tool("make_tiny_checkpoint").make_tiny_checkpoint(root / layout, layout=layout)
    return root / layout


def copy(tmp_path: Path, layout: str = "sd1") -> Path:
    """A copy of `tiny` to damage."""
    return Path(shutil.copytree(tiny(layout), tmp_path / "checkpoint"))


def edit(path: Path, **changes) -> None:
    """Changes fields of a JSON file; Ellipsis removes one."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def error_of(root, act=None, **source) -> str:
    """The UserError's one line for a checkpoint at `root`."""
    with pytest.raises(UserError) as caught:
        checkpoint = open_checkpoint(ModelSource(path=str(root), **source))
        if act is not None:
            act(checkpoint)
    line = str(caught.value)
    assert "\n" not in line and line.isprintable()
    return line


def opened(root, **source):
    return open_checkpoint(ModelSource(path=str(root), **source))


def weights(root, part, param_dtype=jnp.float32, **source):
    return load_weights(opened(root, **source), part, param_dtype=param_dtype)


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def edit_tensor(file: Path, name: str, change) -> None:
    """Replaces a tensor of a safetensors file by change(tensor), or by the tensor that `change` changes in place."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(file)
    changed = change(tensors[name])
    tensors[name] = tensors[name] if changed is None else changed
    save_file(tensors, file)


def hollow(path, shapes):
    """A safetensors file of float32 tensors that is a hole: any size, and no disk is used."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    data = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + offset)
