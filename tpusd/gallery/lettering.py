"""Text in any script on a picture: Pillow's own font first, then the system's fonts, then words for what no font has.

A line of which Pillow's own font has every character is drawn with it alone, so such sheets look the same everywhere.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont, features

from tpusd.gallery.fonts import FontFile, font_for, opened_at, system_fonts

_JOINER, _KEYCAP = "\u200d", "\u20e3"
_PICTURE_SIGN = "\ufe0f"  # asks for the picture of a character that has a plain form too
_SKINS = range(0x1F3FB, 0x1F400)
_FLAG_LETTERS = range(0x1F1E6, 0x1F200)
_TAGS = range(0xE0020, 0xE0080)  # of flags such as Scotland's
_PICTURES = range(0x1F000, 0x1FB00)
_MISSING = "\U000effff"  # a character that no font has
_LATIN = re.compile(r"LATIN (SMALL|CAPITAL) (?:LETTER|LIGATURE) ([A-Z]{1,2})\b")
_WORDS = {
    "ß": "ss", "ẞ": "SS", "þ": "th", "ð": "d", "Þ": "TH", "Ð": "D", "€": "EUR", "£": "GBP", "¥": "JPY",
    "×": "x", "−": "-", "•": "*", "→": "->", "←": "<-", "≤": "<=", "≥": ">=",
}  # fmt: skip


class Lettering:
    """Measures and draws text of one size. `readable` comes first: it leaves only what can be drawn."""

    def __init__(self, size: int):
        self._size = size
        self._own = ImageFont.load_default(size)  # Pillow's own, so that sheets look the same everywhere
        self._missing = bytes(self._own.getmask(_MISSING))
        self._ascent = self._own.getmetrics()[0] if isinstance(self._own, ImageFont.FreeTypeFont) else 0
        self._font_of = functools.lru_cache(4096)(self._find_font)
        self._has = functools.lru_cache(4096)(self._find_own)

    def readable(self, text: str) -> str:
        """The text with a word in place of each character that no font has: its letter, its name or its code point."""
        text = "".join(map(_printable, unicodedata.normalize("NFC", text)))
        if self._is_own(text):
            return text
        parts: list[str] = []
        for cluster in clusters(text):
            if self._can_draw(cluster):
                parts.append(cluster)
                continue
            word = self._plain_form(cluster)
            if word.startswith("[U+") and parts and parts[-1].startswith("[U+"):
                parts[-1] = f"{parts[-1][:-1]} {word[3:]}"
            else:
                parts.append(word)
        return "".join(parts)

    def getlength(self, text: str) -> float:
        """Pixels."""
        if self._is_own(text):
            return self._own.getlength(text)
        return sum(self._length(run, font) for font, run in self._runs(text))

    def draw(self, draw: ImageDraw.ImageDraw, sheet: Image.Image, x: float, y: float, text: str, color: str) -> None:
        """x, y: of the top left corner of the line."""
        if self._is_own(text):
            draw.text((x, y), text, fill=color, font=self._own)
            return
        for font, run in self._runs(text):
            if font is None:
                draw.text((x, y), run, fill=color, font=self._own)
            elif font.is_color:
                self._paste(sheet, x, y, run, font)
            else:
                base = y + self._ascent
                draw.text((x, base), self._visual(run), fill=color, font=opened_at(font, self._size), anchor="ls")
            x += self._length(run, font)

    def _is_own(self, text: str) -> bool:
        return all(map(self._has, text))

    def _find_own(self, char: str) -> bool:
        return char == " " or (" " < char <= "~") or bytes(self._own.getmask(char)) not in (self._missing, b"")

    def _can_draw(self, cluster: str) -> bool:
        return self._is_own(cluster) or self._font_of(cluster) is not None

    def _find_font(self, cluster: str) -> FontFile | None:
        visible = "".join(char for char in cluster if char not in (_JOINER, _PICTURE_SIGN, "\u200c"))
        return font_for(visible, self._size, system_fonts(), color_first=_is_picture(cluster))

    def _runs(self, text: str) -> Iterator[tuple[FontFile | None, str]]:
        """Pieces with the font of each; None: Pillow's own. Spaces and signs go with the piece before, if they can."""
        chosen: list[tuple[FontFile | None, str]] = []
        for cluster in clusters(text):
            font = None if self._is_own(cluster) else self._font_of(cluster)
            before = chosen[-1][0] if chosen else None
            if before is not None and not before.is_color and _is_neutral(cluster) and before.has(cluster):
                font = before
            chosen.append((font, cluster))
        for index in range(len(chosen) - 1, -1, -1):  # of two scripts, none takes what is between them
            font, cluster = chosen[index]
            following = chosen[index + 1][0] if index + 1 < len(chosen) else None
            if font is not following and self._is_own(cluster):
                chosen[index] = (None, cluster)
        for font, parts in groupby(chosen, key=lambda pair: pair[0]):
            yield font, "".join(part for _, part in parts)

    def _length(self, run: str, font: FontFile | None) -> float:
        if font is None:
            return self._own.getlength(run)
        found = opened_at(font, self._size)
        assert found is not None
        return found.getlength(self._visual(run)) * (self._scale(found) if font.is_color else 1)

    def _scale(self, font: ImageFont.FreeTypeFont) -> float:
        """Of a font that holds pictures of one size."""
        return self._size / font.size

    def _paste(self, sheet: Image.Image, x: float, y: float, run: str, font: FontFile) -> None:
        """Pictures of one size are drawn as they are, and shrunk to the size of the text."""
        found = opened_at(font, self._size)
        assert found is not None
        ascent, descent = found.getmetrics()
        width, height = max(1, round(found.getlength(run))), ascent + descent
        picture = Image.new("RGBA", (width, height), (255, 255, 255, 0))
        ImageDraw.Draw(picture).text((0, ascent), run, font=found, embedded_color=True, anchor="ls")
        scale = self._scale(found)
        small = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS)
        top = round(y + self._ascent - ascent * scale)
        sheet.paste(small, (round(x), top), small)

    @staticmethod
    def _visual(run: str) -> str:
        """Without the library that lays out scripts from right to left, their letters are turned round here."""
        if features.check("raqm") or not any(unicodedata.bidirectional(char) in ("R", "AL") for char in run):
            return run
        return "".join(reversed(list(clusters(run))))

    def _plain_form(self, cluster: str) -> str:
        """What is written for a cluster that no font has."""
        plain = "".join(c for c in unicodedata.normalize("NFKD", cluster) if not unicodedata.combining(c))
        if plain and self._is_own(plain):
            return plain
        plain = "".join(map(_ascii_form, plain))
        return plain if plain and self._is_own(plain) and "[" not in plain else _named(cluster)


