"""Checkpoints in one file of the original code, against the directories that they were made from."""

import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from support.checkpoints import assert_equal, edit, tiny
from support.original_files import UNET, VAE, to_original, write_original

from tpusd.checkpoints import ModelSource, load_weights, open_checkpoint
from tpusd.checkpoints.published import find_architecture
from tpusd.errors import UserError

LAYOUTS = ("sd1", "sd2", "sdxl")
TO_K = UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def opened(file, layout="sd1", **source):
    return open_checkpoint(ModelSource(path=str(file), **{"config": str(tiny(layout)), **source}))


def loaded(checkpoint, dtype=jnp.float32):
    return {part: load_weights(checkpoint, part, param_dtype=dtype) for part in checkpoint.parts}


def refusal(file, layout="sd1", **source) -> str:
    with pytest.raises(UserError) as caught:
        loaded(opened(file, layout, **source))
    line = str(caught.value)
    assert "\n" not in line and line.isprintable()
    return line


def write_raw(tensors: dict[str, np.ndarray], file: Path, metadata=None) -> Path:
    """A safetensors file from its specification: the library for NumPy does not write 8-bit floats."""
    names = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "uint8": "U8", "float32": "F32", "float16": "F16"}
    header, start = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, value in tensors.items():
        end = start + value.nbytes
        header[name] = {"dtype": names[value.dtype.name], "shape": list(value.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    body = b"".join(value.tobytes() for value in tensors.values())
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return file


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"with_level": False, "linear_projection": True, "extra_layer": False}])
def test_every_layout_has_the_weights_of_its_directory(tmp_path, layout, options):
    checkpoint = opened(write_original(tiny(layout), tmp_path / "x.safetensors", **options), layout)
    directory = open_checkpoint(ModelSource(path=str(tiny(layout))))
    assert checkpoint.family is directory.family
    assert checkpoint.configs == directory.configs
    assert_equal(loaded(checkpoint), loaded(directory))
    assert checkpoint.scheduler_config == directory.scheduler_config
    for ours, theirs in zip(checkpoint.tokenizers, directory.tokenizers, strict=True):
        np.testing.assert_array_equal(ours(["a b"]).input_ids, theirs(["a b"]).input_ids)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["sd1", "sd1_inpaint"])
def test_an_inpainting_file_is_known_by_its_input_channels(tmp_path, config):
    """Also where the configs beside it are of the model that makes whole pictures."""
    file = write_original(tiny("sd1_inpaint"), tmp_path / "x.safetensors")
    checkpoint, directory = opened(file, config), open_checkpoint(ModelSource(path=str(tiny("sd1_inpaint"))))
    assert checkpoint.configs == directory.configs and checkpoint.configs["unet"].in_channels == 9
    assert_equal(loaded(checkpoint), loaded(directory))
    assert ", for inpainting; prediction_type=" in checkpoint.notes[0]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_are_those_of_the_directory(tmp_path, layout):
    from support.pipelines import SIZE, generate
    from support.pipelines import pipeline as pipeline_of
    from support.runs import config

    from tpusd.engine.pipeline import Pipeline

    single = Pipeline.load(
        opened(write_original(tiny(layout), tmp_path / "x.safetensors"), layout),
        config("precision=fp32").precision,
        height=SIZE,
        width=SIZE,
        batch_size_per_device=1,
        devices=jax.devices()[:1],
    )
    fields = ("prompt=a red fox", "sampler.num_inference_steps=2", "seed=5")
    ours, theirs = (generate(pipe, *fields, layout=layout)[0, 0] for pipe in (single, pipeline_of(layout)))
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    assert ours.trace == theirs.trace


