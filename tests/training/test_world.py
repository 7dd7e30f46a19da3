"""The drawn world and its captions: what evaluation of the embedded model rests on."""

import dataclasses

import numpy as np
import pytest

from tpusd.scores.portraits.draw import SIZE, draw, draw_pose, make_picture
from tpusd.scores.portraits.measure import MIDDLE, read_portrait
from tpusd.scores.portraits.world import VALUES, Portrait, draw_portrait, from_labels
from training.captions import draw_named, make_caption

PLAIN = Portrait(
    person="man", hair_style="short", hair_color="black", skin="tanned", eye_color="green", glasses="round",
    hat="beanie", hat_color="red", beard="full", expression="smiling", clothes_color="green", clothes_pattern="plain",
    background="teal",
)  # fmt: skip


def portraits(count, **kw):
    rng = np.random.default_rng(17)
    return [draw_portrait(rng, **kw) for _ in range(count)]


@pytest.mark.parametrize("name", list(VALUES))
def test_every_value_of_an_attribute_looks_different(name):
    pictures = [draw(dataclasses.replace(PLAIN, **{name: value}), MIDDLE).astype(int) for value in VALUES[name]]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            changed = np.abs(one - other).max(axis=-1) > 30
            assert changed.sum() >= 40, f"{name}: values {i} differ in {changed.sum()} pixels only"


def test_a_picture_depends_on_its_seed_and_index_alone():
    image, labels = make_picture(41, seed=3)
    again, same_labels = make_picture(41, seed=3)
    other, _ = make_picture(41, seed=4)
    assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, same_labels)
    assert (image != other).any()


def test_training_and_held_out_combinations_are_apart():
    assert not any(p.held_out for p in portraits(400))
    assert all(p.held_out for p in portraits(29, held_out=True))


def test_what_does_not_show_does_not_decide_what_is_held_out():
    behind = dataclasses.replace(PLAIN, glasses="sunglasses", hat="none")
    others = [
        dataclasses.replace(behind, eye_color=e, hat_color=h) for e in VALUES["eye_color"] for h in VALUES["hat_color"]
    ]
    assert len({other.held_out for other in others}) == 1
    assert len({draw(other, MIDDLE).tobytes() for other in others}) == 1


def test_labels_go_there_and_back():
    for portrait in portraits(37):
        np.testing.assert_array_equal(from_labels(portrait.labels).labels, portrait.labels)


def test_a_full_caption_names_what_shows_in_ordinary_words():
    rng = np.random.default_rng(5)
    for portrait in portraits(101):
        caption = make_caption(portrait, set(portrait.visible), rng)
        for name in ("skin", "clothes_color", "background"):
            assert getattr(portrait, name) in caption
        assert (f"{portrait.eye_color} eyes" in caption) == (portrait.glasses != "sunglasses")
        assert (f"{portrait.hat_color} {portrait.hat}" in caption) == (portrait.hat != "none")
        assert ("striped" in caption) == (portrait.clothes_pattern == "striped")
        assert ("beard" in caption) == (portrait.beard == "full")
        assert not {"no", "not", "without", "none"} & set(caption.replace(",", " ").split())


def test_a_caption_does_not_tell_what_is_left_out():
    rng = np.random.default_rng(7)
    for _ in range(67):
        caption = make_caption(PLAIN, {"person", "hair_style", "background"}, rng)
        assert "short hair" in caption and "teal" in caption
        assert not {"black", "eyes", "skin", "glasses", "beanie", "red", "beard", "smiling", "green"} & set(
            caption.replace(",", " ").split()
        )


def test_attributes_are_left_out_at_random():
    rng = np.random.default_rng(11)
    counts = [len(draw_named(PLAIN, rng)) for _ in range(300)]
    assert max(counts) == len(VALUES) and min(counts) < len(VALUES) - 2


@pytest.mark.long
@pytest.mark.slow
def test_attributes_are_read_from_pixels():
    rng = np.random.default_rng(13)
    wrong = shown = 0
    for portrait in portraits(11, held_out=True):
        blurred = draw(portrait, draw_pose(rng)).astype(np.float32)
        blurred = (blurred + np.roll(blurred, 1, axis=0) + np.roll(blurred, 1, axis=1)) / 3 + rng.normal(
            0, 8, blurred.shape
        )
        seen = read_portrait(np.clip(blurred, 0, 255).astype(np.uint8))
        wrong += sum(getattr(seen, name) != getattr(portrait, name) for name in portrait.visible)
        shown += len(portrait.visible)
    assert wrong <= 0.03 * shown
