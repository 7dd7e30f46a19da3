import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tpusd.errors import UserError
from tpusd.gallery.contact_sheet import contact_sheet, sheet_labels
from tpusd.gallery.drawing import encode_sheet
from tpusd.recipes.files import SUFFIXES, Metadata, encode_image, read_metadata

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
        return read_metadata(tmp_path / "image")

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


def test_pictures_of_others_have_no_recipe_or_one_that_is_none(metadata, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    assert metadata(buffer.getvalue()) == Metadata(parameters=None, recipe=None)
    for text in ("[" * 99_999, "[1]", "{", "null"):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("tpusd", text)
        Image.fromarray(PIXELS).save(tmp_path / "x.png", pnginfo=info)
        assert read_metadata(tmp_path / "x.png").recipe is None


def test_what_is_no_picture_is_one_line(metadata, tmp_path):
    whole = encode_image(PIXELS, RECIPE)
    for data in (b"", b"text", whole[:200], whole[:-40], whole[:60] + b"\xff" * 9 + whole[69:]):
        with pytest.raises(UserError, match="image: (cannot be read|is a broken)"):
            metadata(data)
    with pytest.raises(UserError, match="No such file"):
        read_metadata(tmp_path / "missing.png")


def sheet(labels, size=(64, 48), **options):
    return contact_sheet([(label, Image.new("RGB", size, "red")) for label in labels], **options)


def test_sheet_has_a_cell_for_every_picture_and_labels_below():
    made = sheet(["one", "two", "three"], columns=2)
    assert made.width == 12 + 2 * 268 and made.height > 2 * (192 + 17)
    pixels = np.asarray(made)
    assert (pixels == (255, 0, 0)).all(-1).sum() == 3 * 256 * 192
    assert (pixels.sum(-1) < 200).sum() > 20  # letters


def test_sheet_wraps_long_labels_and_takes_any_text():
    for label in ("word " * 100, "W" * 300, "日本\n\0\u202e🦊", ""):
        made = sheet([label] * 5, columns=4, note="5 of 99 images")
        assert made.width == 12 + 4 * 268 and made.height < 2 * 308 + 60
        encode_sheet(made)


def test_sheet_shrinks_large_pictures_and_keeps_their_shape():
    made = sheet(["a"], size=(1024, 512), columns=8)
    assert (np.asarray(made) == (255, 0, 0)).all(-1).sum() == 256 * 128


def test_only_the_first_picture_of_a_row_carries_the_prompt():
    records = [
        {"row": 0, "copy": 0, "prompt": "a"},
        {"row": 0, "copy": 1, "prompt": "a"},
        {"row": 1, "copy": 0, "prompt": "a"},
    ]
    assert sheet_labels(records) == ["a", "copy 1", "a"]