@pytest.mark.slow
def test_the_averaged_unet_is_ignored_unless_asked(tmp_path):
    def add_ema(tensors):
        for name in [name for name in tensors if name.startswith(UNET)]:
            flat = name.removeprefix("model.").replace(".", "")
            tensors[f"model_ema.{flat}"] = tensors[name] + 1
        tensors["model_ema.decay"] = np.float32(0.9999)
        tensors["model_ema.num_updates"] = np.int32(7)

    file = write_original(tiny(), tmp_path / "x.safetensors", add_ema)
    own = load_weights(opened(file), "unet", param_dtype=jnp.float32)
    assert_equal(own, load_weights(open_checkpoint(ModelSource(path=str(tiny()))), "unet", param_dtype=jnp.float32))
    averaged = load_weights(opened(file, use_ema=True), "unet", param_dtype=jnp.float32)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a + 1, b), own, averaged)
    assert len(opened(file).notes) == 1
    plain = write_original(tiny(), tmp_path / "y.safetensors")
    assert "has no averaged copy of its UNet" in refusal(plain, use_ema=True)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_half_precision_is_read_as_it_is(tmp_path, dtype):
    tensors = {name: value.astype(dtype) for name, value in to_original(tiny()).items()}
    checkpoint = opened(write_raw(tensors, tmp_path / "x.safetensors"))
    state = load_weights(checkpoint, "text_encoder", param_dtype=jnp.float32)
    embedding = state["text_model"]["embeddings"]["token_embedding"]["embedding"].get_value()
    stored = tensors["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"]
    np.testing.assert_array_equal(embedding, stored.astype(np.float32))


FP8 = ml_dtypes.float8_e4m3fn


def quantized(form: str, dtype=FP8):
    """The tensors of sd1 with 8-bit linear layers, the header, and what the UNet's weights mean."""
    tensors, metadata, meaning = to_original(tiny()), {}, {}
    for name in [n for n in tensors if n.startswith(UNET) and n.endswith(".weight") and tensors[n].ndim == 2]:
        scale = np.float32(1) if form == "plain" else np.abs(tensors[name]).max() / np.float32(400)
        stored = (tensors[name] / scale).astype(dtype)
        tensors[name], layer = stored, name.removesuffix(".weight")
        meaning[name] = stored.astype(np.float32) * scale
        if form == "scaled":
            tensors |= {f"{layer}.scale_weight": np.float32(scale), f"{layer}.scale_input": np.float32(1)}
        if form in ("comfy_quant", "header"):
            tensors |= {f"{layer}.weight_scale": np.float32(scale).reshape(1)}
        if form == "rows":
            tensors |= {f"{layer}.weight_scale": np.full((len(stored), 1), scale, np.float32)}
        if form == "comfy_quant":
            text = json.dumps({"format": np.dtype(dtype).name}).encode()
            tensors[f"{layer}.comfy_quant"] = np.frombuffer(text, np.uint8)
        if form == "header":
            metadata[layer] = {"format": np.dtype(dtype).name}
    if form == "scaled":
        tensors[f"{UNET}scaled_fp8"] = np.zeros(2, dtype)
    header = {"_quantization_metadata": json.dumps({"layers": metadata})} if metadata else None
    return {name: np.asarray(value) for name, value in tensors.items()}, header, meaning


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP8, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("form", ["plain", "scaled", "comfy_quant", "header", "rows"])
def test_8_bit_weights_mean_what_is_stored_times_its_scale(tmp_path, form, dtype):
    tensors, header, meaning = quantized(form, dtype)
    checkpoint = opened(write_raw(tensors, tmp_path / "x.safetensors", header))
    state = load_weights(checkpoint, "unet", param_dtype=jnp.float32)
    kernel = state["down_blocks"][0]["attentions"][0]["transformer_blocks"][0]["attn2"]["to_k"]["kernel"]
    np.testing.assert_array_equal(kernel.get_value(), meaning[TO_K].T)
    assert len(checkpoint.notes) == 1  # scales are not tensors without use


@pytest.mark.slow
def test_other_8_bit_forms_are_refused_by_their_name(tmp_path):
    tensors, _, _ = quantized("comfy_quant")
    layer = TO_K.removesuffix(".weight")
    tensors[f"{layer}.comfy_quant"] = np.frombuffer(b'{"format": "nvfp4"}', np.uint8)
    assert "is quantized as nvfp4, which is not implemented" in refusal(write_raw(tensors, tmp_path / "x.safetensors"))
    tensors, _, _ = quantized("scaled")
    tensors[f"{layer}.scale_weight"] = np.ones(3, np.float32)
    assert "is not a scale for a weight of" in refusal(write_raw(tensors, tmp_path / "x.safetensors"))


