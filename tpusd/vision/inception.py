"""The features of FID and KID: InceptionV3 with the published weights, on pictures of any size.

features = load_inception("pt_inception-2015-12-05-6726825d.pth")(pictures)

Pictures are resized as TensorFlow 1 did it for FID: bilinear, without antialias, a pixel's place its upper left corner.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from tpusd import storage
from tpusd.checkpoints.fill import Matched
from tpusd.checkpoints.formats.safetensors import Safetensors, TensorInfo, TensorSource
from tpusd.checkpoints.formats.torch_file import Refused, read_torch_file
from tpusd.engine.compile_cache import enable_compile_cache
from tpusd.engine.devices import Devices
from tpusd.errors import UserError, show_path
from tpusd.families.base import Ignored
from tpusd.networks.abstract import abstract_model
from tpusd.networks.inception import NUM_FEATURES, SIZE, InceptionV3
from tpusd.vision.clip import TensorNames
from tpusd.vision.program import BatchProgram

if TYPE_CHECKING:
    from PIL import Image

# Of pytorch-fid; torch-fidelity publishes the same network as weights-inception-2015-12-05-6726825d.pth.
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
MAX_BYTES = 256 << 20  # of the file, which has 96 MB
SUFFIXES = (".pth", ".pt", ".safetensors")
NAMES = TensorNames(
    renames=(),
    ignored=(
        Ignored(re.compile(r"\.num_batches_tracked$"), "counts steps of training"),
        Ignored(re.compile(r"^(fc|AuxLogits)\."), "tells classes, which FID and KID do not use"),
    ),
)


class _Arrays:
    """Tensors that are in memory, as a source of weights."""

    layout = "torch"

    def __init__(self, arrays: Mapping[str, np.ndarray], file: Path):
        self._arrays, self.files = arrays, (file,)
        self.tensors = {
            name: TensorInfo(shape=array.shape, dtype=array.dtype.name, file=file) for name, array in arrays.items()
        }

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]


@dataclass(frozen=True, kw_only=True)
class InceptionFile:
    """A file of weights that fits the network. sha256: of the file."""

    matched: Matched
    sha256: str


@functools.cache
def open_inception(path: Path, field: str) -> InceptionFile:
    """Raises UserError. field: as an error names the file, such as `inception.path`."""
    where = f"{field}={show_path(path)}"
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{where}: must end in {', '.join(SUFFIXES)}; download {URL}")
    source = _source(path, where)
    try:
        sha256 = storage.file_sha256(path.resolve())
        matched = Matched.of(_network(), NAMES, source, where)
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"{str(error).partition('; get the checkpoint')[0]}; download {URL}") from None
    return InceptionFile(matched=matched, sha256=sha256)


def _source(path: Path, where: str) -> TensorSource:
    if path.suffix.lower() == ".safetensors":
        return Safetensors((path,))
    try:
        values = read_torch_file(path, MAX_BYTES)
    except Refused as error:
        raise UserError(f"{where}: {error}; download {URL}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: holds no weights by their names; download {URL}")
    return _Arrays({str(name): value for name, value in values.items() if isinstance(value, np.ndarray)}, path)


def _network() -> InceptionV3:
    def build(config: None, /, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> InceptionV3:
        return InceptionV3(dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    return abstract_model(build, None, dtype=jnp.float32, param_dtype=jnp.float32)


@functools.cache
def load_inception(path: Path, field: str = "inception.path", batch_size_per_device: int = 8) -> "Inception":
    """The network of a file on all local devices. Raises UserError."""
    opened = open_inception(path, field)
    enable_compile_cache()
    program = BatchProgram(
        opened.matched,
        lambda network, pixels: network(pixels),
        Devices(jax.local_devices()),
        batch_size_per_device=batch_size_per_device,
    )
    return Inception(program=program, weights=opened.sha256)


@dataclass(frozen=True, kw_only=True)
class Inception:
    """weights: the sha256 of their file."""

    program: BatchProgram
    weights: str

    def __call__(self, pictures: "Iterable[Image.Image]", /) -> np.ndarray:
        """The features of pictures, (n,2048) float32. pictures: of any mode and size; read as they are needed."""
        rows = (scaled(picture) for picture in pictures)
        return np.concatenate([np.zeros((0, NUM_FEATURES), np.float32), *self.program(rows)])


def scaled(picture: "Image.Image") -> np.ndarray:
    """A picture as the network takes it: (299,299,3) float32 from -1 to 1."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    return (resized(pixels) - 128) / 128


def resized(pixels: np.ndarray) -> np.ndarray:
    """(h,w,c) float32 -> (299,299,c): `tf.image.resize_bilinear` of TensorFlow 1 without aligned corners."""
    top, bottom, down = _neighbours(pixels.shape[0])
    left, right, across = _neighbours(pixels.shape[1])
    rows = pixels[top], pixels[bottom]
    upper, lower = (row[:, left] + (row[:, right] - row[:, left]) * across[:, None] for row in rows)
    found: np.ndarray = upper + (lower - upper) * down[:, None, None]
    return found


def _neighbours(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each new pixel along an axis of `size`: the pixel before it, the one after it, and how far it is between."""
    place = np.arange(SIZE, dtype=np.float32) * np.float32(size / SIZE)
    before = place.astype(np.int64)
    return before, np.minimum(before + 1, size - 1), place - before.astype(np.float32)
