import io
import os
import zlib

import pytest
from PIL import Image
from support.pictures import POSTSCRIPT, forbid_programs

from tpusd.errors import UserError
from tpusd.storage.pictures import FORMATS, PictureError, open_picture


def encoded(image_format, size=(8, 6)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, image_format)
    return buffer.getvalue()


def read(path):
    with open_picture(path) as image:
        return image.convert("RGB").getpixel((0, 0)), image.size


@pytest.mark.parametrize("image_format", FORMATS)
def test_format_follows_from_the_bytes_and_not_from_the_name(tmp_path, image_format):
    (tmp_path / "x.txt").write_bytes(encoded(image_format))
    (red, green, blue), size = read(tmp_path / "x.txt")
    assert red > 250 and green < 5 and blue < 5 and size == (8, 6)


@pytest.mark.parametrize("image_format", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(tmp_path, image_format):
    (tmp_path / "x.png").write_bytes(encoded(image_format, (16, 16)))
    with pytest.raises(PictureError, match=r"x.png: is not a PNG, JPEG or WebP picture"):
        read(tmp_path / "x.png")


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    forbid_programs(monkeypatch)
    (tmp_path / "x.png").write_bytes(POSTSCRIPT)
    with Image.open(tmp_path / "x.png") as image, pytest.raises((AssertionError, OSError)):
        image.load()  # what Pillow does by itself
    with pytest.raises(PictureError, match="is not a PNG, JPEG or WebP picture"):
        read(tmp_path / "x.png")


def test_links_pipes_directories_and_missing_files_are_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    (tmp_path / "link.png").symlink_to(tmp_path / "x.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name, words in (
        ("link.png", "is a link"),
        ("pipe.png", "is not a regular file"),
        ("folder.png", "is not a regular file"),
        ("missing.png", "No such file"),
    ):
        with pytest.raises(PictureError, match=f"{name}: cannot be read: {words}"):
            read(tmp_path / name)


def test_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    data = bytearray(encoded("PNG"))
    for width, height, words in (
        (16_385, 8_192, "has 16385x8192 pixels; at most 134217728 are read"),
        (1 << 30, 1 << 30, "is a broken or an oversized picture"),
    ):
        data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        (tmp_path / "x.png").write_bytes(data)
        with pytest.raises(PictureError, match=f"x.png: {words}"):
            read(tmp_path / "x.png")


def test_error_in_the_block_is_one_about_the_picture(tmp_path):
    (tmp_path / "x.png").write_bytes(encoded("PNG", (99, 99))[:-30])
    with pytest.raises(UserError, match="x.png: cannot be read: .*truncated") as caught:
        read(tmp_path / "x.png")
    assert isinstance(caught.value, PictureError) and caught.value.reason.startswith("cannot be read")


def test_file_is_closed_after_the_block(tmp_path):
    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        read(tmp_path / "x.png")
    assert len(os.listdir("/proc/self/fd")) == before