@pytest.mark.slow
def test_a_tensor_without_a_place_is_named(tmp_path):
    def change(tensors):
        tensors[UNET + "input_blocks.1.0.in_layers.2.wieght"] = np.ones((2, 3), np.float32)
        tensors[VAE + "decoder.up.9.block.0.conv1.bias"] = np.ones(3, np.float32)

    line = refusal(write_original(tiny(), tmp_path / "x.safetensors", change))
    assert "1 that the model of config.json does not have: model.diffusion_model.input_blocks.1.0.in_layers" in line


@pytest.mark.slow
def test_a_missing_tensor_is_named(tmp_path):
    file = write_original(tiny("sd2"), tmp_path / "x.safetensors", lambda t: t.pop(VAE + "decoder.conv_in.bias"))
    assert "1 missing: decoder.conv_in.bias" in refusal(file, "sd2")


@pytest.mark.parametrize("prefix, part", [(VAE, "vae"), ("cond_stage_model.", "text_encoder")])
def test_a_missing_network_is_named(tmp_path, prefix, part):
    def change(tensors):
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    line = refusal(write_original(tiny(), tmp_path / "x.safetensors", change))
    assert f"has no {part} of stable_diffusion" in line
    assert ("model.vae.path" in line) == (part == "vae")


def test_tensors_outside_of_all_networks_are_reported_and_those_of_training_are_not(tmp_path):
    def change(tensors):
        tensors |= {"global_step": np.int64(840_000), "betas": np.ones(1000, np.float32)}
        tensors |= {"first_stage_model.loss.logvar": np.ones(1, np.float32), "something.else": np.ones(2, np.float32)}

    notes = opened(write_original(tiny(), tmp_path / "x.safetensors", change)).notes
    assert "1 of its tensors have no use: something.else" in notes[1]


def test_what_is_no_checkpoint_is_named(tmp_path):
    from safetensors.numpy import save_file

    one = np.ones((2, 2), np.float32)
    kinds = {
        "lora_unet_input_blocks_1_1_proj_in.lora_down.weight": "is a LoRA",
        "unet.mid_block.attentions.0.proj_in.lora_A.weight": "is a LoRA",
        "emb_params": "is an embedding",
        "clip_g": "is an embedding",
        "control_model.input_blocks.0.0.weight": "is a ControlNet",
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "is Stable Diffusion 3",
        "double_blocks.0.img_attn.qkv.weight": "is Flux",
        "down_blocks.0.resnets.0.conv1.weight": "is a UNet alone",
        "decoder.conv_in.weight": "is a VAE alone",
        "text_model.final_layer_norm.weight": "is a text encoder alone",
        "x": "is not a checkpoint of Stable Diffusion 1, 2 or XL",
    }
    for name, expected in kinds.items():
        save_file({name: one}, tmp_path / "x.safetensors")
        assert expected in refusal(tmp_path / "x.safetensors")
    for channels, expected in ((8, "InstructPix2Pix"), (5, "depth model")):
        first = {UNET + "input_blocks.0.0.weight": np.ones((16, channels, 3, 3), np.float32)}
        file = write_original(tiny(), tmp_path / "x.safetensors", lambda tensors, first=first: tensors.update(first))
        assert expected in refusal(file)
    save_file({"conditioner.embedders.0.model.ln_final.weight": one, UNET + "x": one}, tmp_path / "x.safetensors")
    assert "is SDXL's refiner" in refusal(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "extra, metadata, asked, expected, by",
    [
        ([], None, None, "epsilon", "the configs of its architecture"),
        ([], None, "v_prediction", "v_prediction", "model.prediction_type"),
        (["v_pred"], None, None, "v_prediction", "the key v_pred"),
        (["v_pred", "ztsnr"], None, "v_prediction", "v_prediction", "the key v_pred"),
        ([], {"modelspec.prediction_type": "v"}, None, "v_prediction", "in the file's header"),
        ([], {"modelspec.prediction_type": "v"}, "epsilon", "epsilon", "model.prediction_type"),
        ([], {"modelspec.prediction_type": "nonsense"}, None, "epsilon", "the configs of its architecture"),
    ],
)
def test_the_prediction_type_and_what_decided_it(tmp_path, extra, metadata, asked, expected, by):
    file = write_original(
        tiny(), tmp_path / "x.safetensors", lambda t: t.update({k: np.ones(0, np.float32) for k in extra}), metadata
    )
    checkpoint = opened(file, prediction_type=asked)
    assert checkpoint.scheduler_config.prediction_type == expected
    assert checkpoint.scheduler_values["prediction_type"] == expected
    assert (checkpoint.scheduler_config.rescale_betas_zero_snr is True) == ("ztsnr" in extra)
    assert f"prediction_type={expected}, by " in checkpoint.notes[0] and by in checkpoint.notes[0]


