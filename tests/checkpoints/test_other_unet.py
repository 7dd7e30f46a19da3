"""`model.unet`: a UNet from elsewhere, such as a distilled one, in place of the checkpoint's own."""

import json
import shutil

import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file, save_file
from support.checkpoints import TEXT, UNET, VAE, assert_equal, copy, edit, error_of, load_tool, opened, tiny
from support.original_files import unet_name, write_original
from support.runs import config

from tpusd.checkpoints import load_weights
from tpusd.config.schema import OtherPart, config_values
from tpusd.errors import UserError
from tpusd.runs.prepare import prepare_run

pytestmark = pytest.mark.slow
PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A checkpoint with another UNet."""
    root = tmp_path_factory.mktemp("other") / "checkpoint"
    load_tool("make_tiny_checkpoint").make_tiny_checkpoint(root, seed=1)
    return root


def unet_of(checkpoint):
    return load_weights(checkpoint, "unet", param_dtype=jnp.float32)


def with_unet(path):
    return opened(tiny(), unet=OtherPart(path=str(path)))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("form", ["directory", "folder", "diffusers file", "file", "file with a prefix", "checkpoint"])
def test_every_form_gives_the_same_weights(tmp_path, other, form):
    path = tmp_path / "unet.safetensors"
    if form == "directory":
        path = other
    elif form == "folder":
        path = other / "unet"
    elif form == "diffusers file":
        path = other / UNET
    elif form == "checkpoint":
        write_original(other, path)
    else:
        shape = json.loads((other / "unet/config.json").read_text())
        prefix = PREFIX if "prefix" in form else ""
        save_file({prefix + unet_name(name, shape): value for name, value in load_file(other / UNET).items()}, path)
    checkpoint = with_unet(path)
    assert_equal(unet_of(checkpoint), unet_of(opened(other)))
    names = set(checkpoint.identity.files)
    assert {VAE, TEXT} <= names and UNET not in names and "unet/config.json" not in names
    assert any(name.startswith("model.unet") for name in names)


def test_a_unet_and_a_vae_come_together(other):
    both = OtherPart(path=str(other))
    checkpoint = opened(tiny(), unet=both, vae=both)
    names = set(checkpoint.identity.files)
    assert not {UNET, VAE} & names and {"model.unet/config.json", "model.vae/config.json"} <= names


def test_the_checkpoints_own_weights_need_not_be_there(tmp_path, other):
    root = copy(tmp_path)
    (root / UNET).unlink()
    checkpoint = opened(root, unet=OtherPart(path=str(other)))
    assert_equal(unet_of(checkpoint), unet_of(opened(other)))
    assert "has no weights" in error_of(root)
    (root / TEXT).unlink()
    assert "text_encoder: has no weights" in error_of(root, unet=OtherPart(path=str(other)))


def test_a_directory_brings_its_own_config(tmp_path, other):
    root = copy(tmp_path)
    edit(root / "unet/config.json", time_cond_proj_dim=256)
    assert with_unet(root / "unet").configs["unet"].time_cond_proj_dim == 256


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda root: (root / "config.json").unlink(), "has neither config.json nor unet/config.json"),
        (lambda root: (root / "diffusion_pytorch_model.safetensors").unlink(), "choose another UNet"),
        (lambda root: edit(root / "config.json", cross_attention_dim=48), "they must be equal"),
        (lambda root: edit(root / "config.json", time_cond_proj_dim=257), "time_cond_proj_dim=257: must be a multiple"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, other, change, expected):
    root = shutil.copytree(other / "unet", tmp_path / "unet")
    change(root)
    with pytest.raises(UserError) as caught:
        unet_of(with_unet(root))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_a_unet_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no UNet; choose"):
        with_unet(tiny() / VAE)
    (tmp_path / "unet.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"model.unet.path=.*is a pickle"):
        with_unet(tmp_path / "unet.bin")


def test_a_saved_config_has_the_whole_path(other, tmp_path, monkeypatch):
    monkeypatch.chdir(other.parent)
    run = prepare_run(config("model=local", f"model.path={tiny()}", "model.unet.path=checkpoint/unet", "prompt=a"))
    saved = config_values(run.config)["model"]
    assert saved["unet"] == {"path": str(other / "unet"), "repo": None, "revision": None, "file": None}
    assert "vae" not in saved and "loras" not in saved
