"""UNets that read the guidance scale (full LCM distillations) against PyTorch diffusers' pipelines, float32."""

import functools
import itertools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from diffusers import (  # noqa: E402
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from support.checkpoints import tiny  # noqa: E402
from support.runs import config  # noqa: E402
from support.scheduler_reference import given_noise  # noqa: E402

from tpusd.checkpoints import ModelSource, open_checkpoint  # noqa: E402
from tpusd.engine import noise as keys  # noqa: E402
from tpusd.engine.pipeline import Pipeline  # noqa: E402
from tpusd.plan.specs import ImageSpec  # noqa: E402
from tpusd.samplers.table import SamplerSettings, make_table  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SIZE, LATENTS, WIDTH = 64, (4, 8, 8), 24  # pixels; latents; of the guidance's embedding
MAX, MEAN = 5e-3, 1e-4  # as in test_images_parity.py
PIPELINES = {"sd1": LatentConsistencyModelPipeline, "sdxl": StableDiffusionXLPipeline}


@functools.cache
def distilled(layout):
    """The reference's pipeline, of random weights, and where it is saved."""
    source = tiny(layout)
    torch.manual_seed(3)
    shape = UNet2DConditionModel.load_config(str(source / "unet"))
    unet = UNet2DConditionModel.from_config(shape, time_cond_proj_dim=WIDTH).eval()
    unet.load_state_dict(UNet2DConditionModel.from_pretrained(str(source / "unet")).state_dict(), strict=False)
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight, std=0.5)
    scheduler = LCMScheduler.from_pretrained(str(source), subfolder="scheduler")
    pipeline = PIPELINES[layout].from_pretrained(str(source), unet=unet, scheduler=scheduler, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    target = source.parent / f"{layout}-lcm"
    pipeline.save_pretrained(str(target))
    return pipeline, target


def drawn(k):
    key = keys.image_key(0, 0, 0)[None]
    noise = keys.initial_latents(key, LATENTS) if k is None else keys.step_noise(key, k, LATENTS)
    return torch.from_numpy(np.asarray(noise).transpose(0, 3, 1, 2).copy())


def reference(layout, steps, scale):
    pipeline, _ = distilled(layout)
    draws = itertools.count()
    with torch.no_grad(), given_noise(pipeline.scheduler, lambda: drawn(next(draws))):
        return pipeline(
            "a red fox",
            latents=drawn(None),
            num_inference_steps=steps,
            guidance_scale=scale,
            height=SIZE,
            width=SIZE,
            output_type="np",
        ).images[0]


@pytest.mark.parametrize("layout", ["sd1", pytest.param("sdxl", marks=pytest.mark.long)])
def test_a_unet_that_reads_the_guidance_scale_makes_the_images_of_the_reference(layout):
    _, path = distilled(layout)
    checkpoint = open_checkpoint(ModelSource(path=str(path)))
    pipe = Pipeline.load(
        checkpoint, config("precision=fp32").precision, height=SIZE, width=SIZE, batch_size_per_device=2,
        devices=jax.devices()[:1],
    )  # fmt: skip
    theirs = {}
    for steps, scale in itertools.product((1, 4), (1.0, 2.5, 8.5)):
        settings = SamplerSettings(name="lcm", num_inference_steps=steps)
        table = make_table(settings, checkpoint.scheduler_config)
        specs = [
            ImageSpec(
                row=0, copy=0, prompt="a red fox", negative_prompt=negative, seed=0, row_seed=None, height=SIZE,
                width=SIZE, guidance_scale=scale, guidance_rescale=0.0, sampler=settings,
            )
            for negative in (None, "blurry, dark")
        ]  # fmt: skip
        plain, other = (image.pixels.astype(np.float32) / 255 for image in pipe.generate(specs, [table, table]))
        np.testing.assert_array_equal(plain, other)  # no unconditional half
        theirs[steps, scale] = reference(layout, steps, scale)
        difference = np.abs(plain - np.round(theirs[steps, scale] * 255) / 255)
        assert difference.max() < MAX and difference.mean() < MEAN, (steps, scale, difference.max(), difference.mean())
    assert np.abs(theirs[4, 1.0] - theirs[4, 8.5]).mean() > 10 * MEAN
