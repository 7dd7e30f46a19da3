"""What diffusers' pipelines correct in a checkpoint's files, and what they do not read: against the pipelines."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from diffusers import (  # noqa: E402
    DDIMScheduler,
    DDPMScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from support.checkpoints import copy, edit  # noqa: E402
from support.runs import config  # noqa: E402
from support.scheduler_reference import make_scheduler, sample  # noqa: E402

from tpusd.checkpoints import ModelSource, open_checkpoint  # noqa: E402
from tpusd.config.sampler import SamplerSettings  # noqa: E402
from tpusd.engine import noise as keys  # noqa: E402
from tpusd.engine.pipeline import Pipeline  # noqa: E402
from tpusd.errors import UserError  # noqa: E402
from tpusd.families.latent_diffusion import CLIPS  # noqa: E402
from tpusd.plan.specs import ImageSpec  # noqa: E402
from tpusd.samplers.registry import samplers  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the reference's own deprecations are not ours
]
SIZE = 64  # pixels
STEPS = 3


def reference(path):
    layout = json.loads((path / "model_index.json").read_text())["_class_name"]
    cls = StableDiffusionXLPipeline if layout == "StableDiffusionXLPipeline" else StableDiffusionPipeline
    pipeline = cls.from_pretrained(str(path), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def checkpoint(path):
    return open_checkpoint(ModelSource(path=str(path)))


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
@pytest.mark.parametrize("offset", [0, 1, 3, ...])
@pytest.mark.parametrize("sampler", ["ddim", "file"])
def test_steps_offset_of_the_file(tmp_path, layout, offset, sampler):
    """Explicit, absent, and with another scheduler in place of the file's own."""
    path = copy(tmp_path, layout)
    edit(path / "scheduler/scheduler_config.json", steps_offset=offset, timestep_spacing="leading")
    scheduler = reference(path).scheduler
    name = {"PNDMScheduler": "pndm", "DDIMScheduler": "ddim", "EulerDiscreteScheduler": "euler"}[
        type(scheduler).__name__
    ]
    if sampler == "ddim":
        scheduler, name = DDIMScheduler.from_config(scheduler.config), "ddim"
    scheduler.set_timesteps(10)
    ours = checkpoint(path)
    table = ours.family.schedule(SamplerSettings(name=name, num_inference_steps=10), ours.scheduler_config, SIZE, SIZE)
    np.testing.assert_allclose(table.timesteps, scheduler.timesteps.numpy(), rtol=1e-6)


@pytest.mark.parametrize("version", ["0.4.0.dev0", "0.8.1", "0.9.0", "0.10.2", "0.42.1", ...])
@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_image_size_of_old_files(tmp_path, layout, version, size):
    path = copy(tmp_path, layout)
    edit(path / "unet/config.json", _diffusers_version=version, sample_size=size)
    pipeline = reference(path)
    expected = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    ours = checkpoint(path)
    assert ours.family.image_size(ours.configs) == (expected, expected)


