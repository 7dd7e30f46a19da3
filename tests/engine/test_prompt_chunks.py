"""Images of prompts with weights and in chunks: what compiles, and what an image does not depend on."""

import jax
import numpy as np
import pytest
from support.pipelines import generate, pipeline, prompts

pytestmark = pytest.mark.slow
FAST = ("sampler=ddim", "sampler.num_inference_steps=2", "guidance_scale=3")
A1111 = (*FAST, "prompts.syntax=a1111")
LONG = "an owl at night, " * 8  # 2 chunks of the tiny checkpoint's tokens


def pixels(pipe, *overrides):
    return {key: image.pixels for key, image in generate(pipe, *overrides).items()}


@pytest.mark.long
@pytest.mark.slow
def test_other_weights_compile_nothing_and_each_shape_compiles_once():
    pipe = pipeline(per_device=2)
    generate(pipe, prompts("a (red:1.2) fox"), *A1111)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        for text in ("a (red:0.3) fox", "(((a))) [b] c", "plain words"):
            generate(pipe, prompts(text), *A1111)
        assert compiled == []
        before = set(pipe.fingerprints)
        generate(pipe, prompts("a fox BREAK b", LONG, LONG[:120]), *A1111)
        assert set(pipe.fingerprints) - before == {"encode_a1111_2_1", "denoise_2"}
    finally:
        jax.monitoring.clear_event_listeners()


def test_an_image_does_not_depend_on_the_prompts_beside_it():
    pipe, texts = pipeline(per_device=2), ("a (red:1.4) fox", "(the:0.2) owl", LONG)
    together = pixels(pipe, prompts(*texts), *A1111)
    for row, text in enumerate(texts):
        alone = pixels(pipe, prompts(text), f"first_row={row}", *A1111)
        np.testing.assert_array_equal(alone[row, 0], together[row, 0])


@pytest.mark.long
def test_weights_change_the_image_and_plain_text_does_not_read_them():
    pipe = pipeline(per_device=2)
    plain, marked = (pixels(pipe, prompts(text), *FAST)[0, 0] for text in ("a red fox", "a (red:1.4) fox"))
    for weighting in ("a1111", "a1111_no_norm", "comfy", "compel"):
        overrides = (*A1111, f"prompts.weighting={weighting}")
        even, weighed = (pixels(pipe, prompts(text), *overrides)[0, 0] for text in ("a red fox", "a (red:1.9) fox"))
        assert np.abs(even.astype(int) - plain).max() <= 1  # another program may round
        assert np.abs(weighed.astype(int) - even).max() > 1
    assert np.abs(marked.astype(int) - plain).max() > 1


def test_a_short_prompt_is_made_by_the_plain_program_and_a_long_one_is_whole():
    pipe, chunk = pipeline(per_device=2), "on_truncate=chunk"
    np.testing.assert_array_equal(*(pixels(pipe, prompts("a fox"), *FAST, *more)[0, 0] for more in ([], [chunk])))
    cut, same, whole = (
        pixels(pipe, prompts(text), *FAST, *more)[0, 0]
        for text, more in ((LONG, []), (LONG[:-9] + "by day", []), (LONG, [chunk]))
    )
    np.testing.assert_array_equal(cut, same)  # the end was cut off
    assert np.abs(cut.astype(int) - whole).max() > 1


@pytest.mark.long
def test_the_shorter_prompt_of_a_pair_gets_empty_chunks():
    pipe = pipeline("sdxl", per_device=2)
    images = generate(pipe, prompts("a fox"), *A1111, f'negative_prompt="{LONG}"', layout="sdxl")
    assert images[0, 0].not_finite is None and "encode_a1111_2_1" in pipe.fingerprints
