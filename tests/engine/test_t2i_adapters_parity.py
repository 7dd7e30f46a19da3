"""T2I-Adapters, and images with them, against PyTorch diffusers, float32.

The checkpoints and adapters are random; all noise is tpusd's own. Control images have the image's size.
"""

import functools
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from PIL import Image  # noqa: E402
from support.checkpoints import tiny  # noqa: E402
from support.controlnets import tiny_controlnet  # noqa: E402
from support.given_draws import PROMPTS, SIZE, drawing, given_draws  # noqa: E402
from support.runs import config  # noqa: E402
from support.scheduler_reference import make_scheduler  # noqa: E402
from support.t2i_adapters import three_levels, tiny_adapter  # noqa: E402

from tpusd.checkpoints import ModelSource, load_weights, open_checkpoint  # noqa: E402
from tpusd.config.controls import ControlNet  # noqa: E402
from tpusd.engine.pipeline import Pipeline  # noqa: E402
from tpusd.networks.unet import Residuals  # noqa: E402
from tpusd.plan.specs import ControlInput, ImageSpec  # noqa: E402
from tpusd.samplers.table import SamplerSettings  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the reference's own deprecations are not ours
]
MAX, MEAN = 5e-3, 5e-4  # of pixels in 0..1
STEPS, GUIDED = 8, 3.0


@functools.cache
def torch_adapter(path):
    return diffusers.T2IAdapter.from_pretrained(str(path)).eval()


def base(layout):
    """A tiny checkpoint: of a layout, or of one with three levels."""
    name, _, three = layout.partition("_")
    return three_levels(name) if three else tiny(name)


def drawings(number):
    """A control image for each prompt, of the network at this place."""
    return [drawing(len(PROMPTS) * number + row) for row in range(len(PROMPTS))]


@functools.cache
def opened(layout, nets):
    sources = tuple(ControlNet(path=str(path)) for path in nets)
    return open_checkpoint(ModelSource(path=str(base(layout)), controlnets=sources))


@pytest.mark.parametrize(
    ("layout", "name", "changes", "size"),
    [
        ("sd1", "sd1", {}, (64, 64)),
        ("sd1", "sd1", {"in_channels": 1}, (64, 64)),
        ("sd1_three", "sd1_three", {}, (24, 40)),  # 3 and 5 latents: means of fewer than four at the edges
        ("sd1_three", "light", {}, (24, 40)),
        ("sdxl_three", "sdxl_three", {"num_res_blocks": 3}, (48, 80)),
    ],
)
def test_feature_maps_are_those_of_the_reference(layout, name, changes, size):
    path = tiny_adapter(name, **changes)
    checkpoint = opened(layout, (path,))
    graph, _ = nnx.split(checkpoint.abstract("t2i_adapter_0"))
    model = nnx.merge(graph, load_weights(checkpoint, "t2i_adapter_0", param_dtype=jnp.float32))
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    shown = np.asarray(Image.fromarray(picture).convert("L"))[..., None] if changes.get("in_channels") == 1 else picture
    with torch.no_grad():
        theirs = torch_adapter(path)(torch.from_numpy(shown.transpose(2, 0, 1)[None].astype(np.float32) / 255))
    ours = model.embed(jnp.asarray(picture, jnp.float32)[None] / 255)
    assert len(ours) == len(theirs)
    for own, their in zip(ours, theirs, strict=True):
        expected = their.numpy().transpose(0, 2, 3, 1)
        assert own.shape == expected.shape and np.abs(expected).max() > 0.1
        np.testing.assert_allclose(np.asarray(own), expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def reference(layout, nets, name, guidance):
    """Images of PROMPTS, (b,H,W,3) in 0..1. nets: (directory, ControlNet) each."""
    adapters = [torch_adapter(path) for path, _ in nets]
    cls = getattr(diffusers, f"StableDiffusion{'XL' if layout.startswith('sdxl') else ''}AdapterPipeline")
    pipeline = cls.from_pretrained(
        str(base(layout)),
        adapter=diffusers.MultiAdapter(adapters) if len(adapters) > 1 else adapters[0],
        local_files_only=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    values = json.loads((base(layout) / "scheduler" / "scheduler_config.json").read_text())
    pipeline.scheduler = make_scheduler(name, values, {})
    mode = "L" if adapters[0].config.in_channels == 1 else "RGB"
    images = [[Image.fromarray(one).convert(mode) for one in drawings(place)] for place in range(len(nets))]
    scales, ends = [net.scale for _, net in nets], {net.end for _, net in nets}
    more = {"adapter_conditioning_factor": ends.pop()} if layout.startswith("sdxl") else {}
    with torch.no_grad(), given_draws(pipeline, []):
        return pipeline(
            prompt=list(PROMPTS),
            negative_prompt=["dark"] * len(PROMPTS),
            image=images if len(nets) > 1 else images[0],
            adapter_conditioning_scale=scales if len(nets) > 1 else scales[0],
            height=SIZE,
            width=SIZE,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            output_type="np",
            **more,
        ).images


def ours(layout, nets, name, guidance):
    checkpoint = opened(layout, tuple(path for path, _ in nets))
    pipe = Pipeline.load(
        checkpoint, config("precision=fp32").precision, height=SIZE, width=SIZE,
        batch_size_per_device=2, devices=jax.devices()[:1],
    )  # fmt: skip
    settings = SamplerSettings(name=name, num_inference_steps=STEPS)
    controls = tuple(
        ControlInput(net=place, image="c.png", image_sha256=None, scale=net.scale, start=net.start, end=net.end)
        for place, (_, net) in enumerate(nets)
    )
    specs = [
        ImageSpec(
            row=row, copy=0, prompt=prompt, negative_prompt="dark", seed=0, row_seed=None, height=SIZE, width=SIZE,
            guidance_scale=guidance, guidance_rescale=0.0, sampler=settings, controls=controls,
        )
        for row, prompt in enumerate(PROMPTS)
    ]  # fmt: skip
    table = checkpoint.family.schedule(settings, checkpoint.scheduler_config, SIZE, SIZE)
    each = [drawings(place) for place in range(len(nets))]
    made = pipe.generate(
        specs, [table] * len(specs), controls=[tuple(own[row] for own in each) for row in range(len(specs))]
    )
    return np.stack([image.pixels for image in made]).astype(np.float32) / 255


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The reference's operations are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def one(name, fields=None, **changes):
    return [(name, changes, fields or {})]


CASES = {
    "whole": ("sd1", one("sd1"), "ddim", GUIDED),
    "weak, gray": ("sd1", one("sd1", {"scale": 0.6}, in_channels=1), "euler", GUIDED),
    "three levels": ("sd1_three", one("sd1_three", {"scale": 1.4}), "unipc", GUIDED),
    "light": ("sd1_three", one("light", {"scale": 0.8}), "ddim", GUIDED),
    "without guidance": ("sd1", one("sd1"), "euler", 1.0),
    "two": (
        "sd1", [("sd1", {}, {"scale": 0.7}), ("sd1", {"seed": 1, "num_res_blocks": 1}, {"scale": 0.4})], "heun", GUIDED
    ),
    "sdxl": ("sdxl", one("sdxl"), "euler", GUIDED),
    "sdxl, three levels, some steps": ("sdxl_three", one("sdxl_three", {"scale": 0.7, "end": 0.5}), "ddim", GUIDED),
    "sdxl, two, some steps": (
        "sdxl_three",
        [("sdxl_three", {}, {"scale": 0.7, "end": 0.8}), ("sdxl_three", {"seed": 1}, {"scale": 0.5, "end": 0.8})],
        "dpmpp_2m", GUIDED,
    ),
}  # fmt: skip
OFTEN = ("weak, gray", "light", "sdxl, two, some steps")


@pytest.mark.parametrize(
    "case", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.long) for name in CASES]
)
def test_images_with_t2i_adapters_are_those_of_the_reference(case):
    layout, nets, name, guidance = CASES[case]
    own = [(tiny_adapter(of, **changes), ControlNet(path="x", **fields)) for of, changes, fields in nets]
    made, theirs = ours(layout, own, name, guidance), reference(layout, own, name, guidance)
    difference = np.abs(made - np.round(theirs * 255) / 255)
    print(case, f"max {difference.max():.2e} mean {difference.mean():.2e}")
    assert difference.max() < MAX and difference.mean() < MEAN, (difference.max(), difference.mean())


