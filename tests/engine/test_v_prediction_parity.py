"""An SDXL checkpoint that predicts velocity, at zero terminal SNR, as NoobAI's: images against PyTorch diffusers.

Its scheduler file says so; the user chooses a sampler and nothing else.
"""

import functools
import itertools
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import numpy as np  # noqa: E402
from diffusers import StableDiffusionXLPipeline  # noqa: E402
from support.checkpoints import copy, edit  # noqa: E402
from support.pipelines import SIZE, generate, pipeline, prompts  # noqa: E402
from support.scheduler_reference import given_noise, make_scheduler  # noqa: E402

from tpusd.engine import noise as keys  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
MAX, MEAN = 5e-3, 1e-4  # of tests/engine/test_images_parity.py
STEPS, LATENTS = 7, (4, SIZE // 8, SIZE // 8)
# What such a checkpoint's scheduler_config.json has.
FILE = {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
# Samplers whose class has zero terminal SNR; the last one has not, and takes the file's schedule as it is.
SAMPLERS = ("euler", "euler_ancestral", "ddim", "dpmpp_2m", "unipc", "heun")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = copy(tmp_path_factory.mktemp("noob"), "sdxl")
    edit(path / "model_index.json", scheduler=["diffusers", FILE["_class_name"]])
    edit(path / "scheduler/scheduler_config.json", **FILE)
    return path


@functools.cache
def torch_pipeline(path):
    made = StableDiffusionXLPipeline.from_pretrained(str(path), local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(k):
    image = np.stack([keys.image_key(0, 0, 0)])
    noise = keys.initial_latents(image, LATENTS) if k is None else keys.step_noise(image, k, LATENTS)
    return torch.from_numpy(np.asarray(noise).transpose(0, 3, 1, 2).copy())


def reference(path, name, rescale, **changes):
    """changes: of the scheduler's file, for what the test tells apart."""
    made = torch_pipeline(path)
    made.scheduler = make_scheduler(name, json.loads((path / "scheduler/scheduler_config.json").read_text()), changes)
    draws = itertools.count()
    with torch.no_grad(), given_noise(made.scheduler, lambda: drawn(next(draws))):
        return made(
            "a red fox", negative_prompt="dark", guidance_scale=5.0, guidance_rescale=rescale, latents=drawn(None),
            num_inference_steps=STEPS, height=SIZE, width=SIZE, output_type="np",
        ).images[0]  # fmt: skip


def ours(path, name, rescale):
    made = generate(
        pipeline("sdxl", path=path), prompts("a red fox"), f"sampler={name}", f"sampler.num_inference_steps={STEPS}",
        "negative_prompt=dark", "guidance_scale=5", f"guidance_rescale={rescale}", layout="sdxl", path=path,
    )  # fmt: skip
    return made[0, 0].pixels / 255


@pytest.mark.parametrize("rescale", [0.0, pytest.param(0.7, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_images_are_those_of_the_reference(directory, name, rescale):
    theirs = reference(directory, name, rescale)
    difference = np.abs(ours(directory, name, rescale) - np.round(theirs * 255) / 255)
    assert difference.max() < MAX and difference.mean() < MEAN, (difference.max(), difference.mean())


@pytest.mark.parametrize("name", SAMPLERS[:-1])
def test_the_file_is_what_makes_them(directory, name):
    """Without its prediction type, its rescaled noise or its spacing, the reference's image is another one."""
    theirs = reference(directory, name, 0.0)
    for changes in (
        {"prediction_type": "epsilon", "rescale_betas_zero_snr": False},
        {"rescale_betas_zero_snr": False},
        {"timestep_spacing": "leading"},
    ):
        assert np.abs(reference(directory, name, 0.0, **changes) - theirs).mean() > 3 * MEAN, changes
