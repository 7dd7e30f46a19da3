"""Images with ControlNets against PyTorch diffusers' pipelines, float32.

The checkpoints and ControlNets are random; all noise is tpusd's own. Pictures have the image's size.
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
from support.controlnets import tiny_controlnet  # noqa: E402
from support.given_draws import PROMPTS, SIZE, drawing, given_draws  # noqa: E402
from support.runs import config  # noqa: E402
from support.scheduler_reference import make_scheduler  # noqa: E402

from tpusd.checkpoints import ModelSource, open_checkpoint  # noqa: E402
from tpusd.config.controls import ControlNet  # noqa: E402
from tpusd.engine import noise as keys  # noqa: E402
from tpusd.engine.pipeline import Pipeline  # noqa: E402
from tpusd.inputs.arrays import Input  # noqa: E402
from tpusd.plan.specs import ControlInput, ImageSpec, PictureInput  # noqa: E402
from tpusd.samplers.registry import samplers  # noqa: E402
from tpusd.samplers.table import SamplerSettings  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the reference's own deprecations are not ours
]
MAX, MEAN = 5e-3, 5e-4  # of pixels in 0..1
STEPS = 8
GUIDED = 3.0


def picture():
    return np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def mask():
    masked = np.zeros((SIZE, SIZE), bool)
    masked[13:51, 22:61] = True
    return masked


@functools.cache
def torch_net(path):
    return diffusers.ControlNetModel.from_pretrained(str(path)).eval()


def reference(layout, nets, name, *, guidance=GUIDED, strength=None, inpaint=False, guess=False):
    """Images of PROMPTS, (b,H,W,3) in 0..1. nets: (directory, ControlNet) each."""
    kind = "Inpaint" if inpaint else "" if strength is None else "Img2Img"
    cls = getattr(diffusers, f"StableDiffusion{'XL' if layout.startswith('sdxl') else ''}ControlNet{kind}Pipeline")
    own = [torch_net(path) for path, _ in nets]
    pipeline = cls.from_pretrained(str(tiny(layout)), controlnet=own if len(own) > 1 else own[0], local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    values = json.loads((tiny(layout) / "scheduler" / "scheduler_config.json").read_text())
    pipeline.scheduler = make_scheduler(name, values, {})
    control = [Image.fromarray(drawing(place)) for place in range(len(nets))]
    if len(nets) == 1:  # image to image takes one for each picture
        control = control[0] if strength is None or inpaint else control * len(PROMPTS)
    fields = [(net.scale, net.start, net.end) for _, net in nets]
    scale, start, end = ([*map(list, zip(*fields, strict=True))]) if len(nets) > 1 else fields[0]
    more = {"image": control}
    if strength is not None:
        whole = Image.fromarray(picture())
        more = {"image": whole if inpaint else [whole] * len(PROMPTS), "control_image": control, "strength": strength}
    if inpaint:
        more |= {"mask_image": Image.fromarray(mask().astype(np.uint8) * 255), "height": SIZE, "width": SIZE}
    samples = [keys.PICTURE, keys.MASKED_PICTURE] if inpaint else [keys.PICTURE] * len(PROMPTS)
    if strength == 1 and layout.endswith("_inpaint"):
        samples = samples[1:]
    with torch.no_grad(), given_draws(pipeline, samples):
        return pipeline(
            prompt=list(PROMPTS),
            negative_prompt=["dark"] * len(PROMPTS),
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            eta=samplers()[name].defaults.get("eta", 0.0),
            controlnet_conditioning_scale=scale,
            control_guidance_start=start,
            control_guidance_end=end,
            guess_mode=guess,
            output_type="np",
            **more,
        ).images


@functools.cache
def our_pipeline(layout, nets):
    sources = tuple(ControlNet(path=str(path)) for path in nets)
    checkpoint = open_checkpoint(ModelSource(path=str(tiny(layout)), controlnets=sources))
    pipe = Pipeline.load(
        checkpoint, config("precision=fp32").precision, height=SIZE, width=SIZE,
        batch_size_per_device=2, devices=jax.devices()[:1],
    )  # fmt: skip
    return checkpoint, pipe


def ours(layout, nets, name, *, guidance=GUIDED, strength=None, inpaint=False, guess=False):
    checkpoint, pipe = our_pipeline(layout, tuple(path for path, _ in nets))
    settings = SamplerSettings(name=name, num_inference_steps=STEPS)
    start = None
    if strength is not None:
        masked = "m.png" if inpaint else None
        start = PictureInput(image="p.png", image_sha256=None, strength=strength, resize="fill", mask=masked)
    controls = tuple(
        ControlInput(
            net=place, image="c.png", image_sha256=None, scale=net.scale, start=net.start, end=net.end, guess_mode=guess
        )
        for place, (_, net) in enumerate(nets)
    )
    specs = [
        ImageSpec(
            row=row, copy=0, prompt=prompt, negative_prompt="dark", seed=0, row_seed=None, height=SIZE, width=SIZE,
            guidance_scale=guidance, guidance_rescale=0.0, sampler=settings, picture=start, controls=controls,
        )
        for row, prompt in enumerate(PROMPTS)
    ]  # fmt: skip
    table = checkpoint.family.schedule(
        settings, checkpoint.scheduler_config, SIZE, SIZE, strength=1.0 if strength is None else strength
    )
    made = pipe.generate(
        specs,
        [table] * len(specs),
        inputs=None if start is None else [Input(picture(), mask() if inpaint else None)] * len(specs),
        controls=[tuple(drawing(place) for place in range(len(nets)))] * len(specs),
    )
    return np.stack([image.pixels for image in made]).astype(np.float32) / 255


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The reference's operations are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check(layout, nets, name, **more):
    base = layout.removesuffix("_inpaint")
    nets = [(tiny_controlnet(base, **changes), ControlNet(path="x", **fields)) for changes, fields in nets]
    made, theirs = ours(layout, nets, name, **more), reference(layout, nets, name, **more)
    difference = np.abs(made - np.round(theirs * 255) / 255)
    print(layout, name, more, f"max {difference.max():.2e} mean {difference.mean():.2e}")
    assert difference.max() < MAX and difference.mean() < MEAN, (difference.max(), difference.mean())


def one(**fields):
    """(what differs from the tiny ControlNet, fields of the config) of each."""
    return [({}, fields)]


TWO = [
    ({}, {"scale": 0.7, "end": 0.5}),
    ({"seed": 1, "controlnet_conditioning_channel_order": "bgr"}, {"scale": 0.4, "start": 0.25}),
]


CASES = {
    "whole": ("sd1", one(), "ddim", {}),
    "some steps": ("sd1", one(scale=0.8, start=0.2, end=0.7), "euler", {}),
    "guess mode": ("sd1", one(scale=0.9), "ddim", {"guess": True}),
    "guess mode, prompt alone": ("sd1", one(), "euler", {"guess": True, "guidance": 1.0}),
    "image to image": ("sd1", one(scale=0.6), "euler_ancestral", {"strength": 0.75}),
    "inpainting": ("sd1", one(scale=0.6), "unipc", {"strength": 0.75, "inpaint": True}),
    "inpainting checkpoint": ("sd1_inpaint", one(), "ddim", {"strength": 0.6, "inpaint": True}),
    "two": ("sd2", TWO, "heun", {}),
    "sdxl": ("sdxl", one(scale=0.5, end=0.6), "euler", {}),
    "sdxl, two, image to image": ("sdxl", TWO, "ddim", {"strength": 0.75}),
}
MORE = {
    f"{layout}, {name}, {kind}": (layout, one(scale=0.7, start=0.1, end=0.8), name, more)
    for layout, name, (kind, more) in itertools.product(
        ("sd1", "sd2", "sdxl"),
        ("pndm", "heun", "dpmpp_2m_sde", "lcm"),
        {
            "from noise": {},
            "guess mode": {"guess": True},
            "from a picture": {"strength": 0.6},
            "inpainting": {"strength": 1.0, "inpaint": True},
        }.items(),
    )
}


OFTEN = ("some steps", "guess mode", "image to image", "sdxl, two, image to image")


@pytest.mark.parametrize(
    "case", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.long) for name in CASES]
)
def test_images_with_controlnets_are_those_of_the_reference(case):
    layout, nets, name, more = CASES[case]
    check(layout, nets, name, **more)


@pytest.mark.long
@pytest.mark.parametrize("case", MORE)
def test_images_of_more_samplers_with_a_controlnet_are_those_of_the_reference(case):
    layout, nets, name, more = MORE[case]
    check(layout, nets, name, **more)


@pytest.mark.long
def test_results_that_are_means_over_the_picture_are_those_of_the_reference():
    """`global_pool_conditions`: the reference then controls the half of the prompt alone."""
    check("sd1", [({"global_pool_conditions": True}, {"scale": 0.8})], "ddim")


@pytest.mark.long
def test_two_controlnets_in_guess_mode_are_those_of_the_reference():
    check("sd1", TWO, "ddim", guess=True)
