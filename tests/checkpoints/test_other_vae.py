"""`model.vae`: an autoencoder from elsewhere in place of the checkpoint's own."""

import shutil

import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file, save_file
from support.checkpoints import TEXT, UNET, VAE, assert_equal, edit, load_tool, opened, tiny
from support.original_files import VAE as PREFIX
from support.original_files import vae_name, write_original
from support.runs import config

from tpusd.checkpoints import ModelSource, load_weights, open_checkpoint
from tpusd.config.schema import OtherPart, config_values
from tpusd.errors import UserError
from tpusd.runs.prepare import prepare_run


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A checkpoint with another autoencoder."""
    root = tmp_path_factory.mktemp("other") / "checkpoint"
    load_tool("make_tiny_checkpoint").make_tiny_checkpoint(root, seed=1)
    return root


def vae_of(checkpoint):
    return load_weights(checkpoint, "vae", param_dtype=jnp.float32)


def with_vae(path, root=None, **source):
    return opened(root or tiny(), vae=OtherPart(path=str(path)), **source)


def original_vae(root, prefix):
    return {prefix + vae_name(name, 4): value for name, value in load_file(root / VAE).items()}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("form", ["directory", "folder", "file", "file with a prefix", "diffusers file", "checkpoint"])
def test_every_form_gives_the_same_weights(tmp_path, other, form):
    path = tmp_path / "vae.safetensors"
    if form == "directory":
        path = other
    elif form == "folder":
        path = other / "vae"
    elif form == "checkpoint":
        write_original(other, path)
    elif form == "diffusers file":
        path = other / VAE
    else:
        save_file(original_vae(other, PREFIX if "prefix" in form else ""), path)
    checkpoint = with_vae(path)
    assert_equal(vae_of(checkpoint), vae_of(opened(other)))
    assert_equal(
        load_weights(checkpoint, "text_encoder", param_dtype=jnp.float32),
        load_weights(opened(tiny()), "text_encoder", param_dtype=jnp.float32),
    )
    names = set(checkpoint.identity.files)
    assert {UNET, TEXT} <= names and VAE not in names and "vae/config.json" not in names
    assert any(name.startswith("model.vae") for name in names)


@pytest.mark.slow
def test_a_single_file_may_lack_its_vae(tmp_path, other):
    def change(tensors):
        for name in [name for name in tensors if name.startswith(PREFIX)]:
            del tensors[name]

    file = write_original(tiny(), tmp_path / "x.safetensors", change)
    checkpoint = with_vae(other / "vae", file, config=str(tiny()))
    assert_equal(vae_of(checkpoint), vae_of(opened(other)))


@pytest.mark.slow
def test_the_directorys_own_scaling_is_taken(tmp_path, other):
    root = shutil.copytree(other / "vae", tmp_path / "vae")
    edit(root / "config.json", scaling_factor=0.5)
    assert with_vae(root).configs["vae"].scaling_factor == 0.5
    assert with_vae(root / "diffusion_pytorch_model.safetensors").configs["vae"].scaling_factor == 0.18215


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda root: (root / "config.json").unlink(), "has neither config.json nor vae/config.json"),
        (lambda root: (root / "diffusion_pytorch_model.safetensors").unlink(), "has no weights"),
        (lambda root: edit(root / "config.json", latent_channels=16), "they must be equal"),
        (lambda root: edit(root / "config.json", act_fn="gelu"), "not implemented: act_fn"),
        (shutil.rmtree, "no such directory"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, other, change, expected):
    root = shutil.copytree(other / "vae", tmp_path / "vae")
    change(root)
    with pytest.raises(UserError) as caught:
        vae_of(with_vae(root))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_a_vae_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no VAE; choose"):
        with_vae(tiny() / TEXT)
    (tmp_path / "vae.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="is a pickle"):
        with_vae(tmp_path / "vae.pt")


@pytest.mark.parametrize(
    "fields, expected",
    [
        (["model.vae.path=a", "model.vae.repo=b/c"], "leave one of the two out"),
        (["model.vae.revision=a"], "set model.vae.repo"),
        (["model.vae.repo=a/b", "model.vae.file=x.pt"], "must be a .safetensors file"),
        (["model.vae.repo=a/b", "model.vae.file=../x.safetensors"], "inside the repository"),
        (["model.file=x.safetensors"], "is a file of model.repo"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(fields, expected):
    with pytest.raises(UserError, match=expected):
        config("model=tiny", *fields)


@pytest.mark.slow
def test_a_saved_config_has_the_new_fields_only_where_they_are_set(other, tmp_path, monkeypatch):
    monkeypatch.chdir(other.parent)
    plain = prepare_run(config("model=local", f"model.path={tiny()}", "prompt=a"))
    assert " ".join(config_values(plain.config)["model"]) == (
        "name asset path repo revision variant sha256 guidance_scale"
    )
    run = prepare_run(config("model=local", f"model.path={tiny()}", "model.vae.path=checkpoint/vae", "prompt=a"))
    saved = config_values(run.config)["model"]
    assert saved["vae"] == {"path": str(other / "vae"), "repo": None, "revision": None, "file": None}
    assert "clip_skip" not in saved


def test_a_source_without_a_vae_reads_its_own():
    assert open_checkpoint(ModelSource(path=str(tiny()), vae=OtherPart())).identity.sha256.keys() >= {VAE}