def image(pipeline, path, guidance):
    """The reference's image and ours, (H, W, 3) float in 0..1."""
    noise = keys.initial_latents(np.stack([keys.image_key(0, 0, 0)]), (4, SIZE // 8, SIZE // 8))
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    with torch.no_grad():
        expected = pipeline(
            "a red fox",
            negative_prompt="blurry",
            latents=torch.from_numpy(np.asarray(noise).transpose(0, 3, 1, 2).copy()),
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            height=SIZE,
            width=SIZE,
            output_type="np",
        ).images[0]
    ours = checkpoint(path)
    settings = SamplerSettings(name="ddim", num_inference_steps=STEPS)
    pipe = Pipeline.load(
        ours,
        config("precision=fp32").precision,
        height=SIZE,
        width=SIZE,
        batch_size_per_device=1,
        devices=jax.devices()[:1],
    )
    spec = ImageSpec(
        row=0, copy=0, prompt="a red fox", negative_prompt="blurry", seed=0, row_seed=None, height=SIZE, width=SIZE,
        guidance_scale=guidance, guidance_rescale=0.0, sampler=settings,
    )  # fmt: skip
    (made,) = pipe.generate([spec], [ours.family.schedule(settings, ours.scheduler_config, SIZE, SIZE)])
    return expected, made.pixels / 255


@pytest.mark.parametrize(
    ("layout", "guidance"),
    [("sd1", 0.0), ("sd1", 1.5), ("sdxl", 0.0)]
    + [pytest.param(*case, marks=pytest.mark.long) for case in (("sd1", 0.5), ("sd1", 1.0), ("sdxl", 1.5))],
)
def test_guidance_up_to_one_is_the_prompt_alone(tmp_path, layout, guidance):
    path = copy(tmp_path, layout)
    expected, made = image(reference(path), path, guidance)
    assert np.abs(expected - made).max() < 5e-3


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_shift_factor_of_an_autoencoder_is_not_read(tmp_path, layout):
    path = copy(tmp_path, layout)
    edit(path / "vae/config.json", shift_factor=0.5)
    expected, made = image(reference(path), path, 3.0)
    assert np.abs(expected - made).max() < 5e-3


def test_latent_statistics_of_an_autoencoder_are_of_sdxl_alone(tmp_path):
    """Playground's models of the XL kind have them."""
    statistics = {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [2.0, 1.0, 3.0, 0.5]}
    path = copy(tmp_path)
    edit(path / "vae/config.json", **statistics)
    expected, made = image(reference(path), path, 3.0)
    assert np.abs(expected - made).max() < 5e-3
    path = copy(tmp_path / "xl", "sdxl")
    edit(path / "vae/config.json", **statistics)
    with pytest.raises(UserError, match="latents_mean=.*latents_std="):
        checkpoint(path)


def test_clip_sample_of_stable_diffusion_is_switched_off(tmp_path):
    path = copy(tmp_path)
    edit(path / "scheduler/scheduler_config.json", clip_sample=True, steps_offset=0)
    expected, made = image(reference(path), path, 3.0)
    assert np.abs(expected - made).max() < 5e-3


@pytest.mark.parametrize("name", sorted(samplers()))
def test_the_samplers_whose_reference_can_clip(name):
    """clip_sample changes what the class makes of large latents; without it, the class's default decides."""

    def made(**clip):
        scheduler = make_scheduler(name, {"beta_schedule": "scaled_linear"}, clip)
        start = torch.full((1, 1, 2, 2), 10.0, dtype=torch.float64)
        return sample(scheduler, lambda x, t: 0.1 * x, start, 4, noise=lambda k: torch.zeros_like(start))

    never, always, default = made(clip_sample=False), made(clip_sample=True), made()
    assert (name in CLIPS) == (not torch.equal(never, always))
    assert CLIPS.get(name, False) == (not torch.equal(never, default))


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
@pytest.mark.parametrize("clip", [True, False, ...])
def test_where_the_reference_clips_is_said(tmp_path, layout, clip):
    """The one correction of diffusers that is not made here: with the file's own scheduler, and with another."""
    for own, name, cls in (
        ("DDIMScheduler", "ddim", None),
        ("DDIMScheduler", "ddpm", DDPMScheduler),
        ("EulerDiscreteScheduler", "ddim", DDIMScheduler),
        ("EulerDiscreteScheduler", "heun", HeunDiscreteScheduler),
        ("EulerDiscreteScheduler", "lcm", LCMScheduler),
    ):
        path = copy(tmp_path / f"{own}-{name}", layout)
        edit(path / "model_index.json", scheduler=["diffusers", own])
        edit(path / "scheduler/scheduler_config.json", _class_name=own, clip_sample=clip)
        scheduler = reference(path).scheduler
        if cls is not None:
            scheduler = cls.from_config(scheduler.config)
        ours = checkpoint(path)
        notes = list(ours.family.schedule_notes(SamplerSettings(name=name), ours.scheduler_config))
        assert len(notes) == bool(scheduler.config.clip_sample), (own, name, notes)
        assert all("clip" in note for note in notes)
