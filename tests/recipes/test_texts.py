"""EXIF's UserComment as programs write it: with and without its 8 bytes of code, in every encoding and byte order."""

import struct

import pytest
from PIL import Image

from tpusd.recipes.readers import read_recipe
from tpusd.recipes.texts import read_texts

SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512"
LATIN = f"a red fox, naïve\nNegative prompt: dark\n{SETTINGS}"
JAPANESE = f"雪の中の狐、夕暮れ\n{SETTINGS}"
NONE, UNICODE, ASCII, JIS = b"\0" * 8, b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0"


def tiff(comment, order, kind=7):
    """EXIF by its specification: one IFD that points to the Exif IFD, which has the UserComment alone.

    order: < or >, as `struct` has them. kind: the type of the field; 7 is UNDEFINED, 2 is ASCII.
    """
    mark = b"II" if order == "<" else b"MM"
    header = mark + struct.pack(f"{order}HI", 42, 8)
    first = struct.pack(f"{order}HHHIII", 1, 0x8769, 4, 1, 26, 0)
    assert len(header) + len(first) == 26
    exif = struct.pack(f"{order}HHHIII", 1, 0x9286, kind, len(comment), 44, 0)
    return b"Exif\0\0" + header + first + exif + comment


def read(tmp_path, comment, order="<", kind=7, suffix=".jpg"):
    path = tmp_path / f"x{suffix}"
    Image.new("RGB", (8, 8)).save(path, exif=tiff(comment, order, kind))
    return read_texts(path).user_comment


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("text", [LATIN, JAPANESE])
@pytest.mark.parametrize(
    ("code", "encoding"),
    [
        (UNICODE, "utf-16-le"),
        (UNICODE, "utf-16-be"),
        (UNICODE, "utf-16"),  # with a byte order mark
        (UNICODE, "utf-8"),  # not by the rules, and written all the same
        (ASCII, "utf-8"),
        (NONE, "utf-8"),
        (NONE, "utf-16-le"),
        (b"", "utf-8"),
        (b"", "utf-16-le"),
        (b"", "utf-16-be"),
        (JIS, "iso2022_jp"),
        (JIS, "cp932"),
        (JIS, "utf-8"),
    ],
)
def test_comments_are_read_with_and_without_their_code(tmp_path, order, text, code, encoding):
    if code == JIS and text == LATIN and encoding != "utf-8":
        text = text.replace("ï", "i")  # which JIS does not have
    for end in (b"", b"\0\0"):
        assert read(tmp_path, code + text.encode(encoding) + end, order) == text


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
def test_comments_are_read_from_every_format(tmp_path, suffix):
    for order in "<>":
        assert read(tmp_path, UNICODE + LATIN.encode("utf-16-be"), order, suffix=suffix) == LATIN
        recipe = read_recipe(tmp_path / f"x{suffix}")
        assert recipe.values["Prompt"] == "a red fox, naïve" and "sampler=euler_ancestral" in recipe.overrides


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_text_whose_letters_do_not_tell_has_the_byte_order_of_its_file(tmp_path, order):
    text = "狐梟鹿"
    assert read(tmp_path, UNICODE + text.encode("utf-16-le" if order == "<" else "utf-16-be"), order) == text


def test_latin_1_and_fields_of_another_type_are_read(tmp_path):
    assert read(tmp_path, ASCII + "Füße".encode("latin-1")) == "Füße"
    assert read(tmp_path, LATIN.encode() + b"\0", kind=2) == LATIN
    assert read(tmp_path, ASCII + LATIN.encode() + b"\0", kind=2) == LATIN


@pytest.mark.parametrize("comment", [NONE, UNICODE, ASCII + b"\0\0\0", JIS, b"\0" * 99])
def test_an_empty_comment_is_no_text(tmp_path, comment):
    assert read(tmp_path, comment) is None
