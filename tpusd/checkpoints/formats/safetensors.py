"""Weight files as named arrays that are read one at a time. Knows formats, not models.

A source lists names, shapes and dtypes without reading any data; `read` brings one tensor into host memory. It never
unpickles, and checks a declared size against the file before anything of that size is allocated.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, for safetensors as well
import numpy as np
from safetensors import SafetensorError, safe_open

from tpusd.checkpoints.files import Directory
from tpusd.errors import UserError, show, show_path

MAX_HEADER_BYTES = 16 << 20  # SDXL's UNet, 1680 tensors, takes 0.2 MB
MAX_INDEX_BYTES = 16 << 20
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "U8": "uint8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")  # safetensors' own reader for NumPy does not have them
FLOATS = ("float64", "float32", "float16", "bfloat16", *FLOAT8)  # types that weights may have


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """What a file declares about one tensor, and which file it is."""

    shape: tuple[int, ...]
    dtype: str  # NumPy's name, or the format's own name in angle brackets where NumPy has none
    file: Path


class TensorSource(Protocol):
    """Named tensors of one part of a checkpoint."""

    layout: str  # "torch": (out, in, h, w); "flax": (h, w, in, out)

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> np.ndarray:
        """One tensor in host memory, as the file holds it."""
        ...


class _Slice(Protocol):
    def get_dtype(self) -> str: ...

    def get_shape(self) -> list[int]: ...


class _OpenFile(Protocol):
    """What is used of safetensors.safe_open, which has no types."""

    def keys(self) -> list[str]: ...

    def get_slice(self, name: str) -> _Slice: ...

    def get_tensor(self, name: str) -> np.ndarray: ...

    def metadata(self) -> dict[str, str] | None: ...


class Safetensors:
    """One safetensors file, or the shards that an index names."""

    layout = "torch"

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.files = files
        self._open = {file: _open_safetensors(file) for file in files}
        self._offsets: dict[Path, tuple[int, dict[str, Any]]] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for file, handle in self._open.items():
            for name in handle.keys():
                if name in self.tensors:
                    raise UserError(
                        f"{show_path(file)}: tensor {show(name)} is in {self.tensors[name].file.name} too; "
                        "get the checkpoint again"
                    )
                part = handle.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype(), f"<{part.get_dtype()}>")
                self.tensors[name] = TensorInfo(shape=tuple(part.get_shape()), dtype=dtype, file=file)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The texts in the headers of all files."""
        return {name: text for handle in self._open.values() for name, text in (handle.metadata() or {}).items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor in host memory; 8-bit floats as float32."""
        info = self.tensors[name]
        return self._read_float8(name) if info.dtype in FLOAT8 else self._open[info.file].get_tensor(name)

    def _read_float8(self, name: str) -> np.ndarray:
        info = self.tensors[name]
        if info.file not in self._offsets:
            self._offsets[info.file] = _read_offsets(info.file)
        begin, header = self._offsets[info.file]
        start, stop = header[name]["data_offsets"]
        with open(info.file, "rb") as raw:
            raw.seek(begin + start)
            stored = np.frombuffer(raw.read(stop - start), np.dtype(info.dtype))
        return stored.reshape(info.shape).astype(np.float32)


def open_shards(directory: Directory, index: str) -> Safetensors:
    """The shards that an index such as unet/diffusion_pytorch_model.safetensors.index.json names.

    Raises UserError if the index and the files do not agree.
    """
    folder, slash, _ = index.rpartition("/")
    weight_map = directory.json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{directory.shown(index)}: has no weight_map from tensor to file; get it again")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise UserError(f"{directory.shown(index)}: names {show(shard)}, which is not a safetensors file beside it")
    paths = {
        shard: directory.need(f"{folder}{slash}{shard}", f"the index names it; get it again ({len(shards)} shards)")
        for shard in shards
    }
    source = Safetensors(tuple(paths.values()))
    wrong = [n for n, shard in weight_map.items() if n not in source.tensors or source.tensors[n].file != paths[shard]]
    wrong += [n for n in source.tensors if n not in weight_map]
    if wrong:
        raise UserError(
            f"{directory.shown(index)}: does not agree with its shards on {len(wrong)} tensor(s), such as "
            f"{show(wrong[0])}; get the checkpoint again"
        )
    return source


def _read_offsets(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the data begin, and the header (any JSON values). The library checked both when it opened the file."""
    with open(file, "rb") as raw:
        (length,) = struct.unpack("<Q", raw.read(8))
        return 8 + length, json.loads(raw.read(length))


def _open_safetensors(file: Path) -> _OpenFile:
    """A checked handle. The library verifies that the tensors cover the file exactly; this bounds the header's size."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as raw:
            head = raw.read(8)
        if len(head) < 8:
            raise UserError(f"{show_path(file)}: has {size} bytes, too few for a safetensors file; get it again")
        header = struct.unpack("<Q", head)[0]
        if header > size - 8:
            raise UserError(
                f"{show_path(file)}: is not a safetensors file, or its header is cut off ({size} bytes); get it again"
            )
        if header > MAX_HEADER_BYTES:
            raise UserError(f"{show_path(file)}: has a header of {header} bytes, over {MAX_HEADER_BYTES}; get it again")
        return safe_open(file, framework="numpy")
    except OSError as error:
        raise UserError(f"{show_path(file)}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"{show_path(file)}: is not a whole safetensors file ({show(str(error), 160)}); get it again"
        ) from None
