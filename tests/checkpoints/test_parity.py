"""Checkpoints written by PyTorch diffusers through our loader and saver and back: every number unchanged."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import transformers  # noqa: E402
from diffusers import (  # noqa: E402
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from support.checkpoints import tiny  # noqa: E402

from tpusd.checkpoints import ModelSource, load_weights, open_checkpoint, save_checkpoint  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # the reference's own deprecations are not ours
]
LAYOUTS = ("sd1", "sd2", "sdxl")
PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")


def random_pipeline(layout, seed=0):
    """The reference's own models at tiny size with random weights, and a tokenizer of 514 byte tokens."""
    torch.manual_seed(seed)
    pipeline = load(layout, tiny(layout))
    for part in PARTS:
        if (model := getattr(pipeline, part, None)) is not None:
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
    return pipeline


def load(layout, directory, **kw):
    cls = StableDiffusionXLPipeline if layout == "sdxl" else StableDiffusionPipeline
    return cls.from_pretrained(str(directory), local_files_only=True, **kw)


def resave(source, target, dtype="float32", **given):
    """Through our parameters to a new directory."""
    checkpoint = open_checkpoint(ModelSource(path=str(source), **given))
    save_checkpoint(
        target,
        checkpoint.family,
        networks={p: (checkpoint.configs[p], load_weights(checkpoint, p, param_dtype=dtype)) for p in checkpoint.parts},
        tokenizers=dict(zip(checkpoint.family.tokenizers, checkpoint.tokenizers, strict=True)),
        scheduler_config=checkpoint.scheduler_values,
        options=checkpoint.options,
        dtype=dtype,
    )


def assert_same(left, right):
    for part in PARTS:
        a, b = getattr(left, part, None), getattr(right, part, None)
        assert (a is None) == (b is None)
        if a is not None:
            a, b = a.state_dict(), b.state_dict()
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a), part
    assert left.scheduler.config.prediction_type == right.scheduler.config.prediction_type
    assert type(left.scheduler) is type(right.scheduler)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_the_reference_survives_the_round_trip(tmp_path, layout):
    theirs = random_pipeline(layout)
    theirs.save_pretrained(tmp_path / "theirs")
    resave(tmp_path / "theirs", tmp_path / "ours")
    assert_same(theirs, load(layout, tmp_path / "ours"))


def test_half_precision_and_its_variant_survive_the_round_trip(tmp_path):
    theirs = random_pipeline("sd1").to(dtype=torch.float16)
    theirs.save_pretrained(tmp_path / "theirs", variant="fp16")
    resave(tmp_path / "theirs", tmp_path / "ours", dtype="float16", variant="fp16")
    assert_same(theirs, load("sd1", tmp_path / "ours", dtype=torch.float16))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_of_the_reference_are_read(tmp_path, variant):
    theirs = random_pipeline("sd1")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="200KB", variant=variant)
    assert len(list((tmp_path / "theirs/unet").glob("*-of-*.safetensors"))) > 1
    resave(tmp_path / "theirs", tmp_path / "ours", variant=variant)
    assert_same(theirs, load("sd1", tmp_path / "ours"))


def test_pickles_of_the_reference_are_refused_with_the_way_out(tmp_path):
    random_pipeline("sd1").save_pretrained(tmp_path, safe_serialization=False)
    if list((tmp_path / "text_encoder").glob("*.safetensors")):  # transformers 5 writes nothing else
        (tmp_path / "text_encoder/model.safetensors").rename(tmp_path / "text_encoder/pytorch_model.bin")
    with pytest.raises(Exception, match="pickled weights"):
        open_checkpoint(ModelSource(path=str(tmp_path)))


def test_full_configs_of_the_reference_are_understood(tmp_path):
    """Newer writers spell out every option that they know; the published files leave most of them out."""
    UNet2DConditionModel.from_pretrained(str(tiny() / "unet")).save_pretrained(tmp_path / "unet")
    from tpusd.networks.unet_config import UNetConfig

    spelt_out = UNet2DConditionModel.load_config(str(tmp_path / "unet"))
    assert len(spelt_out) > 40
    assert UNetConfig.from_dict(spelt_out) == open_checkpoint(ModelSource(path=str(tiny()))).configs["unet"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_token_ids_are_the_references(layout):
    ours = open_checkpoint(ModelSource(path=str(tiny(layout)))).tokenizers
    prompts = [
        "A cat, 2 dogs!",
        "",
        "x " * 100,
        "naïve 😀 \u202e שלום",
        "<|endoftext|> inside",
        "tab\tnew\nline  two",
        "it's",
    ]
    for folder, tokenizer in zip(("tokenizer", "tokenizer_2"), ours, strict=False):
        theirs = transformers.CLIPTokenizer.from_pretrained(str(tiny(layout) / folder))
        expected = theirs(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="np").input_ids
        np.testing.assert_array_equal(tokenizer(prompts).input_ids, expected)


def test_old_names_of_the_autoencoder_load_into_the_reference_and_ours_alike(tmp_path):
    from safetensors.numpy import load_file, save_file

    theirs = random_pipeline("sd1")
    theirs.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs/vae/diffusion_pytorch_model.safetensors"
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    tensors = {}
    for name, tensor in load_file(file).items():
        for new, published in old.items():
            name = name.replace(f".{new}", f".{published}") if ".attentions." in name else name
        tensors[name] = tensor
    save_file(tensors, file, metadata={"format": "pt"})
    assert any("proj_attn" in name for name in tensors)
    resave(tmp_path / "theirs", tmp_path / "ours")
    reread = AutoencoderKL.from_pretrained(str(tmp_path / "theirs/vae"))
    ours = AutoencoderKL.from_pretrained(str(tmp_path / "ours/vae"))
    assert all(torch.equal(a, b) for a, b in zip(reread.state_dict().values(), ours.state_dict().values(), strict=True))


def test_another_scheduler_is_saved_as_it_was_read(tmp_path):
    theirs = random_pipeline("sd1")
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, prediction_type="v_prediction")
    theirs.save_pretrained(tmp_path / "theirs")
    resave(tmp_path / "theirs", tmp_path / "ours")
    assert_same(theirs, load("sd1", tmp_path / "ours"))


def test_the_packaged_checkpoint_loads_unchanged_in_the_reference():
    checkpoint = open_checkpoint(ModelSource(asset="tiny"))
    theirs = load("sd1", checkpoint.directory)
    unet = load_weights(checkpoint, "unet", param_dtype=jnp.float32)
    kernel = np.asarray(unet["conv_in"]["kernel"].get_value())
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), theirs.unet.conv_in.weight.detach().float().numpy())
