"""Labels in any script: by fonts that have the characters, else in words; no sign for what is missing."""

import struct
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from tpusd.gallery import fonts, lettering
from tpusd.gallery.characters import characters_of
from tpusd.gallery.drawing import wrap
from tpusd.gallery.grid import contact_sheet, labelled_grid
from tpusd.gallery.lettering import Lettering, clusters

SCRIPTS = {
    "accents": "Füße, naïve façade, žluťoučký kůň",
    "Greek and Cyrillic": "αλεπού лиса",
    "CJK": "日本の狐が雪の中に座っている、夕暮れ",
    "Arabic": "ثعلب أحمر يجلس في الثلج",
    "Hebrew": "שועל אדום",
    "Devanagari": "लाल लोमड़ी",
    "emoji": "🦊 ❄️ 👨‍👩‍👧 👍🏽 🇩🇪",
    "combining": "x\u0301\u0323 e\u0301",
}


@pytest.fixture
def no_fonts(monkeypatch):
    monkeypatch.setattr(lettering, "system_fonts", lambda: ())


def own_font_has(text, size=13):
    """Whether Pillow's own font has every character, by the sign that it draws for a missing one."""
    font = ImageFont.load_default(size)
    missing = bytes(font.getmask("\U000effff"))
    return all(char == " " or bytes(font.getmask(char)) != missing for char in text)


def drawn(text, size=13, width=400):
    font = Lettering(size)
    image = Image.new("RGB", (width, 40), "white")
    font.draw(ImageDraw.Draw(image), image, 5, 5, font.readable(text), "black")
    return np.asarray(image)


def test_plain_text_is_drawn_as_pillow_draws_it():
    """So the pictures of English prompts keep their bytes."""
    text = "a red fox, 100% (sitting) [in] the snow; \"quoted\" 'it' {x} ~ @#$^&*_+=|\\/<>?!"
    image = Image.new("RGB", (400, 40), "white")
    ImageDraw.Draw(image).text((5, 5), text, fill="black", font=ImageFont.load_default(13))
    np.testing.assert_array_equal(drawn(text), np.asarray(image))
    font = Lettering(13)
    assert font.readable(text) == text and font.getlength(text) == ImageFont.load_default(13).getlength(text)


def test_plain_text_asks_no_font_of_the_system(monkeypatch):
    monkeypatch.setattr(lettering, "system_fonts", lambda: pytest.fail("asked"))
    contact_sheet([("a red fox", Image.new("RGB", (64, 64)))] * 3, columns=2, note="3 of 4 images")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Füße naïve Łódź Đà Nẵng", "Fusse naive Lodz Da Nang"),
        ("ＡＢＣ ½ “q” – — ×", "ABC 1⁄2 “q” - - x"),
        ("🦊 a fox", "[fox face] a fox"),
        ("❄️ 👍🏽", "[snowflake] [thumbs up sign]"),
        ("👨‍👩‍👧 🇩🇪", "[man, woman, girl] [flag DE]"),
        ("a 狐 b", "a [U+72D0] b"),
        ("日本の", "[U+65E5 672C 306E]"),
        ("лиса", "[U+043B 0438 0441 0430]"),
        ("x\u0301\u0323 e\u0301", "x e"),
        ("a\nb\tc\x07d\u202ee\u200bf", "a b c def"),
    ],
)
def test_without_fonts_every_character_has_a_word(no_fonts, text, expected):
    assert Lettering(13).readable(text) == expected


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_without_fonts_no_sign_for_a_missing_character_is_drawn(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lettering, "system_fonts", lambda: ())
        font = Lettering(13)
        assert own_font_has(font.readable(text))
        assert own_font_has("".join(wrap(text, font, 256)))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_drawn_by_a_font_that_has_it(script):
    """Each cluster by one font, whose own table says that it has the characters."""
    text = unicodedata.normalize("NFC", SCRIPTS[script])
    font = Lettering(13)
    for cluster in clusters(text):
        letters = "".join(char for char in cluster if char not in "\u200d\ufe0f")
        if not any(one.has(letters) for one in fonts.system_fonts()) and not own_font_has(letters):
            pytest.skip(f"no font of this system has {ascii(cluster)}")
    assert font.readable(text) == text
    assert "".join(run for _, run in font._runs(text)) == text
    for one, run in font._runs(text):
        assert one is None or one.is_color or one.has("".join(c for c in run if c not in "\u200d\ufe0f"))
    assert (drawn(text) < 128).any()


