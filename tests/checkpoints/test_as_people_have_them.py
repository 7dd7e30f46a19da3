"""Configs, folders and files as people have them: what has no effect is accepted, and what has one is not."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.checkpoints import TEXT, UNET, VAE, assert_equal, copy, edit, error_of, opened, tiny, weights

from tpusd.checkpoints import load_weights
from tpusd.config.sampler import SamplerSettings
from tpusd.families.guidance import uses_cfg
from tpusd.networks.clip_text import CLIPTextConfig
from tpusd.networks.unet_config import UNetConfig
from tpusd.networks.vae import VAEConfig

# What diffusers' EMAModel.save_pretrained writes into the config beside the model's own fields.
EMA = {
    "decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 1000, "power": 0.6666666666666666,
    "update_after_step": 0, "use_ema_warmup": False, "collected_params": None,
}  # fmt: skip


def published(part: str) -> dict:
    return json.loads((tiny() / part / "config.json").read_text())


@pytest.mark.parametrize(
    ("part", "config", "changes"),
    [
        ("unet", UNetConfig, EMA),
        ("vae", VAEConfig, EMA),
        ("unet", UNetConfig, {"act_fn": "swish"}),
        ("vae", VAEConfig, {"act_fn": "swish"}),
        ("unet", UNetConfig, {"only_cross_attention": [False, False]}),
        ("unet", UNetConfig, {"layers_per_block": [1, 1]}),
        ("unet", UNetConfig, {"cross_attention_dim": [32, 32]}),
        ("unet", UNetConfig, {"dropout": 0.1, "addition_embed_type_num_heads": 8}),
        ("unet", UNetConfig, {"time_embedding_dim": 64}),
        (
            "unet",
            UNetConfig,
            {"dropout": 0.0, "time_cond_proj_dim": None, "reverse_transformer_layers_per_block": None},
        ),
        ("vae", VAEConfig, {"shift_factor": 0.1, "latents_mean": None, "latents_std": None}),
        ("vae", VAEConfig, {"sample_size": [512, 512]}),
        ("text_encoder", CLIPTextConfig, {"max_length": 20, "temperature": 1.0, "pruned_heads": {}, "top_k": 50}),
    ],
)
def test_what_means_the_same_is_the_same_network(part, config, changes):
    values = published(part)
    same = config.from_dict({**values, **changes})
    expected = config.from_dict(values)
    assert {**vars(same), "sample_size": None} == {**vars(expected), "sample_size": None}


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet", {"act_fn": "mish"}, "act_fn"),
        ("unet", {"only_cross_attention": [False, True]}, "only_cross_attention"),
        ("unet", {"only_cross_attention": []}, "only_cross_attention"),
        ("unet", {"layers_per_block": [0, 2]}, "layers_per_block"),
        ("unet", {"cross_attention_dim": [32, 64]}, "cross_attention_dim"),
        ("unet", {"time_embedding_dim": 65}, "time_embedding_dim"),
        ("unet", {"layers_per_block": [True, True]}, "layers_per_block"),
        ("unet", {"layers_per_block": []}, "layers_per_block"),
        ("unet", {"decay_rate": 0.9}, "unknown field"),
        ("unet", {"sample_size": [64]}, "sample_size"),
    ],
)
def test_what_would_change_the_network_is_refused(tmp_path, part, changes, words):
    root = copy(tmp_path)
    edit(root / part / "config.json", **changes)
    assert words in error_of(root)


def test_sample_size_may_be_height_and_width(tmp_path):
    root = copy(tmp_path)
    edit(root / "unet/config.json", sample_size=[8, 12])
    checkpoint = opened(root)
    multiple = checkpoint.family.size_multiple(checkpoint.configs)
    assert checkpoint.family.image_size(checkpoint.configs) == (8 * multiple, 12 * multiple)


@pytest.mark.slow
def test_what_desktops_and_editors_leave_has_no_effect(tmp_path):
    root = copy(tmp_path)
    for folder in [root, *(path for path in root.iterdir() if path.is_dir())]:
        for name in (
            ".DS_Store",
            "Thumbs.db",
            "desktop.ini",
            "config.json~",
            ".config.json.swp",
            "README.md",
            ".gitattributes",
            "config.json.orig",
        ):
            (folder / name).write_bytes(b"\x00\x01 not for you")
        for path in [path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".txt")]:
            (folder / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
            shutil.copy(path, folder / f"{path.stem} (1){path.suffix}")
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / "__MACOSX").mkdir()
        (folder / ".git").mkdir()
        (folder / "old.safetensors").symlink_to("nowhere")
    for part in ("unet", "vae", "text_encoder"):
        assert_equal(weights(root, part), weights(tiny(), part))
    assert set(opened(root).identity.files) == set(opened(tiny()).identity.files)


@pytest.mark.parametrize(
    "name",
    ["text_model.embeddings.position_ids", "logit_scale", "text_projection.weight", "visual_projection.weight",
     "vision_model.encoder.layers.0.mlp.fc1.bias"],
)  # fmt: skip
def test_tensors_that_a_text_model_does_not_have_are_passed_over(tmp_path, name):
    """As transformers' CLIPTextModel does with a file of the whole CLIP."""
    root = copy(tmp_path)
    save_file({**load_file(root / TEXT), name: np.ones((4, 4), np.float32)}, root / TEXT)
    assert_equal(weights(root, "text_encoder"), weights(tiny(), "text_encoder"))


