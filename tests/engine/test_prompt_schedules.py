"""Images whose prompts change by the step: the same programs, and at each step the text that A1111's rules say."""

import time

import jax
import numpy as np
import pytest
from support.pipelines import generate, pipeline, prompts

from tpusd.engine.texts import TextsByCall
from tpusd.plan.specs import ImageSpec
from tpusd.samplers.table import SamplerSettings
from tpusd.syntax.rules import TextRules

FAST = ("sampler=ddim", "sampler.num_inference_steps=4", "guidance_scale=3", "prompts.syntax=a1111")


def pixels(pipe, *overrides):
    return {key: image.pixels for key, image in generate(pipe, *overrides).items()}


@pytest.mark.long
@pytest.mark.slow
def test_a_prompt_that_changes_compiles_nothing_and_changes_the_image():
    pipe = pipeline(per_device=2)
    plain = pixels(pipe, prompts("a fox"), *FAST)[0, 0]
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        changed = {text: pixels(pipe, prompts(text), *FAST)[0, 0] for text in ("a [fox:owl:2]", "a [fox|owl]")}
        for text in ("a [fox:owl:4]", "a [owl:fox:0]", "a [fox:owl:1.0]"):
            np.testing.assert_array_equal(pixels(pipe, prompts(text), *FAST)[0, 0], plain)
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []
    first, second = (image.astype(int) for image in changed.values())
    assert all(np.abs(one - plain).max() > 1 for one in (first, second)) and np.abs(first - second).max() > 1


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("cache", [(), ("cache=deepcache", "cache.interval=2")])
def test_an_image_does_not_depend_on_what_changes_beside_it(cache):
    pipe, every = pipeline(per_device=2), ("a [fox:owl:2] in snow", "[cat|dog] [x::3]", "an elk")
    together = generate(pipe, prompts(*every), *FAST, *cache)
    for row, text in enumerate(every):
        alone = generate(pipe, prompts(text), f"first_row={row}", *FAST, *cache)[row, 0]
        np.testing.assert_array_equal(alone.pixels, together[row, 0].pixels)
        assert alone.trace == together[row, 0].trace


@pytest.mark.slow
def test_each_step_has_the_latents_of_a_run_with_its_text():
    """Up to the change, the latents are those of the first text; the trace holds them after the first step."""
    pipe = pipeline(per_device=2)
    made, first = (generate(pipe, prompts(text), *FAST)[0, 0].trace["latents"] for text in ("[cat:dog:1]", "cat"))
    assert made["1"] == first["1"] and made["4"] != first["4"]


def spec(prompt, negative=None):
    return ImageSpec(
        row=0, copy=0, prompt=prompt, negative_prompt=negative, seed=0, row_seed=None, guidance_scale=3.0,
        guidance_rescale=0.0, height=64, width=64, sampler=SamplerSettings(name="ddim", num_inference_steps=6),
        text=TextRules(syntax="a1111", weighting="a1111", whole=True),
    )  # fmt: skip


def test_calls_are_cut_where_a_text_of_the_batch_changes():
    texts = TextsByCall([spec("a [b:2]", "x"), spec("c", "[d|e]")], [6, 6], guided=True)
    every = texts.every
    pieces = [(rows, every[now.prompts], every[now.negative_prompts]) for rows, now in texts.pieces(range(1, 4))]
    assert pieces == [
        (range(1, 2), ("a ", "c"), ("x", "e")),
        (range(2, 3), ("a b", "c"), ("x", "d")),
        (range(3, 4), ("a b", "c"), ("x", "e")),
    ]
    assert len(every) == 4
    assert [every[number][0] for number in texts.of_image(0)] == ["a ", "a b", "x"]
    assert [every[number][1] for number in texts.of_image(1)] == ["c", "d", "e", "d", "e", "d", "e"]


def test_a_large_batch_takes_little_time():
    began = time.monotonic()
    texts = TextsByCall([spec(f"a [b:{i % 4}] {i}", "[d|e]") for i in range(2048)], [6] * 2048, guided=True)
    assert len([texts.of_image(i) for i in range(2048)]) == 2048
    assert time.monotonic() - began < 5


def test_heun_counts_both_calls_of_a_step():
    """As in A1111, where `when` of a method of second order counts model calls of the whole schedule."""
    one = spec("[a:b:0.5]")
    assert [phase.last for phase in one.phases(one.prompt, 6)] == [3, 6]
    assert [phase.last for phase in one.phases(one.prompt, 11)] == [6, 12]
