"""Each network against PyTorch diffusers and transformers: random weights of every layout through the loading path."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from flax import nnx  # noqa: E402
from support.checkpoints import tiny  # noqa: E402
from transformers import CLIPTextModel, CLIPTextModelWithProjection  # noqa: E402

from tpusd.checkpoints import ModelSource, load_weights, open_checkpoint  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # the reference's own deprecations are not ours
]
LAYOUTS = ("sd1", "sd2", "sdxl")
RELATIVE = 1e-4  # of the largest value


def ours(layout, part, clip_skip=0):
    checkpoint = open_checkpoint(ModelSource(path=str(tiny(layout))))
    checkpoint = dataclasses.replace(
        checkpoint,
        configs={
            **checkpoint.configs,
            **({part: dataclasses.replace(checkpoint.configs[part], clip_skip=clip_skip)} if clip_skip else {}),
        },
    )
    graph, _ = nnx.split(checkpoint.abstract(part))
    state = load_weights(checkpoint, part, param_dtype=jnp.float32)
    return checkpoint, lambda call, *args: jax.jit(lambda s, *a: call(nnx.merge(graph, s), *a))(state, *args)


def close(left, right):
    right = right.detach().numpy()
    assert left.shape == right.shape and np.abs(right).max() > 0.1
    np.testing.assert_allclose(np.asarray(left), right, atol=RELATIVE * np.abs(right).max(), rtol=0)


@pytest.mark.parametrize(
    ("layout", "part"), [*((layout, "text_encoder") for layout in LAYOUTS), ("sdxl", "text_encoder_2")]
)
def test_text_encoder(layout, part):
    checkpoint, run = ours(layout, part)
    tokenizer = checkpoint.tokenizers[part == "text_encoder_2"]
    ids = tokenizer(["a red fox", "", "words " * 60]).input_ids
    output = run(lambda model, ids: model(ids), jnp.asarray(ids))
    projected = part == "text_encoder_2"
    cls = CLIPTextModelWithProjection if projected else CLIPTextModel
    model = cls.from_pretrained(str(tiny(layout) / part)).float().eval()
    with torch.no_grad():
        reference = model(torch.tensor(ids, dtype=torch.long), output_hidden_states=True)
    close(output.last_hidden_state, reference.last_hidden_state)
    close(output.penultimate_hidden_state, reference.hidden_states[-2])
    close(output.pooled, reference.text_embeds if projected else reference.pooler_output)


@pytest.mark.parametrize(
    ("layout", "part"), [("sd1", "text_encoder"), ("sdxl", "text_encoder"), ("sdxl", "text_encoder_2")]
)
@pytest.mark.parametrize("clip_skip", [0, 1])
def test_clip_skip_takes_the_states_of_earlier_layers(layout, part, clip_skip):
    """As diffusers' pipelines: SD 1.x takes hidden_states[-(k + 1)] after the final norm, SDXL hidden_states[-(k + 2)]
    as it is, and SDXL's pooled text is that of the whole encoder."""
    checkpoint, run = ours(layout, part, clip_skip=clip_skip)
    ids = checkpoint.tokenizers[part == "text_encoder_2"](["a red fox", "words " * 60]).input_ids
    output = run(lambda model, ids: model(ids), jnp.asarray(ids))
    projected = part == "text_encoder_2"
    cls = CLIPTextModelWithProjection if projected else CLIPTextModel
    model = cls.from_pretrained(str(tiny(layout) / part)).float().eval()
    with torch.no_grad():
        reference = model(torch.tensor(ids, dtype=torch.long), output_hidden_states=True)
        states = reference.hidden_states
        final_norm = next(m for name, m in model.named_modules() if name.endswith("final_layer_norm"))
        close(output.last_hidden_state, final_norm(states[-(clip_skip + 1)]))
    close(output.penultimate_hidden_state, states[-(clip_skip + 2)])
    close(output.pooled, reference.text_embeds if projected else reference.pooler_output)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 20), (9, 13)])
def test_unet(layout, height, width):
    """Odd latent sizes too: 520 pixels are 65 latents, halved to 33."""
    checkpoint, run = ours(layout, "unet")
    config = checkpoint.configs["unet"]
    rng = np.random.default_rng(3)
    sample = rng.standard_normal((2, height, width, config.in_channels), np.float32)
    text = rng.standard_normal((2, 77, config.cross_attention_dim), np.float32)
    times = np.array([7.25, 811.0], np.float32)
    more, kwargs = (), {}
    if layout == "sdxl":
        pooled = rng.standard_normal((2, checkpoint.configs["text_encoder_2"].projection_dim), np.float32)
        sizes = np.array([[768, 512, 0, 0, 768, 512], [64, 64, 8, 16, 128, 128]], np.float32)
        more = (pooled, sizes)
        kwargs = {"added_cond_kwargs": {"text_embeds": torch.tensor(pooled), "time_ids": torch.tensor(sizes)}}
    prediction = run(lambda model, *args: model(*args), sample, times, text, *more)
    model = UNet2DConditionModel.from_pretrained(str(tiny(layout) / "unet")).float().eval()
    with torch.no_grad():
        reference = model(
            torch.tensor(sample).permute(0, 3, 1, 2), torch.tensor(times), torch.tensor(text), **kwargs
        ).sample
    close(prediction, reference.permute(0, 2, 3, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 11)])
def test_autoencoder(layout, height, width):
    checkpoint, run = ours(layout, "vae")
    rng = np.random.default_rng(5)
    model = AutoencoderKL.from_pretrained(str(tiny(layout) / "vae")).float().eval()
    latents = rng.standard_normal((2, height, width, checkpoint.configs["vae"].latent_channels), np.float32)
    images = rng.uniform(-1, 1, (2, 8 * height, 8 * width, 3)).astype(np.float32)
    with torch.no_grad():
        decoded = model.decode(torch.tensor(latents).permute(0, 3, 1, 2)).sample
        encoded = model.encode(torch.tensor(images).permute(0, 3, 1, 2)).latent_dist
    close(run(lambda vae, x: vae.decode(x), latents), decoded.permute(0, 2, 3, 1))
    mean, logvar = run(lambda vae, x: vae.encode(x), images)
    close(mean, encoded.mean.permute(0, 2, 3, 1))
    close(logvar, encoded.logvar.permute(0, 2, 3, 1))
