"""Final images against PyTorch diffusers with its own noise: nothing but the seed is given to either side."""

import functools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import numpy as np  # noqa: E402
from diffusers import StableDiffusionPipeline  # noqa: E402
from support.checkpoints import tiny  # noqa: E402
from support.pipelines import SIZE, generate, pipeline, prompts  # noqa: E402
from support.scheduler_reference import make_scheduler  # noqa: E402

from tpusd.samplers.registry import samplers  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
MAX, MEAN = 5e-3, 1e-4  # of tests/engine/test_images_parity.py
STEPS = 11  # more than the noise of one call of the denoiser holds
STOCHASTIC = ("ddim", "ddpm", "dpmpp_2m_sde", "euler_ancestral", "lcm", "tcd")
SEED = 4_000_000_001


@functools.cache
def reference_pipeline():
    made = StableDiffusionPipeline.from_pretrained(str(tiny("sd1")), local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made, dict(made.scheduler.config)


def reference(name, generator, *, copies=1):
    """Images of one prompt, (copies,H,W,3) in 0..1."""
    made, config = reference_pipeline()
    made.scheduler = make_scheduler(name, config, {})
    with torch.no_grad():
        return made(
            "a red fox", negative_prompt="dark", guidance_scale=3.0, num_inference_steps=STEPS, height=SIZE, width=SIZE,
            eta=eta_of(name), generator=generator, num_images_per_prompt=copies, output_type="np",
        ).images  # fmt: skip


def eta_of(name):
    return 1.0 if name == "ddim" else samplers()[name].defaults.get("eta", 0.0)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def ours(name, *overrides, seed=SEED):
    eta = [f"sampler.eta={eta_of(name)}"] if name in ("ddim", "tcd") else []
    made = generate(
        pipeline(per_device=3), prompts("a red fox"), f"sampler={name}", f"sampler.num_inference_steps={STEPS}", *eta,
        "negative_prompt=dark", "guidance_scale=3", f"seed={seed}", "noise=torch_cpu", *overrides,
    )  # fmt: skip
    return np.stack([made[key].pixels for key in sorted(made)]) / 255


def assert_same(made, theirs):
    difference = np.abs(made - np.round(theirs * 255) / 255)
    assert difference.max() < MAX and difference.mean() < MEAN, (difference.max(), difference.mean())


@pytest.mark.parametrize("name", [*STOCHASTIC, "euler"])
def test_a_seed_gives_the_image_of_the_reference(name):
    assert_same(ours(name), reference(name, generator(SEED)))


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde"])
def test_copies_are_those_of_a_list_of_generators(name):
    theirs = reference(name, [generator(SEED + i) for i in range(4)], copies=4)
    assert_same(ours(name, "num_images_per_prompt=4"), theirs)


@pytest.mark.parametrize("name", ["euler_ancestral", "ddim"])
def test_copies_of_a_batch_are_those_of_one_generator(name):
    theirs = [reference(name, generator(SEED + i), copies=2) for i in range(2)]
    assert_same(ours(name, "num_images_per_prompt=4", "noise_batch_size=2"), np.concatenate(theirs))


def test_the_noise_is_what_makes_them_equal():
    """Another seed, and tpusd's own noise, give other images."""
    theirs = reference("euler_ancestral", generator(SEED))
    for made in (ours("euler_ancestral", seed=SEED - 1), ours("euler_ancestral", "noise=threefry")):
        assert np.abs(made - theirs).mean() > 0.01


def test_progress_and_seeds_do_not_compile_again_or_change_the_image():
    pipe, more = (
        pipeline(per_device=3),
        ("sampler=euler_ancestral", "sampler.num_inference_steps=11", "guidance_scale=3"),
    )
    one = generate(pipe, prompts("a red fox"), *more, "noise=torch_cpu", "seed=1")[0, 0]
    compiled = dict(pipe.fingerprints)
    done = []
    again = generate(
        pipe, prompts("a red fox"), *more, "noise=torch_cpu", "seed=1", on_step=lambda row, total: done.append(row)
    )[0, 0]
    generate(pipe, prompts("a red fox"), *more, "noise=torch_cuda", "seed=2", "noise_batch_size=2")
    assert pipe.fingerprints == compiled and again.trace == one.trace and done[-1] == 11
    np.testing.assert_array_equal(again.pixels, one.pixels)
