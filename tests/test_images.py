import io
import json

import numpy as np
import pytest
from PIL import Image

from tpusd.images import contact_sheet, encode_png, encode_sheet, parameters_text, sheet_labels

RECIPE = {
    "prompt": "a red fox",
    "negative_prompt": "blurry",
    "num_inference_steps": 20,
    "sampler": "euler_ancestral",
    "guidance_scale": 7.5,
    "seed": 0,
    "height": 24,
    "width": 40,
    "model": "sd15",
}
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def decode(data):
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return np.asarray(image), image.text


def test_pixels_and_both_texts_survive():
    pixels, text = decode(encode_png(PIXELS, RECIPE))
    assert np.array_equal(pixels, PIXELS)
    assert json.loads(text["tpusd"]) == RECIPE
    assert text["parameters"].startswith(
        "a red fox\nNegative prompt: blurry\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 0, Size: 40x24, Model: sd15, RNG: JAX"
    )


def test_same_recipe_gives_the_same_bytes():
    assert encode_png(PIXELS, RECIPE) == encode_png(PIXELS.copy(), dict(RECIPE))


@pytest.mark.parametrize(
    "prompt", ['Füße, "x": y', "日本の狐 🦊", "a\nb: c, d", "nul\0 and \x07 bell", "\u202eright to left"]
)
def test_prompts_in_any_language_survive(prompt):
    _, text = decode(encode_png(PIXELS, RECIPE | {"prompt": prompt}))
    assert json.loads(text["tpusd"])["prompt"] == prompt
    assert text["parameters"].startswith(prompt.replace("\0", "") + "\nNegative")


def test_long_texts_stay_below_what_readers_take():
    recipe = RECIPE | {"prompt": "\x01" * 200_000, "negative_prompt": "\x01" * 200_000}
    for extra in ({}, {"story": "x" * 2_000_000}, {"story": "short"}):
        pixels, text = decode(encode_png(PIXELS, recipe | {"extra": extra}))
        assert np.array_equal(pixels, PIXELS) and json.loads(text["tpusd"])["seed"] == 0
        assert 80_000 < len(text["parameters"].encode()) < 2**20 and len(text["tpusd"].encode()) < 2**20
        assert json.loads(text["tpusd"]).get("extra", "dropped") == ("dropped" if len(str(extra)) > 99 else extra)


def test_values_with_commas_and_colons_are_quoted():
    assert 'Model: "a, b: c"' in parameters_text(RECIPE | {"model": "a, b: c"})
    assert "Negative" not in parameters_text(RECIPE | {"negative_prompt": None})
    assert "Schedule type: Karras" in parameters_text(RECIPE | {"sampler_settings": {"use_karras_sigmas": True}})


def sheet(labels, size=(64, 48), **options):
    return contact_sheet([(label, Image.new("RGB", size, "red")) for label in labels], **options)


def test_sheet_has_a_cell_for_every_picture_and_labels_below():
    made = sheet(["one", "two", "three"], columns=2)
    assert made.width == 12 + 2 * 204 and made.height > 2 * (144 + 17)
    pixels = np.asarray(made)
    assert (pixels == (255, 0, 0)).all(-1).sum() == 3 * 192 * 144  # enlarged in whole steps
    assert (pixels.sum(-1) < 200).sum() > 20  # letters


def test_sheet_wraps_long_labels_and_takes_any_text():
    for label in ("word " * 100, "W" * 300, "日本\n\0\u202e🦊", ""):
        made = sheet([label] * 5, columns=4, note="5 of 99 images")
        assert made.width == 12 + 4 * 204 and made.height < 2 * 260 + 60
        encode_sheet(made)


def test_sheet_shrinks_large_pictures_and_keeps_their_shape():
    made = sheet(["a"], size=(1024, 512), columns=8)
    assert (np.asarray(made) == (255, 0, 0)).all(-1).sum() == 192 * 96


def test_only_the_first_picture_of_a_row_carries_the_prompt():
    records = [
        {"row": 0, "copy": 0, "prompt": "a"},
        {"row": 0, "copy": 1, "prompt": "a"},
        {"row": 1, "copy": 0, "prompt": "a"},
    ]
    assert sheet_labels(records) == ["a", "copy 1", "a"]
