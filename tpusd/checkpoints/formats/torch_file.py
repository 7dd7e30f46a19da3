"""Small files of torch.save as plain data, without PyTorch and without unpickling: archives, and the form before 1.6.

A pickle is a program of a stack machine, and Python's own reader calls whatever that program names. This reader has no
way to call anything: a name that the pickle mentions stays a name. It knows the instructions that build dicts, lists
and numbers, and two names that mean a tensor. It refuses everything else.
"""

import io
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
import numpy as np

from tpusd.errors import UserError, show

MAX_FILE_BYTES = 64 << 20
MAX_PICKLE_BYTES = 1 << 18  # those of embeddings have a thousand bytes
MAX_ENTRIES = 4096
MAGIC, OLD_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # with which a file of PyTorch before 1.6 begins
MAX_VALUES = 1 << 24  # of a tensor
MAX_ALL_VALUES = 1 << 26  # a tensor of few bytes may repeat them
_DTYPES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
}
_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE")
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class _Name:
    """A class or a function that the pickle mentions."""

    module: str
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str


class _Mark:
    """Where the items of a list, a dict or a tuple begin."""


class Refused(Exception):
    """What in the file is not read: the end of an error line."""


def read_torch_file(path: Path, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """Dicts, lists, texts, numbers, and tensors as NumPy arrays. Raises Refused, with a reason, for anything else."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise Refused(f"is over {max_bytes >> 20} MiB")
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                return _read_old(file, size)
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except (Refused, UserError):
        raise
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror or error}") from None
    except Exception as error:  # zipfile, pickletools and NumPy raise many types for broken files
        raise Refused(f"is not a whole file of torch.save ({show(str(error), 100)})") from None


def _read(archive: zipfile.ZipFile) -> Any:
    entries = {info.filename: info for info in archive.infolist()}
    pickled = next((name for name in entries if re.fullmatch(r"([^/]+/)?data\.pkl", name)), None)
    if pickled is None or len(entries) > MAX_ENTRIES:
        raise Refused("is not a file of torch.save")
    root = pickled.removesuffix("data.pkl")

    def entry(name: str, limit: int) -> bytes:
        info = entries.get(root + name)
        if info is None or info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
            raise Refused(f"has no {show(name)} of at most {limit} bytes")
        with archive.open(info) as stream:
            return stream.read(limit + 1)

    if root + "byteorder" in entries and entry("byteorder", 16) != b"little":
        raise Refused("was saved on a machine of another byte order")
    return _Machine(entry).run(entry("data.pkl", MAX_PICKLE_BYTES))


def _read_old(file: BinaryIO, size: int) -> Any:
    """A file of PyTorch before 1.6: pickles in a row, and behind them each storage with its number of values."""
    head = io.BytesIO(file.read(2 * MAX_PICKLE_BYTES))
    if [_Machine(_no_entry).run(head) for _ in range(2)] != [MAGIC, OLD_PROTOCOL]:
        raise Refused("is not a file of torch.save")
    machine = _Machine(_no_entry).run(head)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Refused("was saved on a machine of another byte order")
    start = head.tell()
    names = _Names(_no_entry)
    names.run(head)
    keys, at = _Machine(_no_entry).run(head), head.tell()
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        file.seek(at)
        (number,) = struct.unpack("<q", file.read(8))
        length = number * np.dtype(names.dtypes[key]).itemsize
        if not 0 <= length <= size - at - 8:
            raise Refused("is cut off")
        places[key] = (at + 8, length)
        at += 8 + length

    def entry(name: str, limit: int) -> bytes:
        begin, length = places[name.removeprefix("data/")]
        file.seek(begin)
        return file.read(length)

    head.seek(start)
    return _Machine(entry).run(head)


def _no_entry(name: str, limit: int) -> bytes:
    raise Refused("has a tensor where none belongs")


class _Machine:
    """Runs the instructions of one pickle. entry: (name, most bytes) -> the content of an entry of the archive."""

    def __init__(self, entry: Callable[[str, int], bytes]):
        self._entry = entry
        self._stack: list[Any] = []
        self._memo: dict[object, Any] = {}
        self._stored: dict[str, bytes] = {}
        self._num_values = 0

    def run(self, pickled: bytes | BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                return self._stack[-1]
            self._do(opcode.name, argument)
        raise Refused("has a pickle without an end")

    def _do(self, name: str, argument: object) -> None:
        stack = self._stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _NUMBERS or name in _TEXTS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            stack.append(_Mark())
        elif name in _TUPLES:
            stack.append(tuple(self._popped(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._popped_to_mark()))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in ("APPEND", "APPENDS"):
            items = self._popped(1) if name == "APPEND" else self._popped_to_mark()
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._popped(2) if name == "SETITEM" else self._popped_to_mark()
            if len(items) % 2 or not all(isinstance(key, str | int) for key in items[::2]):
                raise Refused("has a dict with other keys than texts and numbers")
            self._top(dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_Name(*_text(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(_Name(*map(_text, self._popped(2))))
        elif name == "BINPERSID":
            (place,) = self._popped(1)
            stack.append(self._storage(place))
        elif name == "REDUCE":
            of, arguments = self._popped(2)
            stack.append(self._reduced(of, arguments))
        elif name == "BUILD":  # attributes of an OrderedDict, which no tensor depends on
            self._popped(1)
            self._top(dict)
        else:
            raise Refused(f"has the pickle instruction {name}, which no tensor needs")

    def _storage(self, place: object) -> _Storage:
        return _storage(place)

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise Refused("has a pickle that is broken")
        return self._stack[-1]

    def _popped(self, number: int) -> list[Any]:
        items = [self._stack.pop() for _ in range(number)]
        return items[::-1]

    def _popped_to_mark(self) -> list[Any]:
        items = []
        while not isinstance(item := self._stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def _reduced(self, of: object, arguments: object) -> Any:
        """What a call in the pickle means; nothing is called."""
        if not isinstance(of, _Name) or not isinstance(arguments, tuple):
            raise Refused("has a pickle that is broken")
        if of == _Name("collections", "OrderedDict") and not arguments:
            return {}
        if of == _Name("torch._utils", "_rebuild_parameter") and isinstance(arguments[0], np.ndarray):
            return arguments[0]
        if of == _Name("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor(arguments[:4])
        raise Refused(f"asks to call {show(f'{of.module}.{of.name}', 80)}, which is not a tensor")

    def _tensor(self, arguments: tuple[Any, ...]) -> np.ndarray:
        """An array of NumPy; every number is checked against the bytes that are there.

        arguments: storage, offset, shape and strides, as the pickle has them.
        """
        storage, offset, shape, strides = arguments
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
            raise Refused("has a tensor that is broken")
        if len(shape) != len(strides) or len(shape) > 8 or math.prod(shape) > MAX_VALUES:
            raise Refused(f"has a tensor of the shape {show(shape, 60)}")
        self._num_values += math.prod(shape)
        if self._num_values > MAX_ALL_VALUES:
            raise Refused(f"has over {MAX_ALL_VALUES} values")
        if storage.key not in self._stored:
            self._stored[storage.key] = self._entry(f"data/{storage.key}", MAX_FILE_BYTES)
        values = np.frombuffer(self._stored[storage.key], np.dtype(storage.dtype))
        if not math.prod(shape):
            return np.zeros(shape, values.dtype)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if last >= len(values):
            raise Refused("has a tensor that is larger than its data")
        places = offset + sum(
            np.arange(n).reshape(-1, *[1] * (len(shape) - 1 - axis)) * stride
            for axis, (n, stride) in enumerate(zip(shape, strides, strict=True))
        )
        return np.asarray(values[places])


class _Names(_Machine):
    """Reads no tensor, and notes the type of each storage. dtypes: by its key."""

    def __init__(self, entry: Callable[[str, int], bytes]):
        super().__init__(entry)
        self.dtypes: dict[str, str] = {}

    def _storage(self, place: object) -> _Storage:
        found = _storage(place)
        self.dtypes[found.key] = found.dtype
        return found

    def _tensor(self, arguments: tuple[Any, ...]) -> np.ndarray:
        return np.zeros(0)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Refused("has a pickle that is broken")
    return value


def _storage(place: object) -> _Storage:
    """What a persistent id of torch.save means: ("storage", class, key, device, number of values).

    Before PyTorch 1.6 it has None as a sixth.
    """
    if isinstance(place, tuple) and len(place) == 6 and place[5] is None:
        place = place[:5]
    if not isinstance(place, tuple) or len(place) != 5 or place[0] != "storage" or not isinstance(place[1], _Name):
        raise Refused("has a pickle that is broken")
    of, key = place[1], _text(place[2])
    if of.module != "torch" or of.name not in _DTYPES or not key.isalnum():
        raise Refused(f"has a tensor of {show(f'{of.module}.{of.name}', 80)}, which is not a type of weights")
    return _Storage(key, _DTYPES[of.name])
