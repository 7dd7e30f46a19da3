"""Images that start from a picture against PyTorch diffusers' image-to-image and inpainting pipelines, float32.

The checkpoints are random, saved by PyTorch diffusers; all noise is tpusd's own. Pictures have the image's size.
"""

import functools
import itertools
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from support.checkpoints import tiny  # noqa: E402
from support.given_draws import PROMPTS, SIZE, given_draws  # noqa: E402
from support.runs import config  # noqa: E402
from support.sampler_cases import NAMES  # noqa: E402
from support.scheduler_reference import make_scheduler  # noqa: E402

from tpusd.checkpoints import ModelSource, open_checkpoint  # noqa: E402
from tpusd.engine import noise as keys  # noqa: E402
from tpusd.engine.pipeline import Pipeline  # noqa: E402
from tpusd.inputs.arrays import Input  # noqa: E402
from tpusd.plan.specs import ImageSpec, PictureInput  # noqa: E402
from tpusd.samplers.registry import samplers  # noqa: E402
from tpusd.samplers.table import SamplerSettings  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the reference's own deprecations are not ours
]
MAX, MEAN = 5e-3, 5e-4  # of pixels in 0..1
GUIDANCE = 3.0
STRENGTHS = (0.02, 0.3, 0.75, 1.0)
STEPS = 50  # of which strength 0.02 makes one
FEW_STEPS = 8  # of the sample that CI compares
MASKED = ("pndm", "ddim", "euler", "heun", "unipc", "dpmpp_2m_sde", "lcm")  # samplers that are compared with a mask
LAYOUTS = ("sd1", "sd2", "sdxl")


def picture():
    """(H,W,3) uint8: a gradient with a square of noise in it."""
    y, x = np.mgrid[:SIZE, :SIZE]
    pixels = np.stack([x * 4, y * 4, (x + y) * 2], axis=-1).astype(np.uint8)
    pixels[20:44, 8:30] = np.random.default_rng(3).integers(0, 256, (24, 22, 3))
    return pixels


def mask():
    """bool (H,W): no multiple of 8 at its edges."""
    masked = np.zeros((SIZE, SIZE), bool)
    masked[13:51, 22:61] = True
    return masked