def test_accents_stay_with_their_letter_and_emoji_with_what_changes_them():
    text = "e\u0301x\u0323\u0301👍🏽👨‍👩‍👧🇩🇪🇫🇷1\ufe0f\u20e3ab"
    assert list(clusters(text)) == ["e\u0301", "x\u0323\u0301", "👍🏽", "👨‍👩‍👧", "🇩🇪", "🇫🇷", "1\ufe0f\u20e3", "a", "b"]
    cut = wrap("x\u0323\u0301" * 60, Lettering(13), 100, max_lines=99)
    assert len(cut) > 1 and not any(unicodedata.combining(line[0]) for line in cut)


def test_marks_between_letters_go_with_a_script_and_not_with_its_neighbour():
    """A comma in an Arabic text belongs to it, so that the words keep their order; a space before Latin does not."""
    arabic = fonts.FontFile(path="arabic", index=0, known=((0x20, 0x2F), (0x600, 0x6FF)))
    font = Lettering(13)
    font._font_of = lambda cluster: arabic
    assert [run for _, run in font._runs("قطة, كلب cat")] == ["قطة, كلب", " cat"]


def test_any_label_fits_its_sheet_with_or_without_fonts(no_fonts):
    for text in SCRIPTS.values():
        made = contact_sheet([(text * 9, Image.new("RGB", (64, 64)))] * 3, columns=2, note=text)
        assert made.width == 12 + 2 * 268
        labelled_grid(
            [[Image.new("RGB", (128, 128))]], column_labels=[text], row_labels=[text], column_title=text, row_title=text
        )


def test_without_fontconfig_the_directories_are_asked(monkeypatch, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "Other-Bold.ttf").write_bytes(b"")
    (tmp_path / "Other-Regular.TTF").write_bytes(b"")
    (tmp_path / "NotoSans-Regular.ttf").write_bytes(b"")
    (tmp_path / "readme.txt").write_bytes(b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(fonts, "_DIRECTORIES", {fonts.sys.platform: (str(tmp_path), str(tmp_path / "missing"))})
    fonts.system_fonts.cache_clear()
    try:
        names = [one.path.rsplit("/", 1)[-1] for one in fonts.system_fonts()]
    finally:
        fonts.system_fonts.cache_clear()
    assert names == ["NotoSans-Regular.ttf", "Other-Regular.TTF", "Other-Bold.ttf"]


def test_what_fontconfig_says_of_a_font_is_in_its_file():
    said = [font for font in fonts.system_fonts() if font.known and font.index == 0][:40]
    if not said:
        pytest.skip("no fontconfig, or no fonts")
    for font in said:
        theirs = {code for first, last in font.known for code in range(first, last + 1)}
        ours = {code for first, last in characters_of(font.path) for code in range(first, last + 1)}
        assert theirs <= ours and len(ours - theirs) < 100, font.path


@pytest.mark.parametrize("data", [b"", b"ttcf", b"OTTO" + b"\xff" * 50, b"\0\1\0\0\0\1" + b"\0" * 40, b"\0" * 9999])
def test_a_file_that_is_no_font_has_no_characters(tmp_path, data):
    (tmp_path / "x.ttf").write_bytes(data)
    assert characters_of(str(tmp_path / "x.ttf")) == ()
    assert fonts.font_for("a", 13, [fonts.FontFile(path=str(tmp_path / "x.ttf"), index=0)], color_first=False) is None


def test_both_forms_of_the_table_of_characters_are_read(tmp_path):
    """By the OpenType specification: two segments of format 4, two groups of format 12."""

    def font(table):
        cmap = struct.pack(">HHHHI", 0, 1, 3, 10, 12) + table
        return b"\0\1\0\0" + struct.pack(">HHHH", 1, 0, 0, 0) + struct.pack(">4sIII", b"cmap", 0, 28, len(cmap)) + cmap

    segments = struct.pack(">3H", 0x5A, 0x3042, 0xFFFF), struct.pack(">3H", 0x41, 0x3041, 0xFFFF)
    four = struct.pack(">7H", 4, 40, 0, 6, 4, 1, 2) + segments[0] + b"\0\0" + segments[1] + b"\0" * 12
    twelve = struct.pack(">HHIII", 12, 0, 40, 0, 2) + struct.pack(">6I", 0x41, 0x5A, 1, 0x1F98A, 0x1F98A, 27)
    for name, table, expected in (
        ("four", four, ((0x41, 0x5A), (0x3041, 0x3042))),
        ("twelve", twelve, ((0x41, 0x5A), (0x1F98A, 0x1F98A))),
    ):
        (tmp_path / name).write_bytes(font(table))
        assert characters_of(str(tmp_path / name)) == expected
