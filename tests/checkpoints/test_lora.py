"""LoRA files: every naming finds its layer, every tensor lands, and what does not fit is one line."""

import json
import re
import struct

import numpy as np
import pytest
from support.checkpoints import tiny
from support.loras import checkpoint, layers, merged, opened_lora, random, values, write
from support.runs import config

from tpusd.checkpoints import ModelSource
from tpusd.checkpoints.adapters.aliases import layer_aliases
from tpusd.checkpoints.adapters.keys import stored_layers
from tpusd.checkpoints.fill import parameters
from tpusd.checkpoints.ldm_names import ldm_unet_names
from tpusd.checkpoints.published import find_architecture
from tpusd.config.adapters import LoraConfig
from tpusd.engine.adapters import ScaledLora
from tpusd.errors import UserError
from tpusd.runs.loras import open_loras

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TO_Q_KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT_Q = "text_model.encoder.layers.1.self_attn.q_proj"
SIZES = {TO_Q: 16, TEXT_Q: 32}  # inputs and outputs of these layers in the tiny SD 1.x


def pair(name, path=TO_Q, *, up="lora_up.weight", down="lora_down.weight", rank=3, dot="."):
    """The two tensors of a layer under a name."""
    size = SIZES[path]
    return {f"{name}{dot}{up}": random(size, rank, seed=1), f"{name}{dot}{down}": random(rank, size, seed=2)}


def error(path, layout="sd1"):
    with pytest.raises(UserError) as caught:
        opened_lora(path, layout)
    line = str(caught.value)
    assert "\n" not in line and line.isprintable() and len(line) < 4000
    return line


# Names that programs have written for one layer of SD 1.x (the tiny model's).
NAMES = {
    "kohya": pair(TO_Q_KOHYA),
    "kohya, LDM's names": pair("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"),
    "peft": pair(f"base_model.model.{TO_Q}", up="lora_B.weight", down="lora_A.weight"),
    "peft, with its adapter's name": pair(
        f"base_model.model.{TO_Q}", up="lora_B.default.weight", down="lora_A.default.weight"
    ),
    "diffusers": pair(f"unet.{TO_Q}", up="lora_B.weight", down="lora_A.weight"),
    "diffusers, of 2023": pair(f"unet.{TO_Q}", up="lora.up.weight", down="lora.down.weight"),
    "diffusers, its processors": pair(
        f"unet.{TO_Q.removesuffix('to_q')}processor.to_q", up="lora.up.weight", down="lora.down.weight", dot="_"
    ),
    "diffusers, the first of all": pair(
        f"{TO_Q.removesuffix('to_q')}processor.to_q", up="lora.up.weight", down="lora.down.weight", dot="_"
    ),
    "diffusers, a UNet alone": pair(TO_Q, up="lora_B.weight", down="lora_A.weight"),
    "ComfyUI": pair("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"),
    "SimpleTuner": pair(f"lycoris_{TO_Q.replace('.', '_')}"),
}
TEXT_NAMES = {
    "kohya": pair("lora_te_text_model_encoder_layers_1_self_attn_q_proj", TEXT_Q),
    "diffusers": pair(f"text_encoder.{TEXT_Q}", TEXT_Q, up="lora_B.weight", down="lora_A.weight"),
    "transformers 5": pair("text_encoder.encoder.layers.1.self_attn.q_proj", TEXT_Q),
    "diffusers, of 2023": pair(
        f"text_encoder.{TEXT_Q}", TEXT_Q, up="lora_linear_layer.up.weight",
        down="lora_linear_layer.down.weight",
    ),
    "ComfyUI": pair(f"text_encoders.clip_l.transformer.{TEXT_Q}", TEXT_Q),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("names", "part", "path"), [(NAMES, "unet", TO_Q), (TEXT_NAMES, "text_encoder", TEXT_Q)])
