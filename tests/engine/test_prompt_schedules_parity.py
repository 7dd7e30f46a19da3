"""Prompts that change by the step, against diffusers' own pipeline whose callback changes the text embeddings.

Which text a step has is a literal here, by A1111's published rules.
"""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import numpy as np  # noqa: E402
from diffusers import DDIMScheduler, StableDiffusionPipeline  # noqa: E402
from support.checkpoints import tiny  # noqa: E402
from support.pipelines import generate, pipeline, prompts  # noqa: E402

from tpusd.engine import noise as keys  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the reference's own deprecations are not ours
]
MAX, MEAN = 5e-3, 1e-4  # of pixels, as in tests/engine/test_images_parity.py
STEPS = 6
# A prompt, and its text at each step.
CASES = (
    ("a [fox:owl:2] in snow", ["a fox in snow"] * 2 + ["a owl in snow"] * 4),
    ("a [fox|owl|elk]", ["a fox", "a owl", "a elk"] * 2),
    ("[a red::0.5] fox [in snow:4]", ["a red fox "] * 3 + [" fox "] + [" fox in snow"] * 2),
    ("a [fox:[owl|elk]:3]", ["a fox"] * 3 + ["a elk", "a owl", "a elk"]),
)
NEGATIVE = ("[dark|blurry]", ["dark", "blurry"] * 3)


def reference(texts, negatives):
    pipe = StableDiffusionPipeline.from_pretrained(str(tiny("sd1")), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    def embedded(step):
        pair = (negatives[step], texts[step])
        made = [pipe.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)[0] for text in pair]
        return torch.cat(made)

    def change(pipe, step, timestep, tensors):
        return {"prompt_embeds": embedded(min(step + 1, STEPS - 1))}

    latents = np.asarray(keys.initial_latents(np.stack([keys.image_key(0, 0, 0)]), (4, 8, 8)))
    with torch.no_grad():
        negative, positive = embedded(0).chunk(2)
        return pipe(
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            latents=torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()),
            callback_on_step_end=change,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            height=64,
            width=64,
            output_type="np",
        ).images[0]


def ours(prompt, negative):
    given = ["sampler=ddim", f"sampler.num_inference_steps={STEPS}", "guidance_scale=3", "prompts.syntax=a1111"]
    made = generate(pipeline(per_device=2), prompts(prompt), *given, f'negative_prompt="{negative}"')
    return made[0, 0].pixels / 255


@pytest.mark.parametrize(("prompt", "texts"), CASES)
def test_images_are_those_of_the_reference_with_the_text_of_each_step(prompt, texts):
    negative, negatives = NEGATIVE
    difference = np.abs(ours(prompt, negative) - np.round(reference(texts, negatives) * 255) / 255)
    assert difference.max() < MAX and difference.mean() < MEAN
    shifted = np.abs(ours(prompt, negative) - reference(texts[1:] + texts[-1:], negatives[1:] + negatives[-1:]))
    assert shifted.max() > MAX or shifted.mean() > MEAN  # a change one step too early is seen
