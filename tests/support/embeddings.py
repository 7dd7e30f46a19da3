"""Random embedding files, and pickles written by hand as torch.save writes them."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def vectors(number, width, seed=0):
    return (np.random.default_rng([seed, number, width]).standard_normal((number, width)) * 0.5).astype(np.float32)


def write(path: Path, tensors) -> Path:
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    return path


def write_archive(path: Path, pickled: bytes, data=b"", name="x") -> Path:
    """A file of torch.save: a zip with a pickle and the bytes of its tensors."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{name}/data.pkl", pickled)
        archive.writestr(f"{name}/byteorder", "little")
        archive.writestr(f"{name}/data/0", data)
    return path


def write_old(path: Path, pickled: bytes, data=b"", keys=("0",)) -> Path:
    """A file of torch.save before PyTorch 1.6, whose one storage holds float32."""
    numbers = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
    head = b"".join(pickle.dumps(value, 2) for value in numbers)
    storage = (len(data) // 4).to_bytes(8, "little") + data
    path.write_bytes(head + pickled + pickle.dumps(list(keys), 2) + storage)
    return path


def text(value: str) -> bytes:
    """A text as an instruction of a pickle."""
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def whole(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def pickled_tensor(shape, strides, *, storage=b"ctorch\nFloatStorage\n", numel=None, offset=0, key="0") -> bytes:
    """The instructions that torch.save writes for a tensor."""
    size = min(int(np.prod(shape)), 1 << 30) if numel is None else numel
    place = b"(" + text("storage") + storage + text(key) + text("cpu") + whole(size) + b"tQ"
    dims = [b"(" + b"".join(map(whole, numbers)) + b"t" for numbers in (shape, strides)]
    flags = b"\x89" + b"ccollections\nOrderedDict\n" + b")R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + whole(offset) + dims[0] + dims[1] + flags + b"tR"


def pickled_dict(**items: bytes) -> bytes:
    """A whole pickle of a dict; each value is instructions."""
    return b"\x80\x02}" + b"".join(text(name) + value + b"s" for name, value in items.items()) + b"."
