"""Training goes on from an exported checkpoint."""

import jax
import numpy as np
import pytest

pytest.importorskip("optax")
pytest.importorskip("orbax.checkpoint")

from safetensors.numpy import load_file

from tpusd.checkpoints import ModelSource, open_checkpoint
from training import autoencoder, denoiser
from training.exported import load_exported


@pytest.fixture(scope="module")
def embedded():
    return open_checkpoint(ModelSource(asset="tiny"))


def shapes(state):
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), state)


@pytest.mark.long
@pytest.mark.slow
def test_exported_weights_fit_the_networks_that_are_trained(embedded):
    folder = embedded.directory
    _, params = denoiser.make_model(embedded.tokenizers[0].vocab_size)
    _, vae = autoencoder.make_model()
    assert shapes(load_exported(folder, "vae")) == shapes(vae)
    for part in ("unet", "text_encoder"):
        assert shapes(load_exported(folder, part)) == shapes(params[part])


@pytest.mark.slow
def test_exported_weights_are_those_of_the_file(embedded):
    stored = load_file(embedded.directory / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    kernel = load_exported(embedded.directory, "unet")["conv_in"]["kernel"]
    np.testing.assert_array_equal(np.asarray(kernel[...]), stored.astype(np.float32).transpose(2, 3, 1, 0))
