"""The real sizes without weights: what is published fills the models that the published configs describe."""

import functools
import gzip
import json
import math
from pathlib import Path

import jax.numpy as jnp
import pytest

import tpusd
from tpusd.checkpoints.fill import match, parameters
from tpusd.checkpoints.formats.safetensors import TensorInfo
from tpusd.errors import UserError
from tpusd.families.sdxl import SDXL
from tpusd.networks.abstract import abstract_model

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[1] / "data"
PUBLISHED_CONFIGS = Path(tpusd.__file__).parent / "assets" / "published"
COMPONENTS = SDXL.components  # of all parts; the other families have some of them
PUBLISHED = json.loads(gzip.decompress((DATA / "published_keys.json.gz").read_bytes()))
FLAX = json.loads(gzip.decompress((DATA / "published_keys_flax.json.gz").read_bytes()))
COUNTS = {
    ("sd15", "unet"): 859_520_964,
    ("sd21", "unet"): 865_910_724,
    ("sdxl", "unet"): 2_567_463_684,
    ("sd15", "vae"): 83_653_863,
    ("sd21", "vae"): 83_653_863,
    ("sdxl", "vae"): 83_653_863,
    ("sd15", "text_encoder"): 123_060_480,
    ("sd21", "text_encoder"): 340_387_840,
    ("sdxl", "text_encoder"): 123_060_480,
    ("sdxl", "text_encoder_2"): 694_659_840,
}
SPELLINGS = [
    (model, part, name) for model, parts in PUBLISHED.items() for part, names in parts.items() for name in names
]


@functools.cache
def wanted(model, part):
    values = json.loads((PUBLISHED_CONFIGS / model / part / "config.json").read_text())
    component = COMPONENTS[part]
    config = component.config.from_dict(values)
    return parameters(abstract_model(component.network, config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))


def infos(shapes):
    file = Path("file")
    return {name: TensorInfo(shape=tuple(shape), dtype="float16", file=file) for name, shape in shapes.items()}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("model", "part"), COUNTS)
def test_parameter_counts_are_the_published_ones(model, part):
    assert sum(math.prod(p.shape) for p in wanted(model, part).values()) == COUNTS[model, part]


@pytest.mark.parametrize(("model", "part", "spelling"), SPELLINGS)
def test_published_names_and_shapes_fill_every_parameter_once(model, part, spelling):
    stored = infos(PUBLISHED[model][part][spelling])
    chosen = match(COMPONENTS[part], "torch", stored, wanted(model, part), "file")
    assert chosen.keys() == wanted(model, part).keys()
    assert len(set(chosen.values())) == len(chosen)
    ignored = set(stored) - set(chosen.values())
    assert ignored <= {"text_model.embeddings.position_ids"}


@pytest.mark.parametrize("model", FLAX)
@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_published_flax_names_and_shapes_fill_every_parameter_once(model, part):
    chosen = match(COMPONENTS[part], "flax", infos(FLAX[model][part]), wanted(model, part), "file")
    assert chosen.keys() == wanted(model, part).keys()
    assert set(chosen.values()) == FLAX[model][part].keys()


def test_another_models_names_do_not_fit():
    with pytest.raises(UserError, match="do not fit"):
        match(
            COMPONENTS["unet"], "torch", infos(PUBLISHED["sd21"]["unet"]["published"]), wanted("sd15", "unet"), "file"
        )
