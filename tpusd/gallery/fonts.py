"""The fonts of this system, and which characters each has. Knows nothing of what is drawn.

fontconfig knows the characters of every font; where it is missing, the files of the usual directories are asked.
"""

import functools
import os
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageFont

from tpusd.gallery.characters import Ranges, characters_of

COLOR_SIZES = (109, 136, 128, 160, 96, 64)  # pixels, of fonts that hold pictures of one size
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
SECONDS = 10  # that fontconfig may take; it looks at all fonts when it is called first
MAX_FILES = 2000  # of the directories
_FORMAT = "%{file}\t%{index}\t%{variable}\t%{color}\t%{style}\t%{family}\t%{charset}\n"
_PLAIN_STYLES = ("regular", "book", "roman", "medium", "normal", "")
# What suits a sheet, best first: a part of the family's name. A font that is not here comes after them.
_FAMILIES = ("notosans", "dejavusans", "segoeui", "arial", "helvetica", "sans", "gothic", "hei", "noto")
_NOT_FOR_TEXT = ("mono", "serif", "display", "condensed")
_DIRECTORIES = {
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "win32": ("%WINDIR%/Fonts", "%LOCALAPPDATA%/Microsoft/Windows/Fonts"),
}
_OTHER_DIRECTORIES = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")


@dataclass(frozen=True, kw_only=True)
class FontFile:
    """A font of the system.

    index: its place in the file, which may hold several.
    known: what fontconfig says of its characters; None: the file itself is asked.
    is_color: whether its glyphs are pictures, as those of emoji.
    """

    path: str
    index: int
    known: Ranges | None = None
    is_color: bool = False

    def has(self, text: str) -> bool:
        """Whether all characters are in the font."""
        ranges = characters_of(self.path) if self.known is None else self.known
        places = ((ord(char), bisect_right(ranges, (ord(char), sys.maxunicode)) - 1) for char in text)
        return all(place >= 0 and code <= ranges[place][1] for code, place in places)


@functools.cache
def system_fonts() -> tuple[FontFile, ...]:
    """The fonts of the system, those first that suit a sheet best. An empty tuple where none is found."""
    return tuple(_of_fontconfig()) or tuple(_of_directories())


def _of_fontconfig() -> list[FontFile]:
    command = ["fc-list", "--format", _FORMAT]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return []
    found: list[tuple[tuple[object, ...], FontFile]] = []
    for line in done.stdout.decode(errors="replace").splitlines():
        cells = line.split("\t")
        if len(cells) != 7 or cells[2] == "True" or not cells[0].lower().endswith(SUFFIXES):
            continue
        path, index, _, color, style, family, charset = cells
        try:
            ranges = tuple(_range(word) for word in charset.split())
            font = FontFile(path=path, index=int(index), known=ranges, is_color=color == "True")
        except ValueError:
            continue
        found.append((_order(family, style, path, font.index), font))
    return [font for _, font in sorted(found, key=lambda pair: pair[0])]


def _range(word: str) -> tuple[int, int]:
    """`41-5a` -> (65, 90)."""
    first, _, last = word.partition("-")
    return int(first, 16), int(last or first, 16)


def _order(family: str, style: str, path: str, index: int) -> tuple[object, ...]:
    name = family.split(",")[0].lower().replace(" ", "")
    styles = [one.strip().lower() for one in style.split(",")]
    rank = next((place for place, known in enumerate(_FAMILIES) if known in name), len(_FAMILIES))
    return not any(one in _PLAIN_STYLES for one in styles), any(one in name for one in _NOT_FOR_TEXT), rank, path, index


def _of_directories() -> Iterator[FontFile]:
    paths: list[Path] = []
    for name in _DIRECTORIES.get(sys.platform, _OTHER_DIRECTORIES):
        root = Path(os.path.expandvars(name)).expanduser()
        for directory, _, files in os.walk(root):
            paths += [Path(directory, file) for file in files if file.lower().endswith(SUFFIXES)]
            if len(paths) > MAX_FILES:
                break
    for path in sorted(paths[:MAX_FILES], key=_order_of_file):
        yield FontFile(path=str(path), index=0, is_color="emoji" in path.name.lower())


def _order_of_file(path: Path) -> tuple[object, ...]:
    family, _, style = path.stem.partition("-")
    return _order(family, style, str(path), 0)


@functools.lru_cache(64)
def opened(path: str, index: int, size: int) -> ImageFont.FreeTypeFont | None:
    """A font at a size in pixels; None where it cannot be opened so."""
    try:
        return ImageFont.truetype(path, size, index=index)
    except (OSError, ValueError):
        return None


def font_for(text: str, size: int, fonts: Sequence[FontFile], *, color_first: bool) -> FontFile | None:
    """The first of the fonts that has all characters of a text; None where no font has them.

    text: what is drawn together, such as a letter with its accents.
    size: in pixels.
    color_first: whether fonts of pictures come before all others, or after them.
    """
    for font in sorted(fonts, key=lambda one: one.is_color != color_first):
        if font.has(text) and _draws(font, text, size):
            return font
    return None


def opened_at(font: FontFile, size: int) -> ImageFont.FreeTypeFont | None:
    """A font at a size in pixels, or, where it holds pictures, at the size that it has."""
    for one in (size, *COLOR_SIZES) if font.is_color else (size,):
        found = opened(font.path, font.index, one)
        if found is not None:
            return found
    return None


def _draws(font: FontFile, text: str, size: int) -> bool:
    """Whether the font opens, and gives ink for the text: Pillow cannot draw every kind of picture."""
    found = opened_at(font, size)
    if found is None:
        return False
    try:
        return found.getmask(text, mode="RGBA" if font.is_color else "L").getbbox() is not None or text.isspace()
    except (OSError, ValueError):
        return False
