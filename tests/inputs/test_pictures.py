"""A picture's file becomes pixels of the image's size, or one line that says why not."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.pictures import POSTSCRIPT, forbid_programs

from tpusd.errors import UserError
from tpusd.inputs.pictures import bucket_size, check_picture, fitted_size, read_input
from tpusd.plan.specs import PictureInput

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def read(path, size=(24, 40), **fields):
    fields = {"resize": "fill", "strength": 0.5, "image_sha256": None} | fields
    return read_input(PictureInput(image=str(path), **fields), size)


def line_of(path, column="image"):
    with pytest.raises(UserError) as caught:
        check_picture(str(path), column)
    line = str(caught.value)
    assert line.startswith(f"{column}=") and "\n" not in line and line.isprintable()
    return line


def test_picture_of_the_images_size_is_taken_bit_for_bit(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert check_picture(str(tmp_path / "a.png"), "image") == (24, 40)
    np.testing.assert_array_equal(read(tmp_path / "a.png").pixels, PIXELS)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    assert check_picture(str(tmp_path / "a.png"), "image") == (40, 24)
    np.testing.assert_array_equal(read(tmp_path / "a.png", (40, 24)).pixels, np.rot90(PIXELS, -1))


def test_colours_of_other_kinds_become_opaque_eight_bit_rgb(tmp_path):
    palette = Image.new("P", (40, 24), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png")
    Image.new("RGBA", (40, 24), (10, 20, 30, 0)).save(tmp_path / "alpha.png")
    Image.new("LA", (40, 24), (10, 255)).save(tmp_path / "la.png")
    Image.fromarray(np.full((24, 40), 40_000, np.uint16)).save(tmp_path / "sixteen.png")
    expected = {"palette": (10, 20, 30), "alpha": (255,) * 3, "la": (10,) * 3, "sixteen": (round(40_000 / 257),) * 3}
    for name, colour in expected.items():
        assert tuple(read(tmp_path / f"{name}.png").pixels[3, 5]) == colour, name


def test_resizing(tmp_path):
    """A white square between black sides, from 40x24 to 24x24."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:, 8:32] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    made = {way: read(tmp_path / "a.png", (24, 24), resize=way).pixels for way in ("fill", "pad", "stretch", "bucket")}
    assert (made["fill"] == 255).all() and (made["bucket"] == 255).all()
    assert made["pad"][[0, -1]].max() == 0 and made["pad"][12, 12].min() == 255 and made["pad"][12, 0].max() < 10
    assert made["stretch"][0, 12].min() == 255 and made["stretch"][:, 0].max() < 10
    assert fitted_size((24, 40), (512, 512), 8) == (304, 512)
    assert fitted_size((1, 10_000), (512, 512), 8) == (8, 512)


# Height, width: appendix I of Podell et al. 2023, one side at least as long as the other.
SDXL_SIZES = {
    (512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664), (640, 1600), (640, 1536),
    (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152), (896, 1152), (896, 1088),
    (960, 1088), (960, 1024), (1024, 1024),
}  # fmt: skip


def test_buckets_of_a_megapixel_are_those_of_sdxl():
    found = {bucket_size((height, width), (1024, 1024), 8) for height in range(1, 400, 7) for width in range(1, 400, 9)}
    assert {tuple(sorted(size)) for size in found} <= SDXL_SIZES and 15 < len(found) < 30
    assert bucket_size((1000, 1000), (1024, 1024), 8) == (1024, 1024)
    assert bucket_size((768, 1344), (1024, 1024), 8) == (768, 1344) == bucket_size((384, 672), (1024, 1024), 8)
    assert bucket_size((1, 9000), (1024, 1024), 8) == (512, 2048)


@pytest.mark.parametrize("box", [(512, 512), (128, 128), (64, 64), (8, 8), (256, 1024), (1024, 1024), (48, 40)])
def test_buckets_have_the_boxes_pixels_and_the_pictures_shape(box):
    for height in range(10, 2000, 130):
        for width in range(10, 2000, 170):
            made = bucket_size((height, width), box, 8)
            assert made[0] % 8 == 0 == made[1] % 8 and made[0] * made[1] <= box[0] * box[1]
            if min(box) >= 128 and max(height / width, width / height) < 3.5:
                assert 0.85 < made[0] / made[1] / (height / width) < 1.18 and made[0] * made[1] > 0.8 * box[0] * box[1]


def test_mask_keeps_pixels_and_a_feather_lies_within_it(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    masked = np.zeros((24, 40), bool)
    masked[4:20, 10:30] = True
    Image.fromarray(np.where(masked, 200, 100).astype(np.uint8)).save(tmp_path / "m.png")
    made = 255 - PIXELS
    for feather in (0, 3):
        got = read(tmp_path / "a.png", mask=str(tmp_path / "m.png"), mask_feather=feather)
        np.testing.assert_array_equal(got.masked, masked)
        pasted = got.pasted(made)
        np.testing.assert_array_equal(pasted[~masked], PIXELS[~masked])
        np.testing.assert_array_equal(pasted[8:16, 14:26], made[8:16, 14:26])
        assert ((got.paste > 0) & (got.paste < 1)).any() == (feather > 0)
    got = read(tmp_path / "a.png", mask=str(tmp_path / "m.png"), paste_back=False)
    np.testing.assert_array_equal(got.pasted(made), made)
    np.testing.assert_array_equal(got.latent_mask(8)[..., 0], masked[::8, ::8])


def test_a_file_that_changed_is_refused(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="has changed since the run began"):
        read(tmp_path / "a.png", image_sha256="0" * 64)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height):
    """A PNG that says that it has this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_hostile_pictures_are_one_line(tmp_path, monkeypatch):
    forbid_programs(monkeypatch)
    Image.fromarray(PIXELS).save(tmp_path / "whole.png")
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "cmyk.jpg")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "animated.png", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "animated.webp", save_all=True, append_images=frames[1:])
    files = {
        "truncated.png": (tmp_path / "whole.png").read_bytes()[:-700],
        "long.png": png(10**9, 1),
        "bomb.png": png(65_000, 65_000),
        "text.png": b"a text",
        "empty.png": b"",
        "picture.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "postscript.png": POSTSCRIPT,
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    rules = {
        "truncated.png": "truncated",
        "long.png": "oversized picture",
        "bomb.png": "oversized picture",
        "text.png": "is not a PNG, JPEG or WebP picture",
        "empty.png": "is not a PNG, JPEG or WebP picture",
        "picture.svg": "is not a PNG, JPEG or WebP picture",
        "postscript.png": "is not a PNG, JPEG or WebP picture",
        "cmyk.jpg": "colours of the kind CMYK",
        "animated.png": "has 2 frames",
        "animated.webp": "has 2 frames",
    }
    for name, rule in rules.items():
        assert rule in line_of(tmp_path / name), name
    os.mkfifo(tmp_path / "pipe.png")
    line_of(tmp_path / "pipe.png")
    line_of(tmp_path / "missing.png", "mask")
