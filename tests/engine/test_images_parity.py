"""Final images against PyTorch diffusers' own pipelines: every sampler, every shared option, each layout, float32.

The checkpoints are random, saved by PyTorch diffusers; initial latents and the noise of steps are tpusd's own.
"""

import functools
import itertools
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # noqa: E402
from support.checkpoints import tiny  # noqa: E402
from support.deepcache_reference import deepcache  # noqa: E402
from support.runs import config  # noqa: E402
from support.sampler_cases import CASES, NAMES, steps_of  # noqa: E402
from support.scheduler_reference import given_noise, make_scheduler  # noqa: E402

from tpusd.checkpoints import ModelSource, open_checkpoint  # noqa: E402
from tpusd.config.cache import CacheConfig  # noqa: E402
from tpusd.engine import noise as keys  # noqa: E402
from tpusd.engine.pipeline import Pipeline  # noqa: E402
from tpusd.plan.specs import ImageSpec  # noqa: E402
from tpusd.samplers.registry import samplers  # noqa: E402
from tpusd.samplers.schedule import SchedulerConfig  # noqa: E402
from tpusd.samplers.table import SamplerSettings, make_table  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the reference's own deprecations are not ours
]
LAYOUTS = ("sd1", "sd2", "sdxl")
SD2 = pytest.param("sd2", marks=pytest.mark.long)  # velocity prediction, which the tables are compared for as well
# Of pixels in 0..1; ours are rounded to 1 / 255, so the reference's are too. The nearest two samplers that are not one
# (ddim and euler, SDXL, 5 steps) are 4e-4 apart in the mean. deis of order 3 comes to 4e-5, all others under 1e-5: the
# reference has its coefficients as differences of float32 logarithms.
MAX, MEAN = 5e-3, 1e-4
SIZE = 64  # pixels
LATENTS = (4, SIZE // 8, SIZE // 8)
GUIDANCE = 3.0
# (prompt, negative prompt): with, without, and an empty one, which SDXL tells from none; all from one noise.
TEXTS = (("a red fox", "blurry, dark"), ("a red fox", None), ("an owl at night", ""))
BATCH = 8


def image_keys():
    return np.stack([keys.image_key(0, 0, 0)] * len(TEXTS))


@functools.cache
def torch_pipeline(layout):
    """Random weights, read from a directory that the reference has saved."""
    cls = StableDiffusionXLPipeline if layout == "sdxl" else StableDiffusionPipeline
    pipeline = cls.from_pretrained(str(saved(layout)), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@functools.cache
def saved(layout):
    source = tiny(layout)
    target = source.parent / f"{layout}-saved"
    cls = StableDiffusionXLPipeline if layout == "sdxl" else StableDiffusionPipeline
    cls.from_pretrained(str(source), local_files_only=True).save_pretrained(str(target))
    return target


@functools.cache
def embeddings(layout):
    """The reference's own text embeddings of TEXTS, as keyword arguments for its pipeline."""
    pipeline, parts = torch_pipeline(layout), []
    with torch.no_grad():
        for prompt, negative in TEXTS:
            more = {"negative_prompt": negative, "device": "cpu", "num_images_per_prompt": 1}
            parts.append(pipeline.encode_prompt(prompt, do_classifier_free_guidance=True, **more))
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return {name: torch.cat(tensors) for name, tensors in zip(names, zip(*parts, strict=True), strict=False)}


@functools.cache
def drawn(k):
    """k None: the initial latents, else the noise of step k, (b, c, h, w)."""
    noise = keys.initial_latents(image_keys(), LATENTS) if k is None else keys.step_noise(image_keys(), k, LATENTS)
    return torch.from_numpy(np.asarray(noise).transpose(0, 3, 1, 2).copy())


def reference(layout, name, options, steps, guidance_rescale=0.0, scales=None):
    """Images of TEXTS, (b, H, W, 3) float in 0..1.

    scales: the guidance scale of each model call; None: GUIDANCE.
    """
    pipeline = torch_pipeline(layout)
    pipeline.scheduler = make_scheduler(name, scheduler_values(layout), options)
    draws = itertools.count()
    with torch.no_grad(), given_noise(pipeline.scheduler, lambda: drawn(next(draws))):
        return pipeline(
            **embeddings(layout),
            latents=drawn(None),
            num_inference_steps=steps,
            timesteps=None if (given := options.get("timesteps")) is None else list(given),
            guidance_scale=GUIDANCE if scales is None else scales[0],
            callback_on_step_end=None if scales is None else functools.partial(_set_scale, scales),
            guidance_rescale=guidance_rescale,
            eta=options.get("eta", samplers()[name].defaults.get("eta", 0.0)),
            height=SIZE,
            width=SIZE,
            output_type="np",
        ).images


def _set_scale(scales, pipeline, call, timestep, tensors):
    """The reference's dynamic guidance: a callback sets the scale of the next call."""
    pipeline._guidance_scale = scales[min(call + 1, len(scales) - 1)]
    return tensors


def scheduler_values(layout):
    return json.loads((saved(layout) / "scheduler" / "scheduler_config.json").read_text())


@functools.cache
def our_pipeline(layout):
    checkpoint = open_checkpoint(ModelSource(path=str(saved(layout))))
    precision = config("precision=fp32").precision
    pipe = Pipeline.load(
        checkpoint, precision, height=SIZE, width=SIZE, batch_size_per_device=BATCH, devices=jax.devices()[:1]
    )
    return checkpoint, pipe


def ours(layout, cases, guidance_rescale=0.0, **guidance):
    """Images of TEXTS for each (name, options, steps), (cases, b, H, W, 3) in 0..1, through the real pipeline.

    Cases of unlike samplers and steps share batches.
    """
    checkpoint, pipe = our_pipeline(layout)
    wanted = []
    for name, options, steps in cases:
        settings = SamplerSettings(name=name, num_inference_steps=steps, **options)
        table = make_table(settings, checkpoint.scheduler_config)
        for prompt, negative in TEXTS:
            spec = ImageSpec(
                row=0, copy=0, prompt=prompt, negative_prompt=negative, seed=0, row_seed=None, height=SIZE,
                width=SIZE, guidance_rescale=guidance_rescale, sampler=settings,
                **{"guidance_scale": GUIDANCE, **guidance},
            )  # fmt: skip
            wanted.append((spec, table))
    order = sorted(range(len(wanted)), key=lambda i: len(wanted[i][1]))  # a batch takes as long as its longest
    made = {}
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        images = pipe.generate([wanted[i][0] for i in batch], [wanted[i][1] for i in batch])
        made |= zip(batch, (image.pixels for image in images), strict=True)
    pixels = np.stack([made[i] for i in range(len(wanted))]).astype(np.float32) / 255
    return pixels.reshape(len(cases), len(TEXTS), SIZE, SIZE, 3)


def cases_of(layout, name):
    """(name, options, steps): the defaults at 5, 20 and 50 steps, and each option at one of them, in turn over layouts.

    Zero terminal SNR is for v-prediction, so it is tried with SD 2.x alone. Options that change nothing are left out.
    """
    config = SchedulerConfig.from_dict(scheduler_values(layout))

    def rows(options):
        steps = len(options.get("timesteps", range(20)))
        return make_table(SamplerSettings(name=name, num_inference_steps=steps, **options), config).rows

    cases = [(name, {}, steps) for steps in (5, 20, 50)]
    for i, options in enumerate(CASES[name].options):
        steps = steps_of(name, options)
        if options.get("rescale_betas_zero_snr"):
            cases += [(name, options, n) for n in steps if layout == "sd2"]
        elif not np.array_equal(rows(options), rows({})):
            cases.append((name, options, steps[(i + LAYOUTS.index(layout)) % len(steps)]))
    return cases


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The reference's operations are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same(layout, case, made, theirs):
    difference = np.abs(made - np.round(theirs * 255) / 255)
    assert difference.max() < MAX and difference.mean() < MEAN, (layout, case, difference.max(), difference.mean())


@pytest.mark.parametrize("layout", ["sd1", SD2, "sdxl"])
@pytest.mark.parametrize("name", NAMES)
def test_images_are_those_of_the_reference(layout, name):
    cases = cases_of(layout, name)
    for case, made in zip(cases, ours(layout, cases), strict=True):
        assert_same(layout, case, made, reference(layout, *case))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_guidance_rescale_is_that_of_the_reference(layout):
    case = ("ddim", {}, 20)
    plain, rescaled = (reference(layout, *case, rescale) for rescale in (0.0, 0.7))
    assert np.abs(plain - rescaled).mean() > 0.005
    assert_same(layout, case, ours(layout, [case], 0.7)[0], rescaled)


# First and last call, a middle, and all of them with a schedule. The scale of each call stands here as the papers say.
BY_STEP = {
    "begins late": ({"guidance_interval": (0.3, 1.0)}, lambda s: GUIDANCE if s >= 0.3 else 1),
    "ends early": ({"guidance_interval": (0.0, 0.6)}, lambda s: GUIDANCE if s < 0.6 else 1),
    "linear": ({"guidance_schedule": "linear"}, lambda s: 1 + (GUIDANCE - 1) * 2 * (s + 0.05)),
    "cosine in an interval": (
        {"guidance_schedule": "cosine", "guidance_interval": (0.2, 0.8)},
        lambda s: 1 + (GUIDANCE - 1) * (1 - np.cos(np.pi * (s + 0.05))) if 0.2 <= s < 0.8 else 1,
    ),
}


@pytest.mark.parametrize("layout", ["sd1", SD2, "sdxl"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "euler_ancestral"])
def test_guidance_by_step_is_that_of_the_references_callback(layout, name, monkeypatch):
    # Its own switch would halve the batch in the middle of a run, which its pipelines do not expect.
    monkeypatch.setattr(type(torch_pipeline(layout)), "do_classifier_free_guidance", property(lambda _: True))
    case = (name, {}, 10)
    plain = reference(layout, *case)
    for fields, scale in BY_STEP.values():
        theirs = reference(layout, *case, scales=[scale(call / 10) for call in range(10)])
        assert np.abs(plain - theirs).mean() > 3 * MEAN
        assert_same(layout, (case, fields), ours(layout, [case], **fields)[0], theirs)


CACHED = [("sd1", 0), ("sd1", 1), ("sdxl", 0)]
CACHED += [
    pytest.param(layout, branch, marks=pytest.mark.long)
    for layout in LAYOUTS
    for branch in range(4)
    if (layout, branch) not in CACHED
]


@pytest.mark.parametrize(("layout", "branch"), CACHED)
def test_deepcache_is_that_of_its_authors(layout, branch):
    for case in (("ddim", {}, 20), ("dpmpp_2m", {}, 20), ("euler_ancestral", {}, 11)):
        plain = reference(layout, *case)
        for interval in (2, 3, 5):
            with deepcache(torch_pipeline(layout), branch, interval=interval):
                theirs = reference(layout, *case)
            assert np.abs(plain - theirs).mean() > 3 * MEAN
            cache = CacheConfig(name="deepcache", interval=interval, branch=branch)
            assert_same(layout, (case, cache), ours(layout, [case], cache=cache)[0], theirs)


@pytest.mark.parametrize("layout", ["sd1", pytest.param("sdxl", marks=pytest.mark.long)])
def test_deepcache_by_a_mask_and_with_guidance_by_the_step(layout, monkeypatch):
    """The first step, and those at which guidance begins and ends, are in every mask."""
    monkeypatch.setattr(type(torch_pipeline(layout)), "do_classifier_free_guidance", property(lambda _: True))
    case, mask = ("ddim", {}, 10), (0, 4, 5, 9)
    cache = CacheConfig(name="deepcache", steps=mask, branch=1)
    with deepcache(torch_pipeline(layout), 1, steps=mask):
        assert_same(layout, mask, ours(layout, [case], cache=cache)[0], reference(layout, *case))
    scales = [GUIDANCE if 0.2 <= call / 10 < 0.7 else 1 for call in range(10)]
    with deepcache(torch_pipeline(layout), 1, steps=(*mask, 2, 7)):
        theirs = reference(layout, *case, scales=scales)
    made = ours(layout, [case], cache=cache, guidance_interval=(0.2, 0.7))[0]
    assert_same(layout, "with guidance in an interval", made, theirs)


FEW_STEPS = [
    *((name, {"timestep_spacing": "trailing"}) for name in ("ddim", "euler", "euler_ancestral")),
    ("lcm", {}),
    *(("tcd", {"eta": eta}) for eta in (0.0, 0.3, 1.0)),
]


@pytest.mark.parametrize(
    ("layout", "scale"),
    [("sd1", 0.0), *(pytest.param(*case, marks=pytest.mark.long) for case in (("sd1", 1.0), ("sd2", 0.0)))]
    + [pytest.param("sdxl", 0.0, marks=pytest.mark.long)],
)
def test_few_steps_without_guidance_give_the_images_of_the_reference(layout, scale):
    cases = [(name, options, steps) for name, options in FEW_STEPS for steps in (1, 2, 4, 8)]
    cases += [("lcm", {"timesteps": (999, 749, 499, 249)}, 4), ("lcm", {"timesteps": (800,)}, 1)]
    for case, made in zip(cases, ours(layout, cases, guidance_scale=scale), strict=True):
        assert_same(layout, case, made, reference(layout, *case, scales=[scale] * case[2]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bounds_mean_something(layout):
    """The random model's pictures fill 0..1 and depend on text, negative text, sampler and steps."""
    images = {(name, steps): reference(layout, name, {}, steps) for name in ("ddim", "dpmpp_2m") for steps in (5, 20)}
    for image in images.values():
        assert image.min() < 0.02 and image.max() > 0.98 and image.std() > 0.15
        assert ((image < 1e-3) | (image > 1 - 1e-3)).mean() < 0.2
        for a, b in itertools.combinations(image, 2):  # of one noise
            assert np.abs(a - b).mean() > 0.01
    for a, b in itertools.combinations(images.values(), 2):
        assert np.abs(a - b).mean() > 3 * MEAN
