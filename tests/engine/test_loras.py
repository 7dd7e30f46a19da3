"""LoRAs in the pipeline: what is compiled and read again, precision, devices, and a sweep over the scale."""

import json

import jax
import numpy as np
import pytest
from support.checkpoints import tiny
from support.loras import layers, merged_arrays, opened_lora, random, weight_shapes, write
from support.pipelines import checkpoint, generate, pipeline, prompts

from tpusd.engine import pipeline as pipeline_module
from tpusd.engine.adapters import ScaledLora
from tpusd.errors import UserError
from tpusd.runs.sweep import start_sweep

STEPS = "sampler.num_inference_steps=3"


def lora_file(path, *, size=0.3, seed=0, layout="sd1"):
    """A LoRA of the attention of the UNet and of the text encoder."""
    tensors = {}
    for part, prefix in (("unet", "unet"), ("text_encoder", "text_encoder")):
        for layer in layers(layout, part, "attn"):
            o, i = weight_shapes(layout, part)[layer]
            tensors[f"{prefix}.{layer}.lora_B.weight"] = random(o, 2, seed=seed, size=size)
            tensors[f"{prefix}.{layer}.lora_A.weight"] = random(2, i, seed=seed + 1, size=size)
    return write(path, tensors)


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return opened_lora(lora_file(tmp_path_factory.mktemp("lora") / "a.safetensors"))


def scaled(lora, scale, text=None):
    return [ScaledLora(lora=lora, scale=scale, text_encoder_scale=scale if text is None else text)]


@pytest.fixture(scope="module")
def images(lora):
    """(scale, scale in the text encoder) -> the image; and the programs that were compiled after the first two."""
    pipe, made, compiled = pipeline(), {}, []
    wanted = [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5), (0.5, 0.0), (0.0, 0.5), (-1.0, 1.0)]
    made[None] = generate(pipe, prompts("a fox"), STEPS)[0, 0].pixels
    for number, key in enumerate(wanted):
        if number == 1:
            jax.monitoring.register_event_duration_secs_listener(
                lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
            )
        made[key] = generate(pipe, prompts("a fox"), STEPS, loras=scaled(lora, *key))[0, 0].pixels
    jax.monitoring.clear_event_listeners()
    made["after"] = generate(pipe, prompts("a fox"), STEPS)[0, 0].pixels
    return made, compiled


@pytest.mark.long
@pytest.mark.slow
def test_another_scale_compiles_nothing(images):
    assert images[1] == []


@pytest.mark.slow
def test_each_scale_has_its_effect_and_none_stays_behind(images):
    made, _ = images
    for key in ((0.0, 0.0), "after"):
        np.testing.assert_array_equal(made[None], made[key])
    different = [(1.0, 1.0), (0.5, 0.5), (0.5, 0.0), (0.0, 0.5), (-1.0, 1.0), None]
    for number, key in enumerate(different):
        for other in different[number + 1 :]:
            assert not np.array_equal(made[key], made[other]), (key, other)


@pytest.mark.slow
def test_every_device_has_the_merged_weights(lora):
    one, two = (merged_arrays("sd1", scaled(lora, 0.5), devices=n) for n in (1, 2))
    for key, array in two.items():
        assert array.sharding.is_fully_replicated and len(array.addressable_shards) == 2
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, one[key])


@pytest.mark.slow
def test_a_merged_weight_that_does_not_fit_the_precision_is_an_error(tmp_path):
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    up, down = np.full((16, 1), 300, np.float32), np.full((1, 16), 300, np.float32)
    big = opened_lora(
        write(tmp_path / "big.safetensors", {f"unet.{path}.lora_B.weight": up, f"unet.{path}.lora_A.weight": down})
    )
    with pytest.raises(UserError, match=f"merged unet.{path}.kernel has values that do not fit float16; choose"):
        merged_arrays("sd1", scaled(big, 1.0), dtype="float16")


@pytest.mark.slow
def test_differences_are_added_in_float32_whatever_the_weights_are(tmp_path):
    """bfloat16 has 8 bits: of many small differences that are added in it, nothing would be left."""
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    small = write(
        tmp_path / "small.safetensors",
        {
            f"unet.{path}.lora_B.weight": np.full((16, 1), 2**-6, np.float32),
            f"unet.{path}.lora_A.weight": random(1, 16),
        },
    )
    lora = opened_lora(small)
    (once,) = merged_arrays("sd1", scaled(lora, 32.0), dtype="bfloat16").values()
    (often,) = merged_arrays("sd1", scaled(lora, 1.0) * 32, dtype="bfloat16").values()
    difference = np.asarray(once, np.float32) - np.asarray(often, np.float32)
    assert np.abs(difference).max() <= 2**-8 * np.abs(np.asarray(once, np.float32)).max()


@pytest.mark.slow
def test_a_sweep_of_five_scales_compiles_three_programs_and_reads_the_weights_once(tmp_path, monkeypatch):
    file = lora_file(tmp_path / "b.safetensors")
    read, compiled = [], []
    read_weights = pipeline_module.fill

    def counted_fill(matched, **more):
        read.append(matched.where)
        return read_weights(matched, **more)

    before = pipeline_module.Pipeline._compile

    def counted_compile(self, spec):
        compiled.append(spec)
        return before(self, spec)

    monkeypatch.setattr(pipeline_module, "fill", counted_fill)
    monkeypatch.setattr(pipeline_module.Pipeline, "_compile", counted_compile)
    output = tmp_path / "out"
    words = [
        "-m", "model=local", f"model.path={tiny()}", "precision=fp32", "prompt=a fox", STEPS, f"output={output}",
        f"loras=[{{path: {file}, text_encoder_scale: 0.25}}]", "loras.0.scale=-1,0,0.25,0.5,1",
    ]  # fmt: skip
    assert start_sweep(words) == 0
    assert len(compiled) == 3 and len(read) == len(checkpoint().parts)
    runs = sorted(path for path in output.iterdir() if path.is_dir())
    assert [path.name for path in runs] == [f"00{i}_scale={s}" for i, s in enumerate(("-1", "0", "0.25", "0.5", "1"))]
    lines = [json.loads((path / "manifest.jsonl").read_bytes()) for path in runs]
    assert len({line["sha256"] for line in lines}) == 5
    assert [line["loras"][0]["scale"] for line in lines] == [-1.0, 0.0, 0.25, 0.5, 1.0]
    assert {line["loras"][0]["text_encoder_scale"] for line in lines} == {0.25}
    assert {line["loras"][0]["sha256"] for line in lines} == {opened_lora(file).file.sha256}