@pytest.mark.slow
@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
def test_any_other_tensor_is_refused(tmp_path, file):
    root = copy(tmp_path)
    save_file({**load_file(root / file), "ema.something.weight": np.ones(4, np.float32)}, root / file)
    assert "ema.something.weight" in error_of(
        root, lambda checkpoint: load_weights(checkpoint, file.partition("/")[0], param_dtype=np.float32)
    )


def to_variant(root, *files):
    for file in files:
        path = root / file
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))


@pytest.mark.parametrize("with_variant", [(UNET,), (TEXT, VAE), (UNET, VAE, TEXT)])
def test_a_part_without_the_variant_is_read_without_it(tmp_path, with_variant):
    """As in diffusers: variant="fp16" takes what has it, and the rest as it is."""
    root = copy(tmp_path)
    to_variant(root, *with_variant)
    chosen = opened(root, variant="fp16").weights
    files = {files.name for files in chosen.values()}
    expected = {file.replace(".safetensors", ".fp16.safetensors") for file in with_variant}
    assert files == expected | ({UNET, VAE, TEXT} - set(with_variant))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("with_variant", [(UNET,), (TEXT, VAE), (UNET, VAE, TEXT)])
def test_the_only_variant_of_a_part_is_read_and_said_once(tmp_path, with_variant):
    root = copy(tmp_path)
    to_variant(root, *with_variant)
    parts = [file.partition("/")[0] for file in with_variant]
    for variant, said in ((None, parts), ("fp16", {"unet", "vae", "text_encoder"} - set(parts))):
        checkpoint = opened(root, variant=variant)
        assert len(checkpoint.notes) == bool(said)
        assert all(part in checkpoint.notes[0] for part in said)
        for part in ("unet", "vae", "text_encoder"):
            assert_equal(weights(root, part, variant=variant), weights(tiny(), part))


def test_of_two_variants_one_must_be_chosen(tmp_path):
    root = copy(tmp_path)
    shutil.copy(root / UNET, root / UNET.replace(".safetensors", ".non_ema.safetensors"))
    assert opened(root).weights["unet"].name == UNET and not opened(root).notes
    to_variant(root, UNET)
    assert "as variant fp16 or non_ema; set model.variant=fp16" in error_of(root)


@pytest.mark.slow
def test_a_variant_may_be_shards(tmp_path):
    root = copy(tmp_path)
    stem = "diffusion_pytorch_model"
    tensors = load_file(root / UNET)
    (root / UNET).rename(root / f"unet/{stem}.fp16-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, f"{stem}.fp16-00001-of-00001.safetensors")}
    (root / f"unet/{stem}.safetensors.index.fp16.json").write_text(json.dumps(index))
    for variant in (None, "fp16"):
        assert opened(root, variant=variant).weights["unet"].format == "shards"
        assert_equal(weights(root, "unet", variant=variant), weights(tiny(), "unet"))


def test_a_variant_that_no_part_has_is_refused(tmp_path):
    assert "leave model.variant unset" in error_of(copy(tmp_path), variant="fp16")


def test_a_part_that_has_only_another_variant_is_refused(tmp_path):
    root = copy(tmp_path)
    to_variant(root, UNET)
    (root / VAE).rename((root / VAE).with_name("diffusion_pytorch_model.bf16.safetensors"))
    assert "model.variant=fp16" in error_of(root, variant="fp16")


@pytest.mark.parametrize(("scale", "guided"), [(0.0, False), (0.5, False), (1.0, False), (1.01, True), (7.5, True)])
def test_guidance_up_to_one_is_the_prompt_alone(scale, guided):
    """diffusers' do_classifier_free_guidance is guidance_scale > 1."""
    assert uses_cfg(scale) == guided


def test_a_file_without_skip_prk_steps_is_noted(tmp_path):
    root = copy(tmp_path)
    edit(root / "scheduler/scheduler_config.json", skip_prk_steps=...)
    for path, noted in ((root, 1), (tiny(), 0)):
        checkpoint = opened(path)
        notes = list(checkpoint.family.schedule_notes(SamplerSettings(name="pndm"), checkpoint.scheduler_config))
        assert len(notes) == noted
