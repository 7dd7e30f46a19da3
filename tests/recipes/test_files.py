import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tpusd.errors import UserError
from tpusd.recipes.base import PictureTexts
from tpusd.recipes.files import SUFFIXES, encode_image
from tpusd.recipes.own import recipe_values
from tpusd.recipes.texts import read_texts

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


PROMPTS = ['Füße, "x": y', "日本の狐 🦊", "a\nb: c, d", "nul\0 and \x07 bell", "\u202eright to left", "<&> 'q' \uffff"]


@pytest.fixture
def metadata(tmp_path):
    def read(data):
        (tmp_path / "image").write_bytes(data)
        texts = read_texts(tmp_path / "image")
        parameters = texts.chunks.get("parameters") or texts.user_comment
        return SimpleNamespace(parameters=parameters, recipe=recipe_values(texts))

    return read


def decoded(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.format, np.asarray(image)


@pytest.mark.parametrize("image_format", SUFFIXES)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_both_texts_survive_in_every_format(metadata, image_format, prompt):
    recipe = RECIPE | {"prompt": prompt, "extra": {"tags": ["ä"]}}
    found = metadata(encode_image(PIXELS, recipe, image_format=image_format))
    assert found.recipe == recipe
    assert found.parameters.startswith(
        prompt.replace("\0", "") + "\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 0"
    )


def test_pixels_survive_where_the_format_loses_nothing():
    for image_format in ("png", "webp"):
        kind, pixels = decoded(encode_image(PIXELS, RECIPE, image_format=image_format))
        assert kind == image_format.upper() and np.array_equal(pixels, PIXELS)
    smooth = np.linspace(0, 255, 24 * 40 * 3).reshape(24, 40, 3).astype(np.uint8)
    for image_format, close in (("webp", 8), ("jpeg", 8)):
        kind, pixels = decoded(encode_image(smooth, RECIPE, image_format=image_format, quality=98))
        assert kind == image_format.upper() and 0 < np.abs(pixels.astype(int) - smooth).max() < close


def test_lower_quality_makes_smaller_files():
    for image_format in ("webp", "jpeg"):
        sizes = [len(encode_image(PIXELS, RECIPE, image_format=image_format, quality=q)) for q in (10, 60, None)]
        assert sizes == sorted(sizes) and sizes[0] < sizes[2]


def test_same_recipe_gives_the_same_bytes():
    for image_format in SUFFIXES:
        first = encode_image(PIXELS, RECIPE, image_format=image_format)
        assert first == encode_image(PIXELS.copy(), dict(RECIPE), image_format=image_format)


def test_png_keeps_latin_parameters_where_old_readers_look():
    data = encode_image(PIXELS, RECIPE | {"prompt": "Füße"})
    assert b"tEXtparameters\0F\xfc\xdfe\nNegative prompt: blurry" in data and b"iTXttpusd\0" in data


def test_a1111_finds_the_parameters_of_jpeg_and_webp():
    """It reads EXIF's UserComment as piexif does: 8 bytes that name the code, then UTF-16 with the big end first."""
    for image_format in ("webp", "jpeg"):
        with Image.open(io.BytesIO(encode_image(PIXELS, RECIPE, image_format=image_format))) as image:
            comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment[:8] == b"UNICODE\0" and comment[8:].decode("utf-16-be").startswith("a red fox\nNegative prompt")


@pytest.mark.parametrize("image_format", SUFFIXES)
@pytest.mark.parametrize("letter", ["\x01", "🦊", "&"])
def test_long_texts_stay_below_what_readers_take(metadata, image_format, letter):
    recipe = RECIPE | {"prompt": letter * 200_000, "negative_prompt": letter * 200_000}
    for extra in ({}, {"story": "x" * 2_000_000}, {"story": "short"}):
        found = metadata(encode_image(PIXELS, recipe | {"extra": extra}, image_format=image_format))
        for text in (found.recipe["prompt"], found.recipe["negative_prompt"], found.parameters):
            assert 2_400 < len(text) < 200_000 and text.startswith(letter * 2_400)
        assert found.recipe["seed"] == 0 and "Steps: 20" in found.parameters
    short = metadata(encode_image(PIXELS, RECIPE | {"extra": {"story": "x" * 2_000_000}}, image_format=image_format))
    assert "extra" not in short.recipe and short.recipe["prompt"] == "a red fox"


def test_pictures_of_others_have_no_recipe_or_an_unreadable_one(tmp_path):
    for suffix in (".png", ".webp", ".jpg"):
        Image.fromarray(PIXELS).save(tmp_path / f"x{suffix}")
        assert read_texts(tmp_path / f"x{suffix}") == PictureTexts(chunks={}, user_comment=None, xmp=None)
    for text in ("[" * 99_999, "[1]", "{", "null"):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("tpusd", text)
        Image.fromarray(PIXELS).save(tmp_path / "x.png", pnginfo=info)
        assert recipe_values(read_texts(tmp_path / "x.png")) is None


def test_file_that_is_not_a_picture_is_one_line(metadata, tmp_path):
    whole = encode_image(PIXELS, RECIPE)
    for data in (b"", b"text", whole[:200], whole[:-40], whole[:60] + b"\xff" * 9 + whole[69:]):
        with pytest.raises(UserError, match="image: (cannot be read|is not a PNG, JPEG|is a broken)"):
            metadata(data)
    with pytest.raises(UserError, match="No such file"):
        read_texts(tmp_path / "missing.png")


def test_every_kind_of_png_text_is_read(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("plain", "a")
    info.add_text("zipped", "b" * 200, zip=True)
    info.add_itxt("wide", "狐", zip=True)
    Image.fromarray(PIXELS).save(tmp_path / "x.png", pnginfo=info)
    assert read_texts(tmp_path / "x.png").chunks == {"plain": "a", "zipped": "b" * 200, "wide": "狐"}