@pytest.mark.long
def test_a_t2i_adapter_beside_a_controlnet_adds_to_the_unet_what_the_reference_adds():
    """No pipeline of diffusers has both, and its UNet takes both."""
    checkpoint = opened("sdxl", (tiny_controlnet("sdxl"), tiny_adapter("sdxl")))
    assert checkpoint.controls == ("controlnet_0", "t2i_adapter_1")
    graph, _ = nnx.split(checkpoint.abstract("unet"))
    unet = nnx.merge(graph, load_weights(checkpoint, "unet", param_dtype=jnp.float32))
    their = diffusers.UNet2DConditionModel.from_pretrained(str(tiny("sdxl") / "unet")).eval()
    rng = np.random.default_rng(5)

    def draw(*shape):
        return rng.standard_normal(shape, np.float32)

    down = [draw(1, 8, 8, 16), draw(1, 8, 8, 16), draw(1, 4, 4, 16), draw(1, 4, 4, 32)]
    mid, inside = draw(1, 4, 4, 32), [draw(1, 4, 4, 16), draw(1, 4, 4, 32), draw(1, 4, 4, 32)]
    x, hidden, pooled = draw(1, 8, 8, 4), draw(1, 77, 80), draw(1, 40)
    ids = np.array([[64, 64, 0, 0, 64, 64]], np.float32)

    def there(array):
        return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())

    with torch.no_grad():
        expected = their(
            there(x), torch.tensor([500.0]), torch.from_numpy(hidden),
            added_cond_kwargs={"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(ids)},
            down_block_additional_residuals=[there(one) for one in down],
            mid_block_additional_residual=there(mid),
            down_intrablock_additional_residuals=[there(one) for one in inside],
        ).sample.numpy().transpose(0, 2, 3, 1)  # fmt: skip

    made = unet(
        x, jnp.array([500.0]), hidden, pooled, ids, residuals=Residuals(tuple(down), mid), features=tuple(inside)
    )
    np.testing.assert_allclose(np.asarray(made), expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