def test_every_naming_finds_the_layer(tmp_path, names, part, path):
    for number, (naming, tensors) in enumerate(names.items()):
        lora = opened_lora(write(tmp_path / f"{number}.safetensors", tensors))
        (difference,) = lora.differences
        assert difference.part == part and ".".join(map(str, difference.parameter.path)) == f"{path}.kernel", naming
        read = lora.read(difference)
        up, down = tensors.values()
        assert np.array_equal(read["up"], up) and np.array_equal(read["down"], down), naming


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "unet", "text"), [("sd15", 192, {"lora_te_": 72}), ("sdxl", 722, {"lora_te1_": 72, "lora_te2_": 192})]
)
@pytest.mark.slow
def test_published_models_have_as_many_layers_as_kohyas_scripts_say(model, unet, text):
    """kohya's scripts print these numbers when a training starts: of attention blocks, and of CLIP's layers."""
    architecture = find_architecture(ModelSource(repo=config(f"model={model}").model.repo))
    family = architecture.family
    kernels = {
        part: [
            name.removesuffix(".weight")
            for name, parameter in parameters(architecture.abstract(part)).items()
            if parameter.leaf == "kernel"
        ]
        for part in (*family.parts("encode"), "unet")
    }
    aliases = layer_aliases(family, kernels)
    found = [name for name, (part, path) in aliases.items() if name.startswith("lora_unet_") and "attentions" in path]
    diffusers = [name for name in found if re.match("lora_unet_(down|mid|up)_", name)]
    original = [name for name in found if re.match("lora_unet_(input|middle|output)_", name)]
    assert len(diffusers) == len(original) == unet
    for prefix, number in text.items():
        assert sum(name.startswith(f"{prefix}text_model_encoder_layers") for name in aliases) == number
    if model == "sdxl":  # names of published files
        for name, path in {
            "lora_unet_input_blocks_4_1_proj_in": "down_blocks.1.attentions.0.proj_in",
            "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_v": (
                "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_v"
            ),
            "lora_unet_middle_block_1_transformer_blocks_0_ff_net_0_proj": (
                "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
            ),
            "lora_unet_output_blocks_5_1_transformer_blocks_1_attn1_to_out_0": (
                "up_blocks.1.attentions.2.transformer_blocks.1.attn1.to_out.0"
            ),
            "lora_unet_label_emb_0_2": "add_embedding.linear_2",
            "lora_unet_input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
            "lora_unet_output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        }.items():
            assert aliases[name] == ("unet", path)


@pytest.mark.slow
def test_a_merge_is_the_formula(tmp_path):
    """W + scale alpha / rank up down (Hu et al. 2021, section 4.1; kohya's alpha), in both parts with their scales."""
    tensors = NAMES["kohya"] | {f"{TO_Q_KOHYA}.alpha": np.float32(6)} | TEXT_NAMES["kohya"]
    file = write(tmp_path / "a.safetensors", tensors)
    none, made = merged(file, scale=1e-30), merged(file, scale=0.5, text_encoder_scale=-2.0)
    (up, down), (text_up, text_down) = NAMES["kohya"].values(), TEXT_NAMES["kohya"].values()
    expected = {
        ("unet", f"{TO_Q}.weight"): 0.5 * 6 / 3 * up.astype(np.float64) @ down,
        ("text_encoder", f"{TEXT_Q}.weight"): -2.0 * text_up.astype(np.float64) @ text_down,
    }
    assert made.keys() == expected.keys()
    for key, delta in expected.items():
        np.testing.assert_allclose(made[key], none[key] + delta, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_alpha_of_diffusers_metadata_counts(tmp_path):
    """peft: alpha / rank, alpha / sqrt(rank) with use_rslora, and alpha_pattern for single layers."""
    name = NAMES["diffusers"]
    cases = [
        ({"unet.lora_alpha": 12, "unet.r": 3}, 4.0),
        ({"lora_alpha": 6}, 2.0),
        ({"unet.lora_alpha": 6, "unet.use_rslora": True}, 6 / 3**0.5),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {TO_Q: 3}}, 1.0),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 9}}, 3.0),
        ({"text_encoder.lora_alpha": 6}, 1.0),
        ({}, 1.0),
    ]
    for number, (written, factor) in enumerate(cases):
        file = write(tmp_path / f"{number}.safetensors", name, {"lora_adapter_metadata": json.dumps(written)})
        (difference,) = opened_lora(file).differences
        assert difference.factor == pytest.approx(factor), written


@pytest.mark.slow
def test_a_file_of_peft_alone_says_that_its_alpha_is_elsewhere(tmp_path):
    (note,) = opened_lora(write(tmp_path / "a.safetensors", NAMES["peft"])).notes
    assert "adapter_config.json, which is not read" in note
    assert not opened_lora(write(tmp_path / "b.safetensors", NAMES["kohya"])).notes


