"""Stable Diffusion and SDXL as families, and the promise that nothing else knows their parts."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.checkpoints import copy, edit, error_of, opened, tiny
from support.runs import config

import tpusd
from tpusd.checkpoints import load_weights
from tpusd.checkpoints.source import likely_family
from tpusd.config.sampler import SamplerSettings
from tpusd.config.schema import saved_config
from tpusd.errors import UserError
from tpusd.families.base import Tokens
from tpusd.families.latent_diffusion import TextConditioning
from tpusd.families.registry import FAMILIES, find_family
from tpusd.families.sdxl import SDXL
from tpusd.families.stable_diffusion import StableDiffusion
from tpusd.plan.sizes import image_size
from tpusd.samplers.schedule import SchedulerConfig

BOTH = (StableDiffusion(), SDXL())


@pytest.mark.parametrize("prefix", ["", "Flax"])
def test_each_pipeline_class_has_one_family(prefix):
    assert find_family(f"{prefix}StableDiffusionPipeline").name == "stable_diffusion"
    assert find_family(f"{prefix}LatentConsistencyModelPipeline").name == "stable_diffusion"
    assert find_family(f"{prefix}StableDiffusionXLPipeline").name == "sdxl"
    assert find_family(f"{prefix}FluxPipeline") is None
    names = [name for family in FAMILIES for name in family.pipeline_classes]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["text_encoder_2", "tokenizer_2", "diffusion_pytorch_model", "UNet2DConditionModel"])
def test_only_the_families_name_what_they_consist_of(name):
    root = Path(tpusd.__file__).parent
    assert {file.parent.name for file in root.rglob("*.py") if f'"{name}"' in file.read_text()} == {"families"}


def test_sdxl_refuses_the_float16_autoencoder_alone():
    overflows, works = config("precision.vae.dtype=float16"), config("precision=fp16")
    with pytest.raises(UserError, match="precision.vae.dtype=float16: SDXL's VAE overflows"):
        SDXL().check(overflows)
    SDXL().check(works)
    StableDiffusion().check(overflows)


@pytest.mark.slow
def test_what_has_no_effect_on_a_unet_that_reads_the_guidance_is_named(tmp_path):
    def notes(path, *overrides):
        made = config(*overrides)
        saved = saved_config(made, rows=made.prompts.rows, height=64, width=64)
        return list(StableDiffusion().guidance_notes(opened(path).configs, saved))

    path = copy(tmp_path)
    assert notes(path, "negative_prompt=dark") == []
    edit(path / "unet/config.json", time_cond_proj_dim=256)
    assert notes(path) == []
    assert notes(path, "negative_prompt=dark", "guidance_rescale=0.5")[0].startswith(
        "negative_prompt and guidance_rescale: no effect, because this UNet reads the guidance scale (time_cond_"
    )
    (note,) = notes(path, 'prompts.rows=[{prompt: "a", negative_prompt: "b"}]')
    assert note.startswith("negative_prompt: no effect")


@pytest.mark.parametrize("folder", ["unet", "text_encoder", "vae"])
def test_the_likely_family_is_that_of_the_folders_even_if_one_is_missing(folder):
    small = [f"{part}/config.json" for part in StableDiffusion.components]
    large = [f"{part}/config.json" for part in SDXL.components]
    assert likely_family([*small, "safety_checker/config.json", "README.md"]).name == "stable_diffusion"
    assert likely_family([*large, "vae_1_0/config.json"]).name == "sdxl"
    assert likely_family([name for name in small if not name.startswith(f"{folder}/")]).name == "stable_diffusion"
    assert likely_family([name for name in large if not name.startswith(f"{folder}/")]).name == "sdxl"


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "own", "other"), [("sd1", "Stable Diffusion", "text_time"), ("sdxl", "SDXL", None)])
def test_a_unet_of_the_other_family_is_refused(tmp_path, layout, own, other):
    root = copy(tmp_path, layout)
    edit(
        root / "unet/config.json",
        addition_embed_type=other,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    )
    assert f"unet addition_embed_type={other} but {own}'s addition_embed_type=" in error_of(root)


@pytest.mark.slow
def test_pooled_text_of_another_width_is_refused(tmp_path):
    root = copy(tmp_path, "sdxl")
    edit(root / "text_encoder_2/config.json", projection_dim=48)
    assert "projection_class_embeddings_input_dim=88 but 6 x addition_time_embed_dim + projection_dim=96" in (
        error_of(root)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "index", "given"), [
    ("sd1", {}, [True, True, True]),
    ("sdxl", {}, [True, True, False]),
    ("sdxl", {"force_zeros_for_empty_prompt": ...}, [True, True, False]),
    ("sdxl", {"force_zeros_for_empty_prompt": False}, [True, True, True]),
])  # fmt: skip
def test_only_a_prompt_that_is_not_given_is_zeros_and_only_where_the_checkpoint_says_so(tmp_path, layout, index, given):
    root = copy(tmp_path, layout)
    edit(root / "model_index.json", **index)
    checkpoint = opened(root)
    tokens = checkpoint.family.tokenize(checkpoint.tokenizers, ["a cat", "", None], checkpoint.options)
    assert tokens.given.tolist() == given
    for ids in tokens.input_ids:
        assert ids.shape == (3, 77)
        np.testing.assert_array_equal(ids[1], ids[2])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_embeddings_of_a_prompt_that_is_not_given_are_zeros(layout):
    checkpoint = opened(tiny(layout))
    family, networks = checkpoint.family, {}
    for part in family.parts("encode"):
        graph, _ = nnx.split(checkpoint.abstract(part))
        networks[part] = nnx.merge(graph, load_weights(checkpoint, part, param_dtype=jnp.float32))
    ids = tuple(jnp.full((2, 77), 513, jnp.int32) for _ in family.tokenizers)
    for leaf in jax.tree.leaves(family.encode(networks, Tokens(ids, jnp.array([True, False])))):
        assert leaf[0].any() and not leaf[1].any()


def test_sdxl_tells_the_unet_the_size_of_the_image():
    text = TextConditioning(jnp.zeros((3, 7, 2)), jnp.zeros((3, 5)))
    conditioning = SDXL().prepare(text, text, height=48, width=80)
    np.testing.assert_array_equal(conditioning.time_ids, [[48, 80, 0, 0, 48, 80]] * 6)
    assert SDXL().prepare(text, None, height=48, width=80).time_ids.shape == (3, 6)
    assert StableDiffusion().prepare(text._replace(pooled=None), None, height=48, width=80).time_ids is None


def test_negative_prompts_come_first():
    prompt, negative = (TextConditioning(jnp.full((2, 7, 3), value), None) for value in (1.0, 2.0))
    hidden = StableDiffusion().prepare(prompt, negative, height=8, width=8).hidden
    np.testing.assert_array_equal(hidden[:, 0, 0], [2, 2, 1, 1])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_sizes_are_those_of_the_configs(layout):
    checkpoint = opened(tiny(layout))
    family, configs = checkpoint.family, checkpoint.configs
    assert family.size_multiple(configs) == 8 and family.image_size(configs) == (64, 64)
    assert family.latent_shape(configs, 48, 80) == (6, 10, 4)


@pytest.mark.slow
def test_the_size_is_asked_for_only_where_the_checkpoint_does_not_say_it(tmp_path):
    root = copy(tmp_path)
    edit(root / "unet/config.json", sample_size=None)
    with pytest.raises(UserError, match="sample_size=null in unet/config.json: .* set height and width"):
        image_size(config("height=48"), opened(root))
    assert image_size(config("height=48", "width=80"), opened(root)) == (48, 80)


@pytest.mark.parametrize(
    ("family", "own", "name", "clip", "said"),
    [
        # As test_corrections_parity.py finds it in diffusers.
        (SDXL(), "EulerDiscreteScheduler", "ddim", None, True),
        (SDXL(), "EulerDiscreteScheduler", "ddim", False, False),
        (SDXL(), "EulerDiscreteScheduler", "heun", True, True),
        (SDXL(), "EulerDiscreteScheduler", "tcd", True, False),
        (StableDiffusion(), "PNDMScheduler", "ddim", None, True),
        (StableDiffusion(), "PNDMScheduler", "ddim", True, False),
        (StableDiffusion(), "DDIMScheduler", "ddim", None, False),
    ],
)
def test_where_the_reference_would_clip_latents_is_said(family, own, name, clip, said):
    notes = list(family.schedule_notes(SamplerSettings(name=name), SchedulerConfig(class_name=own, clip_sample=clip)))
    assert len(notes) == said and all(f"with {name}, diffusers would clip" in note for note in notes)
