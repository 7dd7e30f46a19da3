"""The names and shapes of published single files, made from the naming rules, fill the published models.

The rules themselves are those of the reference: PyTorch diffusers turns the same names back.
"""

import functools
import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.checkpoints import tiny
from support.original_files import UNET, VAE, open_clip, to_original, unet_name, vae_name

from tpusd.checkpoints.fill import match, parameters
from tpusd.checkpoints.formats.safetensors import TensorInfo
from tpusd.checkpoints.formats.single_file import OriginalTensors
from tpusd.checkpoints.kinds import other_kind
from tpusd.checkpoints.packaged import packaged_architecture
from tpusd.checkpoints.prediction import find_prediction
from tpusd.checkpoints.single_file import _family, _packaged, _parts, _unused

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = json.loads(gzip.decompress((DATA / "published_keys.json.gz").read_bytes()))
ASSETS = Path(__file__).parents[2] / "tpusd" / "assets" / "published"
MODELS = ("sd15", "sd21", "sdxl")
# 686 or 1680 of the UNet, 248 of the VAE, 197 of CLIP with its positions, 6 and 12 a layer of OpenCLIP.
COUNTS = {"sd15": 686 + 248 + 197, "sd21": 686 + 248 + 6 + 12 * 24, "sdxl": 1680 + 248 + 197 + 6 + 12 * 32}


@functools.cache
def original(model: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the published single file of a model."""
    parts = {part: names["published"] for part, names in PUBLISHED[model].items()}
    config = json.loads((ASSETS / model / "unet" / "config.json").read_text())
    found = {UNET + unet_name(name, config): tuple(shape) for name, shape in parts["unet"].items()}
    for name, shape in PUBLISHED[model]["vae"]["diffusers 0.42"].items():
        own = vae_name(name, 4)
        found[VAE + own] = (*shape, 1, 1) if ".attn_1." in own and len(shape) == 2 else tuple(shape)
    if model == "sd21":
        return found | open_clip_shapes(parts["text_encoder"], "cond_stage_model.model.", extra_layer=True)
    prefix = "conditioner.embedders.0.transformer." if model == "sdxl" else "cond_stage_model.transformer."
    found |= {prefix + name: tuple(shape) for name, shape in parts["text_encoder"].items()}
    if model == "sdxl":
        found |= open_clip_shapes(parts["text_encoder_2"], "conditioner.embedders.1.model.")
    return found


def open_clip_shapes(shapes, prefix, **options) -> dict[str, tuple[int, ...]]:
    zeros = {name: np.broadcast_to(np.int8(0), shape) for name, shape in shapes.items()}
    return {name: value.shape for name, value in open_clip(zeros, prefix, **options).items()}


def header(model, **more):
    """What is used of a Safetensors before its weights are read."""
    shapes = original(model) | more
    file = Path("file")
    infos = {name: TensorInfo(shape=tuple(s), dtype="float16", file=file) for name, s in shapes.items()}
    return SimpleNamespace(tensors=infos, files=(file,), metadata={})


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_is_filled_once_and_nothing_is_left(model):
    file, architecture = header(model), packaged_architecture(model)
    assert len(file.tensors) == COUNTS[model]
    family = architecture.family
    for part, names in _parts(file, family).items():
        wanted = parameters(architecture.abstract(part))
        source = OriginalTensors(file, names, wanted, "file")
        chosen = match(family.components[part], "torch", source.tensors, wanted, "file")
        assert chosen.keys() == wanted.keys() and len(set(chosen.values())) == len(chosen)
        left = set(source.tensors) - set(chosen.values())
        assert left <= {"text_model.embeddings.position_ids", "logit_scale", "text_projection.weight"}
        assert ("text_projection.weight" in left) == (model == "sd21" and part == "text_encoder")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_what_a_published_file_is_follows_from_its_names_and_shapes(model):
    file = header(model)
    assert other_kind(file.tensors) is None
    family = _family(file)
    assert family is packaged_architecture(model).family
    assert packaged_architecture(model) in _packaged(file, family)
    assert not _unused(file, _parts(file, family))
    assert find_prediction(file, "epsilon", ["epsilon"], "file").type == "epsilon"


def as_torch(values):
    torch = pytest.importorskip("torch")
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()}


def reference(tensors, unet, vae, is_open_clip):
    """PyTorch diffusers' own conversion: part -> tensors by diffusers' names."""
    pytest.importorskip("diffusers")
    from diffusers.loaders import single_file_utils as theirs

    text = SimpleNamespace(config=SimpleNamespace(hidden_size=32))  # used where the file has no projection
    found = {"unet": theirs.convert_ldm_unet_checkpoint(dict(tensors), unet)}
    found["vae"] = theirs.convert_ldm_vae_checkpoint(dict(tensors), vae)
    if is_open_clip:
        found["text_encoder"] = theirs.convert_open_clip_checkpoint(text, dict(tensors), "cond_stage_model.model.")
    elif any(name.startswith("conditioner.") for name in tensors):
        found["text_encoder"] = theirs.convert_ldm_clip_checkpoint(
            dict(tensors), "conditioner.embedders.0.transformer."
        )
        second = theirs.convert_open_clip_checkpoint(text, dict(tensors), "conditioner.embedders.1.model.")
        found["text_encoder_2"] = second
    else:
        found["text_encoder"] = theirs.convert_ldm_clip_checkpoint(dict(tensors))
    return found


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("model", MODELS)
def test_the_reference_turns_the_published_names_back(model):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.empty(shape, device="meta") for name, shape in original(model).items()}
    configs = [json.loads((ASSETS / model / part / "config.json").read_text()) for part in ("unet", "vae")]
    for part, found in reference(tensors, *configs, is_open_clip=model == "sd21").items():
        published = PUBLISHED[model][part]["diffusers 0.42" if part == "vae" else "published"]
        ignored = {"text_model.embeddings.position_ids", "text_projection.weight"}
        shapes = {name: list(value.shape) for name, value in found.items() if name in published or name not in ignored}
        expected = {name: list(shape) for name, shape in published.items() if name not in ignored or name in found}
        assert shapes == expected, part


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("layout", ["sd1", "sd2", "sdxl"])
def test_the_reference_turns_the_converters_tensors_back(layout):
    from safetensors.numpy import load_file

    root = tiny(layout)
    configs = [json.loads((root / part / "config.json").read_text()) for part in ("unet", "vae")]
    tensors = as_torch(to_original(root, extra_layer=False))
    for part, found in reference(tensors, *configs, is_open_clip=layout == "sd2").items():
        name = "model" if part.startswith("text") else "diffusion_pytorch_model"
        stored = load_file(root / part / f"{name}.safetensors")
        found.pop("text_model.embeddings.position_ids", None)
        assert found.keys() == stored.keys()
        for key, value in stored.items():
            np.testing.assert_array_equal(found[key].numpy().reshape(value.shape), value)
