"""SDXL's size conditioning against PyTorch diffusers' pipeline, float32, on a random checkpoint."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
from support.checkpoints import tiny  # noqa: E402
from support.pipelines import SIZE, generate, pipeline  # noqa: E402

from tpusd.engine import noise as keys  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the reference's own deprecations are not ours
]
MAX, MEAN = 5e-3, 5e-4  # of pixels in 0..1
STEPS = 4
OWN = {"original_size": [32, 512], "crop": [8, 24], "target_size": [96, 40]}
NEGATIVE = {"negative_original_size": [16, 48], "negative_crop": [5, 1], "negative_target_size": [1024, 768]}
CASES = (
    (OWN, 3.0),
    ({"crop": [8, 24], **NEGATIVE}, 3.0),
    ({"negative_original_size": [16, 48], "negative_target_size": [1024, 768]}, 3.0),
    (OWN, 1.0),
)


def reference(fields, guidance):
    """(H,W,3) in 0..1."""
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(str(tiny("sdxl")), local_files_only=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    latents = keys.initial_latents(np.stack([keys.image_key(0, 0, 0)]), (4, SIZE // 8, SIZE // 8))
    more = {"crops_coords_top_left" if name == "crop" else name: tuple(value) for name, value in fields.items()}
    if "negative_crop" in more:
        more["negative_crops_coords_top_left"] = more.pop("negative_crop")
    with torch.no_grad():
        return pipe(
            prompt="a red fox", negative_prompt="dark", height=SIZE, width=SIZE, num_inference_steps=STEPS,
            guidance_scale=guidance, output_type="np", **more,
            latents=torch.from_numpy(np.asarray(latents).transpose(0, 3, 1, 2).copy()),
        ).images[0]  # fmt: skip


def test_images_with_sizes_are_those_of_the_reference():
    pipe, seen = pipeline("sdxl"), []
    for fields, guidance in CASES:
        words = [f"{name}={value}".replace(" ", "") for name, value in fields.items()]
        words += ["sampler=ddim", f"sampler.num_inference_steps={STEPS}", f"guidance_scale={guidance}"]
        made = generate(pipe, 'prompts.rows=[{prompt: "a red fox", negative_prompt: dark}]', *words, layout="sdxl")
        pixels = made[0, 0].pixels.astype(np.float32) / 255
        difference = np.abs(pixels - np.round(reference(fields, guidance) * 255) / 255)
        assert difference.max() < MAX and difference.mean() < MEAN, (fields, guidance, difference.max())
        seen.append(pixels)
    assert all(not np.array_equal(one, other) for i, one in enumerate(seen) for other in seen[:i])
