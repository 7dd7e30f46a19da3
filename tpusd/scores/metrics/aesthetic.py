"""LAION's aesthetic predictor v2: a small network on CLIP's view of the picture alone."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpusd.errors import UserError, show, show_path
from tpusd.scores.base import Metric, Picture, Place, Scorer
from tpusd.scores.metrics.clip import CLIP_L, check_clip, clip_at

if TYPE_CHECKING:
    from tpusd.vision.clip import Clip

LAYERS = (0, 2, 4, 6, 7)  # of the published nn.Sequential; its others are dropout
SIZES = (768, 1024, 128, 64, 16, 1)
MAX_BYTES = 64 << 20  # of the file, which has 4 MB
CONVERT = (
    "convert it once: python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('FILE.pth', "
    "weights_only=True), 'FILE.safetensors')\""
)


@dataclass(frozen=True)
class Aesthetic:
    """layers: (weights (out,in), bias (out,)) of each, float64. sha256: of their file."""

    clip: "Clip"
    layers: Sequence[tuple[Any, Any]]
    sha256: str

    @property
    def weights(self) -> str:
        return hashlib.sha256(f"{self.clip.sha256} {self.sha256}".encode()).hexdigest()

    def __call__(self, pictures: Sequence[Picture], /) -> Sequence[float | None]:
        import numpy as np

        from tpusd.vision.clip import unit

        values = unit(self.clip.image_features(picture.image for picture in pictures)).astype(np.float64)
        for weights, bias in self.layers:
            values = values @ weights.T + bias  # without an activation, as it was trained
        return [float(value) for value in values[:, 0]]


def open_aesthetic(places: Mapping[str, Place]) -> Scorer:
    """Raises UserError."""
    layers, sha256 = _layers(places["aesthetic"])
    return Aesthetic(clip_at(places["clip"], "clip"), layers, sha256)


def check_aesthetic(places: Mapping[str, Place]) -> None:
    """Raises UserError where `open_aesthetic` would, as far as files tell."""
    _layers(places["aesthetic"])
    check_clip(places["clip"], "clip", texts=False)


def _layers(place: Place) -> tuple[list[tuple[Any, Any]], str]:
    if place.path is None:
        raise UserError(
            f"metric=aesthetic: give {place.prefix}aesthetic.path=FILE.safetensors; download "
            "sac+logos+ava1-l14-linearMSE.pth from "
            f"https://github.com/christophschuhmann/improved-aesthetic-predictor and {CONVERT}"
        )
    return read_layers(place.path, f"{place.prefix}aesthetic.path={show_path(place.path)}")


def read_layers(path: Path, where: str) -> tuple[list[tuple[Any, Any]], str]:
    """The layers in a .safetensors or .npz file, and the sha256 of the file. Raises UserError."""
    import numpy as np

    if path.suffix.lower() not in (".safetensors", ".npz"):
        raise UserError(
            f"{where}: must end in .safetensors or .npz; a .pth file is a pickle, which can run code; {CONVERT}"
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{where}: is over {MAX_BYTES >> 20} MiB, and the predictor has 4 MB; give its file")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    tensors = _safetensors(data, where) if path.suffix.lower() == ".safetensors" else _npz(path, where)
    tensors = {name.removeprefix("layers."): tensor for name, tensor in tensors.items()}
    layers = []
    for number, layer in enumerate(LAYERS):
        pair = []
        for part, shape in (("weight", (SIZES[number + 1], SIZES[number])), ("bias", (SIZES[number + 1],))):
            tensor = tensors.pop(f"{layer}.{part}", None)
            if tensor is None or tensor.shape != shape or not np.issubdtype(tensor.dtype, np.floating):
                raise UserError(
                    f"{where}: layers.{layer}.{part} is not a tensor of {shape}; give LAION's L/14 predictor"
                )
            pair.append(tensor.astype(np.float64))
        layers.append((pair[0], pair[1]))
    if tensors:
        raise UserError(f"{where}: holds {show(min(tensors))} too, which the predictor has not; give LAION's file")
    return layers, hashlib.sha256(data).hexdigest()


def _safetensors(data: bytes, where: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(data))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:  # KeyError: a type that NumPy has not
        raise UserError(f"{where}: is not a readable safetensors file ({show(str(error))})") from None


def _npz(path: Path, where: str) -> dict[str, Any]:
    import zipfile

    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise UserError(
                    f"{where}: is over {MAX_BYTES >> 20} MiB when it is unpacked; give the predictor's file"
                )
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise UserError(f"{where}: is not a readable npz file ({show(str(error))})") from None


METRICS = (
    Metric(
        name="aesthetic",
        about="how beautiful people find the picture, by LAION's predictor v2; it does not read the prompt",
        range="about 1 to 10",
        better="higher",
        needs=f"`aesthetic.path=FILE` (4 MB) and `{CLIP_L.repo}`",
        paper="[LAION 2022](https://github.com/christophschuhmann/improved-aesthetic-predictor)",
        places={"clip": CLIP_L, "aesthetic": Place()},
        open=open_aesthetic,
        check=check_aesthetic,
    ),
)
