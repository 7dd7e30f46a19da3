"""`model.controlnets`: which files are read, which are refused."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file, save_file
from support.checkpoints import assert_equal, edit, opened, tiny
from support.controlnets import WEIGHTS, tiny_controlnet
from support.original_files import controlnet_name
from support.runs import config

import tpusd
from tpusd.checkpoints import load_weights
from tpusd.checkpoints.published import find_architecture
from tpusd.config.controls import ControlNet
from tpusd.config.schema import config_values
from tpusd.errors import UserError
from tpusd.runs.prepare import prepare_run

pytestmark = pytest.mark.slow
PART = "controlnet_0"


def with_net(path, layout="sd1"):
    return opened(tiny(layout), controlnets=(ControlNet(path=str(path)),))


def weights_of(checkpoint, part=PART):
    return load_weights(checkpoint, part, param_dtype=jnp.float32)


def line_of(act, *arguments):
    with pytest.raises(UserError) as caught:
        act(*arguments)
    line = str(caught.value)
    assert "\n" not in line and line.isprintable()
    return line


@pytest.mark.parametrize("form", ["folder", "diffusers file", "file", "file without prefix", "file with a checkpoint"])
@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_every_form_gives_the_same_weights(tmp_path, layout, form):
    net, path = tiny_controlnet(layout), tmp_path / "net.safetensors"
    tensors = load_file(net / WEIGHTS)
    shape = json.loads((net / "config.json").read_text())
    if form == "folder":
        path = tmp_path
        shutil.copytree(net, tmp_path / "controlnet")
    elif form == "diffusers file":
        path = net / WEIGHTS
    else:
        prefix = "" if "without" in form else "control_model."
        own = {prefix + controlnet_name(name, shape): value for name, value in tensors.items()}
        others = {"model.diffusion_model.out.2.bias": tensors["controlnet_mid_block.bias"]} if "with a" in form else {}
        save_file({**own, **others}, path)
    checkpoint = with_net(path, layout)
    assert_equal(weights_of(checkpoint), weights_of(with_net(net, layout)))
    assert any(name.startswith("model.controlnets.0") for name in checkpoint.identity.files)


def test_several_are_parts_in_their_order():
    first, second = tiny_controlnet(), tiny_controlnet(seed=1)
    checkpoint = opened(tiny(), controlnets=(ControlNet(path=str(first)), ControlNet(path=str(second))))
    assert checkpoint.parts[-2:] == checkpoint.controls == ("controlnet_0", "controlnet_1")
    assert_equal(weights_of(checkpoint, "controlnet_1"), weights_of(with_net(second)))
    names = [name for name in checkpoint.identity.files if "controlnets" in name]
    assert names == [f"model.controlnets.{place}/{name}" for place in (0, 1) for name in ("config.json", WEIGHTS)]


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda root: (root / "config.json").unlink(), "has neither config.json nor controlnet/config.json"),
        (lambda root: (root / WEIGHTS).unlink(), "choose another ControlNet"),
        (lambda root: edit(root / "config.json", cross_attention_dim=48), "is a ControlNet of another base model"),
        (lambda root: edit(root / "config.json", block_out_channels=[8, 16]), "is a ControlNet of another base model"),
        (lambda root: edit(root / "config.json", conditioning_channels=1), "conditioning_channels=1 (implemented: 3)"),
        (lambda root: edit(root / "config.json", class_embed_type="timestep"), "class_embed_type"),
        (lambda root: edit(root / "config.json", _class_name="UNet2DConditionModel"), "is not a ControlNetModel"),
        (lambda root: edit(root / "config.json", block_out_channels=[16] * 40), "block_out_channels"),
        (lambda root: edit(root / "config.json", freq_shift=-1), "freq_shift"),
        (
            lambda root: edit(root / "config.json", conditioning_embedding_out_channels=[4, 8]),
            "pixels of a latent=2, and the checkpoint's UNet has 8",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, change, expected):
    root = shutil.copytree(tiny_controlnet(), tmp_path / "net")
    change(root)
    assert expected in line_of(with_net, root)


def test_weights_that_do_not_fit_are_one_line(tmp_path):
    root = shutil.copytree(tiny_controlnet(), tmp_path / "net")
    tensors = load_file(root / WEIGHTS)
    del tensors["controlnet_down_blocks.0.bias"]
    save_file({**tensors, "more.weight": tensors["conv_in.bias"]}, root / WEIGHTS)
    line = line_of(lambda: weights_of(with_net(root)))
    assert "1 missing: controlnet_down_blocks.0.bias" in line and "more.weight" in line


@pytest.mark.parametrize(
    "names, expected",
    [
        (["decoder.conv_in.weight"], "has no ControlNet; choose"),
        (["lora_controlnet", "input_blocks.0.0.weight"], "has no ControlNet; choose"),
        (["lllite_unet_input_blocks_1_1.down.0.weight"], "has no ControlNet; choose"),
        (["controlnet_cond_embedding.conv_in.weight"], "too few for the"),
        (["input_hint_block.0.weight"], "too few for the"),
    ],
)
def test_other_files_are_refused(tmp_path, names, expected):
    bias = load_file(tiny_controlnet() / WEIGHTS)["conv_in.bias"]
    save_file({name: bias for name in names}, tmp_path / "x.safetensors")
    assert expected in line_of(with_net, tmp_path / "x.safetensors")
    (tmp_path / "x.bin").write_bytes(b"x")
    assert "is a pickle" in line_of(with_net, tmp_path / "x.bin")


def test_a_controlnet_in_place_of_a_checkpoint_is_named(tmp_path):
    line = line_of(opened, tiny_controlnet() / WEIGHTS)
    assert "is a ControlNet; use it with model.controlnets=[{path: FILE}]" in line


def test_the_architecture_needs_no_weights(tmp_path):
    source = config(
        "model=local", f"model.path={tiny('sdxl')}", f"model.controlnets=[{{path: {tiny_controlnet('sdxl')}}}]"
    ).model
    own = find_architecture(source).configs[PART]
    assert own == with_net(tiny_controlnet("sdxl"), "sdxl").configs[PART]


def test_a_saved_config_has_the_whole_path(tmp_path, monkeypatch):
    shutil.copytree(tiny_controlnet(), tmp_path / "net")
    monkeypatch.chdir(tmp_path)
    fields = ["model=local", f"model.path={tiny()}", "prompt=a"]
    run = prepare_run(config(*fields, "model.controlnets=[{path: net, scale: 0.5}]"))
    (saved,) = config_values(run.config)["model"]["controlnets"]
    assert saved == {
        "asset": None, "path": str(tmp_path / "net"), "repo": None, "revision": None, "file": None,
        "scale": 0.5, "start": 0.0, "end": 1.0,
    }  # fmt: skip
    assert any("no row has a control image" in warning for warning in run.warnings)
    assert "controlnets" not in config_values(prepare_run(config(*fields)).config)["model"]


def test_the_packages_own_is_known_by_its_name(tmp_path):
    words = ["prompt=a portrait", "control_image=asset:outline", f"output={tmp_path / 'run'}"]
    prepared = prepare_run(config(*words, "model.controlnets=[{asset: outline}]"))
    assert prepared.checkpoint.controls == (PART,)
    saved = config_values(prepared.config)["model"]["controlnets"][0]
    assert (saved["asset"], saved["path"]) == ("outline", None)
    rule = r"model.controlnets[0].asset=face: the package holds no such ControlNet; it holds outline"
    assert line_of(prepare_run, config(*words, "model.controlnets=[{asset: face}]")) == rule
    both = [*words, "model.controlnets=[{asset: outline, path: a}]"]
    assert "exactly one of asset, path and repo must be set" in line_of(config, *both)


def test_the_packages_weights_are_small():
    files = Path(tpusd.__file__).parent.rglob("*.safetensors")
    assert sum(file.stat().st_size for file in files) < 24 * 10**6
