"""The embedded model in PyTorch diffusers: it loads unchanged, and every network and whole images come out the same."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from diffusers import StableDiffusionPipeline  # noqa: E402
from flax import nnx  # noqa: E402
from support.runs import config  # noqa: E402

from tpusd.checkpoints import ModelSource, load_weights, open_checkpoint  # noqa: E402
from tpusd.engine.noise import image_key, initial_latents  # noqa: E402
from tpusd.engine.pipeline import Pipeline  # noqa: E402
from tpusd.plan.specs import make_specs  # noqa: E402
from tpusd.runs.prepare import prepare_run  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # the reference's own deprecations are not ours
]
PROMPTS = ["portrait of a smiling woman with long red hair and round glasses, teal background", "a café at night"]


@pytest.fixture(scope="module")
def ours():
    checkpoint = open_checkpoint(ModelSource(asset="tiny"))
    kw = dict(dtype=jnp.float32, param_dtype=jnp.float32)
    models = {}
    for part in ("text_encoder", "unet", "vae"):
        graphdef = nnx.split(checkpoint.abstract(part, **kw))[0]
        models[part] = nnx.merge(graphdef, load_weights(checkpoint, part, param_dtype=jnp.float32))
    return checkpoint, models


@pytest.fixture(scope="module")
def theirs(ours):
    directory = str(ours[0].directory)
    return StableDiffusionPipeline.from_pretrained(directory, local_files_only=True).to(torch.float32)


def close(left, right):
    right = right.detach().numpy()
    np.testing.assert_allclose(np.asarray(left), right, atol=2e-4 * np.abs(right).max(), rtol=0)


def test_prompts_have_the_same_tokens_and_states(ours, theirs):
    checkpoint, models = ours
    ids = checkpoint.tokenizers[0](PROMPTS).input_ids
    reference = theirs.tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    np.testing.assert_array_equal(ids, reference.numpy())
    with torch.no_grad():
        close(models["text_encoder"](jnp.asarray(ids)).last_hidden_state, theirs.text_encoder(reference)[0])


def test_denoiser_predicts_the_same(ours, theirs):
    _, models = ours
    rng = np.random.default_rng(3)
    sample, text = rng.standard_normal((2, 16, 16, 4), np.float32), rng.standard_normal((2, 77, 64), np.float32)
    times = np.array([7, 811])
    mine = models["unet"](jnp.asarray(sample), jnp.asarray(times), jnp.asarray(text))
    with torch.no_grad():
        there = theirs.unet(torch.tensor(sample).permute(0, 3, 1, 2), torch.tensor(times), torch.tensor(text)).sample
    close(mine, there.permute(0, 2, 3, 1))


def test_autoencoder_draws_the_same(ours, theirs):
    _, models = ours
    latents = np.random.default_rng(5).standard_normal((1, 16, 16, 4), np.float32)
    with torch.no_grad():
        there = theirs.vae.decode(torch.tensor(latents).permute(0, 3, 1, 2)).sample
    close(models["vae"].decode(jnp.asarray(latents)), there.permute(0, 2, 3, 1))


def test_whole_images_are_the_same(theirs):
    """Ours by the product's own path, theirs by StableDiffusionPipeline with its own scheduler, from the same noise."""
    rows = ", ".join(f'{{prompt: "{prompt}"}}' for prompt in PROMPTS)
    made = config("model=tiny", "precision=fp32", "seed=3", f"prompts.rows=[{rows}]", "batch_size_per_device=2")
    prepared = prepare_run(made)
    size = dict(height=prepared.config.height, width=prepared.config.width)
    pipeline = Pipeline.load(
        prepared.checkpoint, made.precision, batch_size_per_device=2, devices=jax.devices()[:1], **size
    )
    specs = list(make_specs(prepared.config))
    ours = pipeline.generate(specs, [prepared.table(spec) for spec in specs])
    keys = np.stack([image_key(spec.seed, spec.row, spec.copy, spec.row_seed) for spec in specs])
    latents = np.asarray(initial_latents(keys, (4, 16, 16))).transpose(0, 3, 1, 2)
    reference = theirs(
        PROMPTS, latents=torch.tensor(latents), guidance_scale=made.guidance_scale, output_type="np",
        num_inference_steps=made.sampler.num_inference_steps,
    ).images  # fmt: skip
    for image, there in zip(ours, reference, strict=True):
        difference = np.abs(image.pixels - there * 255)
        assert difference.mean() < 0.6 and np.percentile(difference, 99) < 2, (difference.mean(), difference.max())
