"""An embedding file (textual inversion), opened and fitted to a model: vectors for each of its text encoders.

Formats: `emb_params` of trainers and A1111, `string_to_param` of A1111, a file of diffusers that has the word as its
one tensor's name, and `clip_l` with `clip_g` (or `text_encoders_0`, `_1`) for SDXL. Knows no devices.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpusd.checkpoints.adapters.source import AdapterFile
from tpusd.checkpoints.architecture import Architecture
from tpusd.checkpoints.formats.safetensors import FLOATS, Safetensors
from tpusd.checkpoints.formats.torch_file import Refused, read_torch_file
from tpusd.checkpoints.source import is_pickle
from tpusd.errors import UserError, show, show_path
from tpusd.families.base import config_values
from tpusd.syntax.rules import CHUNK

MAX_TENSORS = 64
MAX_VALUES = 1 << 22
_NAMELESS = ("emb_params", "*", "string_to_param.*")  # of the one tensor of a file
_BY_ENCODER = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
# Widths of the vectors -> the model that reads such vectors.
_BASES = {
    (768,): "Stable Diffusion 1.x",
    (1024,): "Stable Diffusion 2.x",
    (768, 1280): "Stable Diffusion XL",
    (1280,): "the second text encoder of Stable Diffusion XL alone",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """A file that fits a model.

    token: the word in prompts.
    vectors: (n,e) float32, for each text encoder.
    """

    file: AdapterFile
    token: str
    vectors: tuple[np.ndarray, ...]

    @property
    def num_vectors(self) -> int:
        return len(self.vectors[0])


def open_embedding(file: AdapterFile, architecture: Architecture, model_name: str, token: str | None) -> Embedding:
    """Reads a file and fits it to a model's text encoders. Raises UserError.

    model_name: as an error names the model.
    token: the word; None: the file's own.
    """
    tensors = _read(file)
    name, chosen = _chosen(tensors, file.where)
    vectors = tuple(_matrix(key, tensors[key], file.where) for key in chosen)
    configs = [architecture.configs[part] for part in architecture.family.parts("encode")]
    wanted = tuple(config_values(config)["hidden_size"] for config in configs)
    widths = tuple(one.shape[1] for one in vectors)
    if widths != wanted:
        base = _BASES.get(widths)
        raise UserError(
            f"{file.where}: has vectors of {_listed(widths)} numbers{'' if base is None else f', for {base}'}, and "
            f"model={show(model_name)} reads {_listed(wanted)}; choose an embedding for this model"
        )
    if len({len(one) for one in vectors}) > 1:
        raise UserError(f"{file.where}: has another number of vectors for each text encoder; get the file again")
    return Embedding(file=file, token=token or name or Path(file.name).stem, vectors=vectors)


def describe_embedding(path: Path) -> dict[str, str | int | None]:
    """What a file is, for a user: its word, how many vectors, how wide, for which model. Raises UserError."""
    file = AdapterFile(path=path, where=show_path(path))
    tensors = _read(file)
    name, chosen = _chosen(tensors, file.where)
    vectors = [_matrix(key, tensors[key], file.where) for key in chosen]
    widths = tuple(one.shape[1] for one in vectors)
    return {
        "token": name or path.stem,
        "vectors": len(vectors[0]),
        "width": " and ".join(map(str, widths)),
        "for": _BASES.get(widths),
    }


def _read(file: AdapterFile) -> dict[str, np.ndarray]:
    """Name -> tensor; those of `string_to_param` have names such as `string_to_param.*`. Raises UserError."""
    if is_pickle(Path(file.name)):
        try:
            found = read_torch_file(file.path)
        except Refused as error:
            raise UserError(
                f"{file.where}: {error}; if you trust the file, convert it with PyTorch, as docs/embeddings.md says"
            ) from None
        return _flat(found)
    source = Safetensors((file.path,))
    infos = source.tensors.values()
    size = sum(math.prod(info.shape) for info in infos)
    if len(infos) > MAX_TENSORS or size > MAX_VALUES or any(info.dtype not in FLOATS for info in infos):
        raise _no_embedding(file.where, list(source.tensors))
    return {name: source.read(name) for name in source.tensors}


def _flat(values: object) -> dict[str, np.ndarray]:
    if not isinstance(values, dict):
        return {}
    inner = values.get("string_to_param")
    named = {f"string_to_param.{name}": value for name, value in inner.items()} if isinstance(inner, dict) else {}
    every = {str(name): value for name, value in values.items()} | named
    return {name: value for name, value in every.items() if isinstance(value, np.ndarray)}


def _chosen(tensors: Mapping[str, np.ndarray], where: str) -> tuple[str | None, Sequence[str]]:
    """The word that the file names, if any, and its tensors in the order of the text encoders. Raises UserError."""
    names = sorted(tensors)
    for pair in _BY_ENCODER:
        if names == sorted(pair):
            return None, pair
        if len(names) == 1 and names[0] in pair:
            return None, names
    if len(names) != 1:
        raise _no_embedding(where, names)
    return (None if names[0] in _NAMELESS else names[0]), names


def _matrix(name: str, tensor: np.ndarray, where: str) -> np.ndarray:
    """(n,e) float32."""
    values = np.atleast_2d(tensor.astype(np.float32))
    if values.ndim != 2 or not 0 < len(values) <= CHUNK or not values.shape[1]:
        raise UserError(
            f"{where}: {show(name)} has the shape {show(tensor.shape)}, and an embedding is 1 to {CHUNK} vectors; "
            "choose an embedding"
        )
    if not np.isfinite(values).all():
        raise UserError(f"{where}: {show(name)} has NaN or infinity; get the file again")
    return values


def _no_embedding(where: str, names: Sequence[str]) -> UserError:
    listed = show(", ".join(names[:3]), 160) or "no tensor"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return UserError(
        f"{where}: has {listed}{more}, and an embedding has one tensor, or clip_l and clip_g; choose an embedding"
    )


def _listed(widths: Sequence[int]) -> str:
    return " and ".join(map(str, widths))