@pytest.mark.long
@pytest.mark.slow
def test_several_loras_add_up(tmp_path):
    first = opened_lora(write(tmp_path / "a.safetensors", NAMES["kohya"]))
    second = opened_lora(write(tmp_path / "b.safetensors", pair(TO_Q_KOHYA, rank=2)))

    def made(*scales):
        scaled = [
            ScaledLora(lora=lora, scale=s, text_encoder_scale=s)
            for lora, s in zip((first, second), scales, strict=True)
        ]
        return values("sd1", scaled)["unet", f"{TO_Q}.weight"]

    base = made(0.0, 0.0)
    np.testing.assert_allclose(made(0.5, 2.0) - base, (made(0.5, 0.0) - base) + (made(0.0, 2.0) - base), atol=1e-6)
    assert np.abs(made(0.5, 2.0) - base).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_no_two_layers_have_one_name(layout):
    architecture = checkpoint(layout)
    paths = {part: layers(layout, part) for part in (*architecture.family.parts("encode"), "unet")}
    aliases = layer_aliases(architecture.family, paths)
    assert set(aliases.values()) == {(part, path) for part, own in paths.items() for path in own}
    assert len(set(ldm_unet_names(paths["unet"]).values())) == len(paths["unet"])


@pytest.mark.slow
def test_a_lora_of_another_base_is_refused_and_its_base_is_named(tmp_path):
    xl = pair("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", TEXT_Q)
    flux = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": random(2, 8)}
    wide = {f"{TO_Q_KOHYA}.lora_up.weight": random(16, 2), f"{TO_Q_KOHYA}.lora_down.weight": random(2, 99)}
    for number, (tensors, metadata, base) in enumerate(
        [
            (xl, None, "Stable Diffusion XL"),
            (flux, None, "Flux"),
            (wide, {"ss_base_model_version": "sdxl_base_v1-0"}, "Stable Diffusion XL"),
            (wide, {"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "Stable Diffusion 2.x"),
            (wide, {"ss_sd_model_name": "/models/sd_xl_base_1.0.safetensors"}, "Stable Diffusion XL"),
            (wide, {"ss_sd_model_name": "v1-5-pruned.safetensors"}, "Stable Diffusion 1.x"),
            (wide, {"ss_sd_model_name": "runwayml/stable-diffusion-v1-5"}, "Stable Diffusion 1.x"),
            (wide, {"ss_sd_model_name": "v2-1_768-ema-pruned.ckpt"}, "Stable Diffusion 2.x"),
            (wide, {"ss_sd_model_name": "C:\\models\\dreams_12.safetensors"}, "dreams_12.safetensors"),
            (wide, {"modelspec.title": "Ink, for SDXL"}, "Stable Diffusion XL"),
            (wide, {"modelspec.title": "Ink (SD 1.5)"}, "Stable Diffusion 1.x"),
        ]
    ):
        line = error(write(tmp_path / f"{number}.safetensors", tensors, metadata))
        assert f"does not fit model=tiny (it was made for {base})" in line
    assert "(2, 99)" in line and "and the weight is (16, 16)" in line
    untold = error(write(tmp_path / "untold.safetensors", wide, {"modelspec.title": "v2 of Ink"}))
    assert "does not fit model=tiny; choose" in untold


@pytest.mark.slow
def test_a_lora_of_another_base_is_a_short_line_that_names_three_tensors(tmp_path):
    """A whole LoRA of SDXL: two thousand tensors, most of layers that the model does not have."""
    tensors = {}
    for number in range(700):
        layer = f"lora_unet_output_blocks_{number}_1_transformer_blocks_9_attn2_to_out_0"
        tensors |= {f"{layer}.lora_up.weight": random(2, 1), f"{layer}.lora_down.weight": random(1, 2)}
    tensors |= {f"{TO_Q_KOHYA}.lora_up.weight": random(16, 2), f"{TO_Q_KOHYA}.lora_down.weight": random(2, 99)}
    line = error(write(tmp_path / "xl.safetensors", tensors, {"ss_base_model_version": "sdxl_base_v1-0"}))
    assert "(it was made for Stable Diffusion XL); choose a LoRA for this model, or the model that it was" in line
    assert (
        line.count("lora_unet") == 3 and "1400 for which the model has no layer: " in line and "and 1397 more" in line
    )
    assert line.endswith("; 1 of another shape")
    assert len(line) < 800


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"x.lora_up.weight": random(2, 2), "x.lora_down.weight": random(2, 2)}, "2 for which the model has no layer"),
        (
            NAMES["kohya"] | {f"{TO_Q_KOHYA}.oft_blocks": random(2, 2)},
            "1 for which the model has no layer: .*oft_blocks",
        ),
        ({f"{TO_Q_KOHYA}.lora_up.weight": random(16, 2)}, "incomplete"),
        (NAMES["kohya"] | {f"{TO_Q_KOHYA}.hada_w1_a": random(2, 2)}, "incomplete, or of a kind"),
        ({f"{TO_Q_KOHYA}.alpha": np.float32(1)}, "incomplete"),
        (NAMES["kohya"] | NAMES["diffusers"], "for a layer that has another"),
        (NAMES["kohya"] | {f"{TO_Q_KOHYA}.alpha": np.zeros(3, np.float32)}, "alpha is one number"),
        (NAMES["kohya"] | {f"{TO_Q_KOHYA}.dora_scale": random(7, 1)}, "of another shape"),
        ({f"{TO_Q_KOHYA}.diff": random(16, 15)}, "of another shape"),
        ({f"{TO_Q_KOHYA}.diff_b": random(16)}, "no layer"),  # to_q has no bias
        ({k: v.astype(np.int32) for k, v in NAMES["kohya"].items()}, "of a type other than"),
        ({f"{TO_Q_KOHYA}.lokr_w1": random(4), f"{TO_Q_KOHYA}.lokr_w2": random(4, 4)}, "of another shape"),
        ({f"{TO_Q_KOHYA}.lokr_w1": random(3, 3), f"{TO_Q_KOHYA}.lokr_w2": random(5, 5)}, "of another shape"),
        ({}, "changes no weight"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, tensors, said):
    assert re.search(said, error(write(tmp_path / "a.safetensors", tensors)))


