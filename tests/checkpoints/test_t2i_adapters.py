"""T2I-Adapters in `model.controlnets`: which files are read, which are refused."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.checkpoints import assert_equal, edit, error_of, opened, tiny
from support.runs import config
from support.t2i_adapters import CONFIGS, WEIGHTS, original_name, three_levels, tiny_adapter

from tpusd.checkpoints import load_weights
from tpusd.checkpoints.published import find_architecture
from tpusd.config.controls import ControlNet
from tpusd.families.controls import check_adapter_fits
from tpusd.networks.t2i_adapter import T2IAdapterConfig
from tpusd.networks.unet_config import UNetConfig

pytestmark = pytest.mark.slow
PART = "t2i_adapter_0"


def weights_of(root, path):
    return load_weights(opened(root, controlnets=(ControlNet(path=str(path)),)), PART, param_dtype=jnp.float32)


@pytest.mark.parametrize("form", ["folder", "diffusers file", "original file"])
@pytest.mark.parametrize("name", ["sd1_three", "sdxl_three", "light"])
def test_every_form_gives_the_same_weights(tmp_path, name, form):
    root, adapter, path = three_levels("sdxl" if name == "sdxl_three" else "sd1"), tiny_adapter(name), tmp_path
    if form == "folder":
        shutil.copytree(adapter, tmp_path / "adapter")
    elif form == "diffusers file":
        path = adapter / WEIGHTS
    else:
        path = tmp_path / "x.safetensors"
        tensors = load_file(adapter / WEIGHTS)
        save_file({original_name(own, CONFIGS[name]): value for own, value in tensors.items()}, path)
    assert_equal(weights_of(root, path), weights_of(root, adapter))
    fields = ["model=local", f"model.path={root}", f"model.controlnets=[{{path: {path}}}]"]
    found = find_architecture(config(*fields).model)
    assert found.configs[PART] == CONFIGS[name] and found.controls == (PART,)


@pytest.mark.parametrize(
    ("kind", "unet"),
    [
        (T2IAdapterConfig(), UNetConfig()),
        (T2IAdapterConfig(channels=(320, 640, 1280), adapter_type="light_adapter", num_res_blocks=4), UNetConfig()),
        (
            T2IAdapterConfig(adapter_type="full_adapter_xl", downscale_factor=16),
            UNetConfig(
                block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            ),
        ),
    ],
)  # fmt: skip
def test_published_adapters_fit_published_unets(kind, unet):
    """The configs of TencentARC's adapters for SD 1.4 and SDXL."""
    check_adapter_fits(kind, unet, 8, "x")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: edit(root / "config.json", channels=[16, 48]), "is a T2I-Adapter of another base model: its"),
        (lambda root: edit(root / "config.json", adapter_type="big"), "must be one of full_adapter, full_adapter_xl"),
        (lambda root: edit(root / "config.json", in_channels=2), "in_channels=2: must be 1 or 3"),
        (lambda root: edit(root / "config.json", downscale_factor=1000), "downscale_factor=1000: must be from 1 to 64"),
        (lambda root: edit(root / "config.json", num_res_blocks=10**9), "num_res_blocks"),
        (lambda root: edit(root / "config.json", channels=[16] * 40), "channels"),
        (lambda root: edit(root / "config.json", more=1), "more=1 (unknown field)"),
        (lambda root: (root / WEIGHTS).unlink(), "choose another T2I-Adapter"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, change, expected):
    root = shutil.copytree(tiny_adapter(), tmp_path / "net")
    change(root)
    assert expected in error_of(tiny(), controlnets=(ControlNet(path=str(root)),))


def test_an_adapter_of_another_family_is_refused():
    line = error_of(tiny(), controlnets=(ControlNet(path=str(tiny_adapter("sdxl"))),))
    assert "its feature maps have 16 channels at 1/16, 32 channels at 1/16" in line


def test_other_layers_in_a_file_are_one_line(tmp_path):
    tensors = load_file(tiny_adapter() / WEIGHTS)
    first = tensors.pop("adapter.conv_in.weight")
    for weight, expected in ((None, "has no first layer of a T2I-Adapter"), (first[:, :100], "for 1 or 3 channels of")):
        own = tensors if weight is None else {**tensors, "adapter.conv_in.weight": np.ascontiguousarray(weight)}
        save_file(own, tmp_path / "x.safetensors")
        assert expected in error_of(tiny(), controlnets=(ControlNet(path=str(tmp_path / "x.safetensors")),))
    save_file({**tensors, "adapter.conv_in.weight": first, "more": first}, tmp_path / "x.safetensors")
    source = (ControlNet(path=str(tmp_path / "x.safetensors")),)
    line = error_of(tiny(), lambda made: load_weights(made, PART, param_dtype=jnp.float32), controlnets=source)
    assert "1 that the model of config.json does not have: more" in line


def test_an_adapter_in_place_of_a_checkpoint_is_named():
    assert "is a T2I-Adapter; use it with model.controlnets=[{path: FILE}]" in error_of(tiny_adapter() / WEIGHTS)


def test_sizes_are_multiples_of_what_sdxls_adapter_puts_together():
    checkpoint = opened(tiny("sdxl"), controlnets=(ControlNet(path=str(tiny_adapter("sdxl"))),))
    assert checkpoint.family.size_multiple(checkpoint.configs) == 16
    assert checkpoint.family.latent_shape(checkpoint.configs, 64, 80) == (8, 10, 4)


def test_a_saved_config_is_what_diffusers_writes():
    values = json.loads((tiny_adapter("light") / "config.json").read_text())
    assert values["_class_name"] == "T2IAdapter" and values["channels"] == [16, 32]