@functools.cache
def torch_pipeline(layout, inpaint):
    name = f"StableDiffusion{'XL' if layout.startswith('sdxl') else ''}{'Inpaint' if inpaint else 'Img2Img'}Pipeline"
    pipeline = getattr(diffusers, name).from_pretrained(str(tiny(layout)), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference(layout, name, strength, *, steps=STEPS, inpaint=False):
    """Images of PROMPTS, (b,H,W,3) in 0..1."""
    pipeline = torch_pipeline(layout, inpaint)
    values = json.loads((tiny(layout) / "scheduler" / "scheduler_config.json").read_text())
    pipeline.scheduler = make_scheduler(name, values, {})
    more = {"mask_image": Image.fromarray(mask().astype(np.uint8) * 255)} if inpaint else {}
    if inpaint:
        more |= {"height": SIZE, "width": SIZE}
    # Of the picture, and of the picture without its masked part, which a UNet of 4 channels does not get.
    samples = [keys.PICTURE, keys.MASKED_PICTURE] if inpaint else [keys.PICTURE] * len(PROMPTS)
    if strength == 1 and layout.endswith("_inpaint"):
        samples = samples[1:]  # nothing of the picture is in the first sample
    with torch.no_grad(), given_draws(pipeline, samples):
        return pipeline(
            prompt=list(PROMPTS),
            negative_prompt=["dark"] * len(PROMPTS),
            image=[Image.fromarray(picture())] * len(PROMPTS) if not inpaint else Image.fromarray(picture()),
            strength=strength,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            eta=samplers()[name].defaults.get("eta", 0.0),
            output_type="np",
            **more,
        ).images


@functools.cache
def our_pipeline(layout):
    checkpoint = open_checkpoint(ModelSource(path=str(tiny(layout))))
    pipe = Pipeline.load(
        checkpoint, config("precision=fp32").precision, height=SIZE, width=SIZE,
        batch_size_per_device=8, devices=jax.devices()[:1],
    )  # fmt: skip
    return checkpoint, pipe


def picture_input(strength, inpaint):
    mask = "m.png" if inpaint else None
    return PictureInput(image="p.png", image_sha256=None, strength=strength, resize="fill", mask=mask)


def ours(layout, cases, *, steps=STEPS, inpaint=False):
    """Images of PROMPTS for each (sampler, strength), (cases,b,H,W,3) in 0..1, in batches of unlike ones."""
    checkpoint, pipe = our_pipeline(layout)
    wanted = []
    for name, strength in cases:
        settings = SamplerSettings(name=name, num_inference_steps=steps)
        table = checkpoint.family.schedule(settings, checkpoint.scheduler_config, SIZE, SIZE, strength=strength)
        for row, prompt in enumerate(PROMPTS):
            spec = ImageSpec(
                row=row, copy=0, prompt=prompt, negative_prompt="dark", seed=0, row_seed=None, height=SIZE, width=SIZE,
                guidance_scale=GUIDANCE, guidance_rescale=0.0, sampler=settings,
                picture=picture_input(strength, inpaint),
            )  # fmt: skip
            wanted.append((spec, table))
    made = []
    for start in range(0, len(wanted), pipe.batch_size):
        specs, tables = zip(*wanted[start : start + pipe.batch_size], strict=True)
        inputs = [Input(picture(), mask() if inpaint else None)] * len(specs)
        made += [image.pixels for image in pipe.generate(specs, tables, inputs=inputs)]
    return np.stack(made).astype(np.float32).reshape(len(cases), len(PROMPTS), SIZE, SIZE, 3) / 255


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The reference's operations are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same(case, made, theirs):
    difference = np.abs(made - np.round(theirs * 255) / 255)
    print(case, f"max {difference.max():.2e} mean {difference.mean():.2e}")
    assert difference.max() < MAX and difference.mean() < MEAN, (case, difference.max(), difference.mean())


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_images_from_a_picture_are_those_of_the_reference(layout, name):
    cases = [(name, strength) for strength in STRENGTHS]
    for case, made in zip(cases, ours(layout, cases), strict=True):
        assert_same((layout, case), made, reference(layout, *case))


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MASKED)
def test_inpainted_images_are_those_of_the_reference(layout, name):
    cases = [(name, strength) for strength in STRENGTHS]
    for case, made in zip(cases, ours(layout, cases, inpaint=True), strict=True):
        assert_same((layout, case), made, reference(layout, *case, inpaint=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_of_images_from_pictures_is_that_of_the_reference(layout):
    """Each sampler in one layout, at two strengths; those that are compared with a mask in another one, with it."""
    number = LAYOUTS.index(layout)
    for names, inpaint in ((NAMES[number::3], False), (MASKED[(number + 1) % 3 :: 3], True)):
        cases = list(itertools.product(names, (0.3, 0.75)))
        for case, made in zip(cases, ours(layout, cases, steps=FEW_STEPS, inpaint=inpaint), strict=True):
            assert_same((layout, case, inpaint), made, reference(layout, *case, steps=FEW_STEPS, inpaint=inpaint))


@pytest.mark.parametrize(
    "layout", [pytest.param("sd1", marks=pytest.mark.long), pytest.param("sd2", marks=pytest.mark.long), "sdxl"]
)
def test_images_of_inpainting_checkpoints_are_those_of_the_reference(layout):
    """A UNet of 9 channels reads the mask and the rest of the picture, and nothing is put back."""
    layout += "_inpaint"
    cases = [("ddim", 0.3), ("euler_ancestral", 0.75), ("unipc", 1.0)]
    for case, made in zip(cases, ours(layout, cases, steps=FEW_STEPS, inpaint=True), strict=True):
        assert_same((layout, case), made, reference(layout, *case, steps=FEW_STEPS, inpaint=True))