def clusters(text: str) -> Iterator[str]:
    """Text in pieces that are never separated: a letter with its accents, an emoji with what changes it."""
    start = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or not _continues(text[start:end], text[end]):
            yield text[start:end]
            start = end


def _continues(cluster: str, char: str) -> bool:
    code, last = ord(char), cluster[-1]
    if unicodedata.category(char) in ("Mn", "Mc", "Me") or char in (_JOINER, "\u200c", _KEYCAP):
        return True
    if code in _SKINS or code in _TAGS:
        return _is_picture(cluster)
    if code in _FLAG_LETTERS:
        return len(cluster) == 1 and ord(last) in _FLAG_LETTERS
    return last == _JOINER and _is_picture(cluster)


def _is_picture(cluster: str) -> bool:
    return _PICTURE_SIGN in cluster or any(ord(char) in _PICTURES for char in cluster)


def _is_neutral(cluster: str) -> bool:
    """Whether it belongs to no script: spaces, digits and signs."""
    return not any(unicodedata.category(char).startswith("L") for char in cluster)


def _printable(char: str) -> str:
    """Control characters and odd spaces become spaces; what only steers the layout disappears."""
    if char in (_JOINER, "\u200c", _PICTURE_SIGN) or ord(char) in _TAGS or char.isprintable():
        return char
    return "" if unicodedata.category(char) == "Cf" else " "


def _ascii_form(char: str) -> str:
    """A letter, dash or quote in ASCII; `[` where there is none."""
    if char.isascii():
        return char
    if char in _WORDS:
        return _WORDS[char]
    category = unicodedata.category(char)
    if category in ("Pd", "Pi", "Pf"):
        return "-" if category == "Pd" else '"'
    found = _LATIN.match(unicodedata.name(char, ""))
    if found is None:
        return "["
    return found[2].lower() if found[1] == "SMALL" else found[2]


def _named(cluster: str) -> str:
    """`[fox face]` for pictures and signs, `[flag DE]` for flags, `[U+72D0]` for letters."""
    shown = [char for char in cluster if not _only_changes(char)]
    if shown and all(ord(char) in _FLAG_LETTERS for char in shown):
        return f"[flag {''.join(chr(ord(char) - _FLAG_LETTERS.start + ord('A')) for char in shown)}]"
    if shown and all(unicodedata.category(char)[0] == "S" for char in shown):
        return f"[{', '.join(_names(shown))}]"
    return f"[U+{' '.join(f'{ord(char):04X}' for char in shown or cluster)}]"


def _names(chars: Iterable[str]) -> Iterator[str]:
    return (unicodedata.name(char, f"U+{ord(char):04X}").lower() for char in chars)


def _only_changes(char: str) -> bool:
    return char in (_JOINER, _PICTURE_SIGN, "\u200c") or ord(char) in _SKINS or ord(char) in _TAGS