@pytest.mark.slow
def test_nan_is_refused_with_its_tensor(tmp_path):
    up, down = NAMES["kohya"]
    tensors = NAMES["kohya"] | {down: np.full_like(NAMES["kohya"][down], np.nan)}
    lora = opened_lora(write(tmp_path / "a.safetensors", tensors))
    with pytest.raises(UserError, match="lora_down.weight has NaN or infinity"):
        lora.read(lora.differences[0])
    file = write(tmp_path / "b.safetensors", NAMES["kohya"] | {f"{TO_Q_KOHYA}.alpha": np.float32(np.inf)})
    assert "alpha has NaN or infinity" in error(file)


@pytest.mark.slow
def test_a_rank_of_a_billion_costs_nothing(tmp_path):
    """The header says so, and a sparse file has as many bytes."""
    rank = 10**9
    sizes = {f"{TO_Q_KOHYA}.lora_up.weight": [16, rank], f"{TO_Q_KOHYA}.lora_down.weight": [rank, 16]}
    header, start = {}, 0
    for name, shape in sizes.items():
        end = start + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        start = end
    data = json.dumps(header).encode()
    path = tmp_path / "huge.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + start)
    assert "is the most for this model" in error(path)
    path.write_bytes(struct.pack("<Q", len(data)) + data)
    assert "is not a whole safetensors file" in error(path)


@pytest.mark.slow
def test_hostile_metadata_is_one_line(tmp_path):
    for number, text in enumerate(
        [
            "[" * 100_000,
            "5",
            '{"unet.lora_alpha": "x"}',
            '{"unet.lora_alpha": NaN}',
            '{"unet.alpha_pattern": {"(a+)+$": 1}}',
        ]
    ):
        line = error(write(tmp_path / f"{number}.safetensors", NAMES["diffusers"], {"lora_adapter_metadata": text}))
        assert "save the file again" in line or "is not read" in line


@pytest.mark.slow
def test_files_that_are_no_lora_are_refused(tmp_path):
    def refused(**source):
        with pytest.raises(UserError) as caught:
            open_loras([LoraConfig(**source)], config().model, checkpoint())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "a.pt").write_bytes(b"x")
    assert "is a pickle" in (line := refused(path=str(tmp_path / "a.pt"))) and "weights_only=True" in line
    assert "no such file" in refused(path=str(tmp_path / "none.safetensors"))
    assert "is a directory" in refused(path=str(tmp_path))
    assert "no layer" in refused(path=str(tiny() / "unet/diffusion_pytorch_model.safetensors"))
    (tmp_path / "b.safetensors").write_bytes(b"12")
    assert "too few" in refused(path=str(tmp_path / "b.safetensors"))


def test_a_stored_name_is_split_at_its_longest_end():
    layers, unknown = stored_layers(["a.lora.up.weight", "a_lora.down.weight", "b.lora_A.default.weight", "c"])
    assert {name: layer.roles for name, layer in layers.items()} == {
        "a": {"up": "a.lora.up.weight", "down": "a_lora.down.weight"}, "b": {"down": "b.lora_A.default.weight"},
    }  # fmt: skip
    assert unknown == ["c"]
