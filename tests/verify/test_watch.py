"""What verify sees of tpusd's side is the run's own: it needs no PyTorch."""

import numpy as np
import pytest
from support.pipelines import SIZE, checkpoint, pipeline

from tpusd.config.sampler import SamplerSettings
from tpusd.plan.specs import ImageSpec, NoiseSource
from tpusd.verify.ours import make_ours, noise_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("source", ["threefry", "torch_cpu"])
def test_watching_changes_no_pixel_and_sees_every_call(source):
    opened, pipe = checkpoint(), pipeline()
    settings = SamplerSettings(name="euler_ancestral", num_inference_steps=11)  # more than a piece of drawn noise
    spec = ImageSpec(
        row=1, copy=0, prompt="a red fox", negative_prompt="dark", seed=5, row_seed=None, guidance_scale=3.0,
        guidance_rescale=0.0, height=SIZE, width=SIZE, sampler=settings, noise=NoiseSource(name=source),
    )  # fmt: skip
    table = opened.family.schedule(settings, opened.scheduler_config, SIZE, SIZE)
    (image,) = pipe.generate([spec], [table])
    made = make_ours(pipe, spec, table)
    np.testing.assert_array_equal(np.round(made.pixels * 255), image.pixels)
    assert len(made.latents) == len(table) and made.latents[0].shape == (SIZE // 8, SIZE // 8, 4)
    assert all(np.abs(a - b).max() > 0 for a, b in zip(made.latents, made.latents[1:], strict=False))
    assert list(made.tokens) == ["prompt", "negative prompt"] == list(made.texts)
    noise = noise_of(spec, table, (4, SIZE // 8, SIZE // 8))
    draws = [noise.initial, *(noise.step(k) for k in range(10))]
    assert all(draw.shape == noise.initial.shape for draw in draws) and len({draw.tobytes() for draw in draws}) == 11