def test_a_prediction_type_against_the_files_mark_is_refused(tmp_path):
    file = write_original(tiny(), tmp_path / "x.safetensors", lambda t: t.update(v_pred=np.ones(0, np.float32)))
    assert "is marked as v_prediction by the key v_pred" in refusal(file, prediction_type="epsilon")
    file = write_original(tiny(), tmp_path / "x.safetensors", lambda t: t.update(edm_mean=np.ones(4, np.float32)))
    assert "EDM model" in refusal(file)


def widened(layout, width, file):
    """A file whose UNet takes text of a published width; its other shapes are not looked at before it is matched."""

    def change(tensors):
        for name in [name for name in tensors if name.endswith(".attn2.to_k.weight")]:
            tensors[name] = np.zeros((4, width), np.float32)

    return write_original(tiny(layout), file, change)


@pytest.mark.slow
@pytest.mark.parametrize("layout, width, family, size", [("sd1", 768, "sd15", 64), ("sdxl", 2048, "sdxl", 128)])
def test_a_published_architecture_is_known_by_the_width_of_its_text(tmp_path, layout, width, family, size):
    file = widened(layout, width, tmp_path / "x.safetensors")
    architecture = find_architecture(ModelSource(path=str(file)))
    assert architecture.configs["unet"].sample_size == size
    assert architecture.configs["unet"].cross_attention_dim == width


@pytest.mark.slow
def test_sd2_needs_to_be_told_what_it_predicts(tmp_path):
    file = widened("sd2", 1024, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="predict v_prediction or epsilon|predict epsilon or v_prediction") as caught:
        find_architecture(ModelSource(path=str(file)))
    assert "set model.prediction_type" in str(caught.value)
    for asked, size in (("epsilon", 64), ("v_prediction", 96)):
        architecture = find_architecture(ModelSource(path=str(file), prediction_type=asked))
        assert architecture.configs["unet"].sample_size == size
        assert architecture.scheduler_config.prediction_type == asked
    for name, size in (("sd21_base", 64), ("sd21", 96)):
        assert find_architecture(ModelSource(path=str(file), config=name)).configs["unet"].sample_size == size


def test_an_unknown_width_asks_for_configs(tmp_path):
    file = write_original(tiny(), tmp_path / "x.safetensors")
    assert "give its configs with model.config=DIR" in refusal(file, config=None)
    assert "must be one of sd15, sd21_base, sd21, sdxl, or a directory" in refusal(file, config="sd16")
    assert "is of sdxl, but" in refusal(file, config="sdxl")


def test_fields_of_single_files_are_refused_for_directories(tmp_path):
    for field, value in (("config", "sd15"), ("prediction_type", "epsilon"), ("use_ema", True)):
        with pytest.raises(UserError, match=f"model.{field}=.*: is for a checkpoint in a single file"):
            open_checkpoint(ModelSource(path=str(tiny()), **{field: value}))


def test_the_digest_does_not_depend_on_the_files_name(tmp_path):
    file = write_original(tiny(), tmp_path / "x.safetensors")
    before = opened(file).identity.sha256
    assert opened(file.rename(tmp_path / "y.safetensors")).identity.sha256 == before
    assert {"checkpoint.safetensors", "config/unet/config.json"} <= before.keys()


def test_a_config_of_the_directory_is_part_of_the_identity(tmp_path):
    import shutil

    file = write_original(tiny(), tmp_path / "x.safetensors")
    root = Path(shutil.copytree(tiny(), tmp_path / "config"))
    before = opened(file, config=str(root)).identity.sha256
    edit(root / "scheduler" / "scheduler_config.json", steps_offset=0)
    assert opened(file, config=str(root)).identity.sha256 != before
