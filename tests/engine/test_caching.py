"""DeepCache through the real pipeline: an image is its recipe's, whatever is beside it, and nothing compiles again."""

import jax
import numpy as np
import pytest
from PIL import Image
from support.pipelines import SIZE, generate, pipeline, prompts

pytestmark = pytest.mark.slow

CACHE = ["cache=deepcache", "cache.interval=3"]
STEPS = ["sampler=euler_ancestral", "sampler.num_inference_steps=11"]
TEXTS = ("a red fox", "an owl", "a newt", "a moose")


def same(one, other):
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.trace == other.trace


def test_an_interval_of_one_is_no_cache_to_the_last_bit():
    pipe = pipeline(per_device=3)
    plain = generate(pipe, prompts(*TEXTS), *STEPS)
    before = set(pipe.fingerprints)
    for cache in (["cache.interval=1"], ["cache.interval=1", "cache.branch=2"], [f"cache.steps={list(range(11))}"]):
        made = generate(pipe, prompts(*TEXTS), *STEPS, "cache=deepcache", *cache)
        for key in plain:
            same(made[key], plain[key])
    assert set(pipe.fingerprints) == before  # the same programs


def test_a_cached_image_does_not_depend_on_its_batch_or_on_where_its_steps_are_cut():
    pipe = pipeline(per_device=3)
    together = generate(pipe, prompts(*TEXTS), *STEPS, *CACHE)
    alone = generate(pipe, prompts(TEXTS[0]), *STEPS, *CACHE)[0, 0]
    watched = generate(pipe, prompts(TEXTS[0]), *STEPS, *CACHE, on_step=lambda done, total: None)[0, 0]
    same(together[0, 0], alone)
    same(watched, alone)
    plain = generate(pipe, prompts(TEXTS[0]), *STEPS)[0, 0]
    assert plain.trace["latents"]["1"] == alone.trace["latents"]["1"]  # the first step computes all
    assert plain.trace["latents"]["5"] != alone.trace["latents"]["5"]


def test_images_of_unlike_lengths_share_a_batch():
    pipe = pipeline(per_device=3)
    rows = "prompts.rows=[{prompt: a, num_inference_steps: 5}, {prompt: b}, {prompt: c, num_inference_steps: 7}]"
    made = generate(pipe, rows, *STEPS, *CACHE)
    for row, (text, steps) in enumerate((("a", 5), ("b", 11), ("c", 7))):
        own = ["sampler=euler_ancestral", f"sampler.num_inference_steps={steps}", f"first_row={row}"]
        same(generate(pipe, prompts(text), *own, *CACHE)[row, 0], made[row, 0])


def test_a_mask_of_steps_is_its_interval():
    pipe = pipeline(per_device=3)
    by_interval = generate(pipe, prompts("a fox"), *STEPS, *CACHE)[0, 0]
    by_mask = generate(pipe, prompts("a fox"), *STEPS, "cache=deepcache", "cache.steps=[0,3,6,9]")[0, 0]
    other = generate(pipe, prompts("a fox"), *STEPS, "cache=deepcache", "cache.steps=[0,3,6]")[0, 0]
    same(by_interval, by_mask)
    assert other.trace["latents"]["5"] == by_mask.trace["latents"]["5"]
    assert other.trace["latents"]["11"] != by_mask.trace["latents"]["11"]


@pytest.mark.long
def test_nothing_compiles_again_over_intervals_and_masks():
    pipe = pipeline(per_device=3)
    generate(pipe, prompts("a", "b"), *STEPS)
    before = set(pipe.fingerprints)
    compiled = []
    generate(pipe, prompts("a", "b"), *STEPS, *CACHE)
    assert len(set(pipe.fingerprints) - before) <= 1  # the one program with a cache
    generate(pipe, prompts("a", "b"), *STEPS, *CACHE, "guidance_scale=1")
    generate(pipe, prompts("a", "b"), *STEPS, "guidance_scale=1")
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        for cache in (
            *([f"cache.interval={interval}"] for interval in (1, 2, 3, 5, 11)),
            ["cache.steps=[0,1,2,5,8]"],
            ["cache.steps=[0]"],
            ["cache.interval=2", "guidance_scale=3", "negative_prompt=dark"],
            ["cache.interval=2", "sampler=heun", "sampler.num_inference_steps=4"],
            ["cache.interval=3", "guidance_interval=[0.2,0.7]"],
        ):
            generate(pipe, prompts("other", "words"), *STEPS, "cache=deepcache", *cache)
        assert compiled == []
        jax.jit(lambda x: x + 3)(np.zeros(19)).block_until_ready()
        assert compiled  # the listener does hear
    finally:
        jax.monitoring.clear_event_listeners()


@pytest.mark.long
def test_where_guidance_begins_and_ends_the_deep_half_is_computed():
    """Steps 0, 3 and 8 would be in a mask that says nothing of guidance: an equal mask gives equal images."""
    pipe = pipeline(per_device=3)
    interval = ["guidance_interval=[0.2,0.7]"]  # of 11 steps: from 3 on, before 8
    silent = generate(pipe, prompts("a fox"), *STEPS, *interval, "cache=deepcache", "cache.steps=[0]")[0, 0]
    named = generate(pipe, prompts("a fox"), *STEPS, *interval, "cache=deepcache", "cache.steps=[0,3,8]")[0, 0]
    watched = generate(
        pipe, prompts("a fox"), *STEPS, *interval, "cache=deepcache", "cache.steps=[0]", on_step=lambda *_: None
    )[0, 0]
    same(silent, named)
    same(watched, named)
    assert named.not_finite is None


@pytest.mark.long
@pytest.mark.parametrize(
    "more", [["noise=torch_cpu"], ["strength=0.7"], ["prompts.syntax=a1111"], ["cache.branch=3"], ["guidance_scale=1"]]
)
def test_noise_of_pytorch_pictures_chunks_and_other_devices_have_a_cache_too(more, tmp_path):
    if more == ["strength=0.7"]:
        noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "a.png")
        more = [*more, f"image={tmp_path / 'a.png'}"]
    pipe = pipeline(per_device=3)
    plain = generate(pipe, prompts(*TEXTS[:2]), *STEPS, *more, "cache=deepcache", "cache.interval=1")
    cached = generate(pipe, prompts(*TEXTS[:2]), *STEPS, *more, *CACHE)
    again = generate(pipeline(devices=2), prompts(*TEXTS[:2]), *STEPS, *more, *CACHE)
    for key, image in cached.items():
        assert image.trace["latents"] != plain[key].trace["latents"] and image.not_finite is None
        difference = np.abs(again[key].pixels.astype(int) - image.pixels)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01
