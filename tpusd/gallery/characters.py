"""Which characters a font file has: its `cmap` table (OpenType specification), formats 4 and 12.

Pillow draws a sign for a missing character and does not say so.
"""

import functools
import struct
from collections.abc import Iterable
from typing import BinaryIO

Ranges = tuple[tuple[int, int], ...]  # first and last code points, in order
MAX_TABLES = 256
MAX_CMAP_BYTES = 4 << 20
# (platform, encoding) of subtables of Unicode characters, best first: those with all planes, then those of the first.
_ENCODINGS = ((3, 10), (0, 6), (0, 4), (3, 1), (0, 3), (0, 2), (0, 1), (0, 0))


@functools.lru_cache(2048)
def characters_of(path: str) -> Ranges:
    """The code points of the first font in a file; an empty tuple where the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return _merged(_subtable(_cmap(file)))
    except (OSError, struct.error, ValueError, IndexError):
        return ()


def _cmap(file: BinaryIO) -> bytes:
    start = 0
    if file.read(4) == b"ttcf":
        file.seek(12)
        (start,) = struct.unpack(">I", file.read(4))
    file.seek(start + 4)
    (number,) = struct.unpack(">H", file.read(2))
    file.seek(start + 12)
    for _ in range(min(number, MAX_TABLES)):
        tag, _, offset, length = struct.unpack(">4sIII", file.read(16))
        if tag == b"cmap":
            file.seek(offset)
            return file.read(min(length, MAX_CMAP_BYTES))
    return b""


def _subtable(cmap: bytes) -> Iterable[tuple[int, int]]:
    (number,) = struct.unpack_from(">H", cmap, 2)
    found: dict[tuple[int, int], int] = {}
    for index in range(min(number, MAX_TABLES)):
        platform, encoding, offset = struct.unpack_from(">HHI", cmap, 4 + 8 * index)
        found[platform, encoding] = offset
    for encoding in _ENCODINGS:
        if encoding in found:
            table = cmap[found[encoding] :]
            (form,) = struct.unpack_from(">H", table)
            if form == 12:
                return _format_12(table)
            if form == 4:
                return _format_4(table)
    return ()


def _format_12(table: bytes) -> Iterable[tuple[int, int]]:
    (number,) = struct.unpack_from(">I", table, 12)
    groups = struct.iter_unpack(">III", table[16 : 16 + 12 * number])
    return [(first, last) for first, last, _ in groups if first <= last]


def _format_4(table: bytes) -> Iterable[tuple[int, int]]:
    """Segments may hold single characters without a glyph; there are few, and such a font is passed over for them."""
    (twice,) = struct.unpack_from(">H", table, 6)
    number = twice // 2
    lasts = struct.unpack_from(f">{number}H", table, 14)
    firsts = struct.unpack_from(f">{number}H", table, 16 + twice)
    return [(first, last) for first, last in zip(firsts, lasts, strict=True) if first <= last and first != 0xFFFF]


def _merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return tuple(merged)
