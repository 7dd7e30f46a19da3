"""Flax's msgpack files (`diffusion_flax_model.msgpack`) as a tensor source. Knows the format, not models.

A file is nested maps of names to arrays; an array is extension type 1 holding [shape, dtype name, bytes]. The walk
below reads only the few bytes that describe an array, skips its data, and checks every declared length against the
file before anything of that length is allocated. Specification: github.com/msgpack/msgpack/blob/master/spec.md and
flax.serialization.
"""

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tpusd.checkpoints.formats.safetensors import TensorInfo
from tpusd.errors import UserError, show, show_path

MAX_TENSORS = 20_000  # SDXL's UNet has 1680
MAX_DEPTH = 16  # the published files reach 8
MAX_NAME = 256
NDARRAY = 1  # flax's extension type for arrays
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int32": 4, "int64": 8}


class FlaxMsgpack:
    """One msgpack file. The name of a tensor is the nested names joined by dots. Raises UserError for a broken file."""

    layout = "flax"

    def __init__(self, file: Path) -> None:
        self.files = (file,)
        try:
            with open(file, "rb") as raw:
                walk = _Walk(raw, file.stat().st_size)
                try:
                    walk.file()
                except _Malformed as error:
                    raise UserError(
                        f"{show_path(file)}: is not a whole Flax msgpack file ({error} at byte {walk.at}); get it again"
                    ) from None
        except OSError as error:
            raise UserError(f"{show_path(file)}: cannot be read: {error.strerror}") from None
        self._offsets = {name: offset for name, (_, _, offset) in walk.found.items()}
        self.tensors = {
            name: TensorInfo(shape=shape, dtype=dtype, file=file) for name, (shape, dtype, _) in walk.found.items()
        }

    def read(self, name: str) -> np.ndarray:
        """One tensor in host memory. Raises UserError if the file became shorter."""
        info = self.tensors[name]
        with open(info.file, "rb") as raw:
            data = np.fromfile(raw, np.dtype(info.dtype), math.prod(info.shape), offset=self._offsets[name])
        if data.size != math.prod(info.shape):
            raise UserError(f"{show_path(info.file)}: became shorter while it was read; get it again")
        return data.reshape(info.shape)


class _Malformed(Exception):
    """What is wrong with the file, without its name."""


class _Walk:
    """One pass over the file. `found`: name -> (shape, dtype, offset of the data)."""

    def __init__(self, raw: BinaryIO, size: int) -> None:
        self.raw, self.size, self.at = raw, size, 0
        self.found: dict[str, tuple[tuple[int, ...], str, int]] = {}
        self.nodes = 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise _Malformed(f"cut off: it declares {count} bytes, and {self.size - self.at} are left")
        self.at += count
        return self.raw.read(count)

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def file(self) -> None:
        """The whole file."""
        self.value("", 0)
        if self.at != self.size:
            raise _Malformed("it has bytes after its end")

    def value(self, name: str, depth: int) -> None:
        """A map of values, or an array."""
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_TENSORS:
            raise _Malformed(f"it has more than {MAX_DEPTH} levels or {MAX_TENSORS} entries")
        tag = self.number(1)
        if (entries := self.count(tag, fixed=0x80, wide={0xDE: 2, 0xDF: 4})) is not None:
            for _ in range(entries):
                key = self.text(self.number(1))
                self.value(f"{name}.{key}" if name else key, depth + 1)
        elif tag in (0xC7, 0xC8, 0xC9):  # extension with a length of 1, 2 or 4 bytes
            length = self.number(1 << (tag - 0xC7))
            self.array(name, length)
        else:
            raise _Malformed(f"{show(name)!r} is neither a map nor an array (type {tag:#04x})")

    def array(self, name: str, length: int) -> None:
        if self.number(1) != NDARRAY:
            raise _Malformed(f"{show(name)} has an extension type that is not an array")
        end = self.at + length
        if self.count(self.number(1), fixed=0x90, wide={}) != 3:
            raise _Malformed(f"{show(name)} is not [shape, dtype, bytes]")
        rank = self.count(self.number(1), fixed=0x90, wide={})
        if rank is None or rank > 8:
            raise _Malformed(f"{show(name)} has no shape")
        shape = tuple(self.integer() for _ in range(rank))
        dtype = self.text(self.number(1))
        if dtype not in _ITEM_BYTES:
            raise _Malformed(f"{show(name)} has dtype {show(dtype)!r}")
        tag = self.number(1)
        if tag not in (0xC4, 0xC5, 0xC6):  # bytes with a length of 1, 2 or 4 bytes
            raise _Malformed(f"{show(name)} has no data")
        count = self.number(1 << (tag - 0xC4))
        if count != math.prod(shape) * _ITEM_BYTES[dtype] or self.at + count != end or end > self.size:
            raise _Malformed(f"{show(name)}: {count} bytes of data do not fit shape {show(shape)} of {dtype}")
        if name in self.found:
            raise _Malformed(f"{show(name)} is there twice")
        self.found[name] = (shape, dtype, self.at)
        self.at = end
        self.raw.seek(end)

    def integer(self) -> int:
        tag = self.number(1)
        if tag < 0x80:
            return tag
        if tag in (0xCC, 0xCD, 0xCE, 0xCF):
            return self.number(1 << (tag - 0xCC))
        raise _Malformed(f"a size has the type {tag:#04x}, which is not a whole number")

    def text(self, tag: int) -> str:
        """A short string. Old writers stored names as bytes, so both types pass."""
        length = tag - 0xA0 if 0xA0 <= tag <= 0xBF else self.number(1) if tag in (0xD9, 0xC4) else None
        if length is None or length > MAX_NAME:
            raise _Malformed("a name is not a short string")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise _Malformed("a name is not UTF-8") from None

    def count(self, tag: int, *, fixed: int, wide: dict[int, int]) -> int | None:
        """Entries of a map or list whose type byte is `tag`; None for another type."""
        if fixed <= tag <= fixed + 15:
            return tag - fixed
        return self.number(wide[tag]) if tag in wide else None
