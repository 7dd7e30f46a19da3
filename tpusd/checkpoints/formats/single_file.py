"""One network of a single file, as tensors that have our names: a table says which name of the original is which.

OpenCLIP keeps query, key and value in one tensor, and its projection transposed; both are taken apart here.
"""

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpusd.checkpoints.formats.safetensors import Safetensors, TensorInfo
from tpusd.checkpoints.formats.scaled import find_scales, is_about_scales, scaled
from tpusd.checkpoints.ldm_names import (
    OPEN_CLIP_PROJECTIONS,
    ldm_controlnet_names,
    ldm_unet_names,
    ldm_vae_names,
    open_clip_names,
    t2i_adapter_names,
)
from tpusd.families.base import OriginalNames

EMA_PREFIX = "model_ema."
_EMA_NETWORK = "diffusion_model."  # the averaged network's own name, which stays in its tensors' names
# What the original code keeps beside the weights of a network, and no network here has.
_WITHOUT_USE = {
    "unet": re.compile(r"(?!)"),
    "controlnet": re.compile(r"(?!)"),
    "t2i_adapter": re.compile(r"(?!)"),
    "vae": re.compile(r"^(loss\.|logvar$|model_ema\.)"),
    "clip": re.compile(r"(?!)"),  # the component itself says what it ignores
    "open_clip": re.compile(r"^attn_mask$"),
}


@dataclass(frozen=True, kw_only=True)
class _View:
    """A parameter as a part of a stored tensor. third: of three equal parts of its rows; None: all of it."""

    stored: str
    third: int | None = None
    transposed: bool = False


class OriginalTensors:
    """A TensorSource of one network in a single file.

    file: all of it.
    original: where the network is.
    names: all our parameters, by their PyTorch names.
    where: the file, as an error begins with it.
    ema: the averaged copy of the UNet, in place of the UNet.

    Tensors under the prefix that are not in our table keep their names, so that they are found to be unknown.
    """

    layout = "torch"

    def __init__(
        self, file: Safetensors, original: OriginalNames, names: Iterable[str], where: str, *, ema: bool = False
    ) -> None:
        self._file, self.files = file, file.files
        self._scales = find_scales(file, where)
        self._views: dict[str, _View] = {}
        ours = _by_original(original, list(names))
        if ema:
            original = OriginalNames(EMA_PREFIX, original.naming)
            ours = {(_EMA_NETWORK + name).replace(".", ""): wanted for name, wanted in ours.items()}
            ours |= {name: [] for name in ("decay", "num_updates")}
        for stored in file.tensors:
            name = stored.removeprefix(original.prefix)
            is_weight = stored.startswith(original.prefix) and not is_about_scales(stored)
            if is_weight and not _WITHOUT_USE[original.naming].search(name):
                self._add(stored, name, ours, original)
        self.tensors = {name: self._info(view) for name, view in self._views.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor in host memory."""
        view = self._views[name]
        array = self._file.read(view.stored)
        if (scale := self._scales.get(view.stored)) is not None:
            array = scaled(array, self._file.read(scale))
        if view.third is not None:
            array = np.split(array, 3)[view.third]
        return array.T if view.transposed else array

    def _add(self, stored: str, name: str, ours: dict[str, list[str]], original: OriginalNames) -> None:
        whole = _View(stored=stored)
        views = {stored: whole}  # unknown: none of our parameters has such a name
        shape = self._file.tensors[stored].shape
        if original.naming == "clip":
            views = {name: whole}
        elif name in ours and len(ours[name]) == 3:
            if shape and shape[0] % 3 == 0:
                views = {own: _View(stored=stored, third=i) for i, own in enumerate(ours[name])}
        elif name in ours:
            transposed = original.naming == "open_clip" and name == "text_projection"
            views = {own: _View(stored=stored, transposed=transposed) for own in ours[name]}
        elif original.naming == "open_clip" and (own := _beside_layers(name, ours)) is not None:
            views = {own: whole} if own else {}
        for own, view in views.items():
            self._views[stored if own in self._views else own] = view

    def _info(self, view: _View) -> TensorInfo:
        info = self._file.tensors[view.stored]
        shape = info.shape
        if view.third is not None:
            shape = (shape[0] // 3, *shape[1:])
        return dataclasses.replace(info, shape=shape[::-1] if view.transposed else shape)


def open_original(
    path: Path, original: OriginalNames, names: Iterable[str], where: str, *, ema: bool = False
) -> OriginalTensors:
    """One network of the file at `path`; see OriginalTensors."""
    return OriginalTensors(Safetensors((path,)), original, names, where, ema=ema)


def _by_original(original: OriginalNames, names: list[str]) -> dict[str, list[str]]:
    """The original name -> our names: one of them, or OpenCLIP's three in their order."""
    tables = {
        "unet": ldm_unet_names,
        "controlnet": ldm_controlnet_names,
        "t2i_adapter": t2i_adapter_names,
        "vae": ldm_vae_names,
        "open_clip": open_clip_names,
    }
    if original.naming == "clip":
        return {name: [name] for name in names}
    ours: dict[str, list[str]] = {}
    for own, name in tables[original.naming](names).items():
        ours.setdefault(name, []).append(own)
    for owners in ours.values():
        owners.sort(key=lambda own: next((i for i, p in enumerate(OPEN_CLIP_PROJECTIONS) if f".{p}." in own), 0))
    return ours


def _beside_layers(name: str, ours: dict[str, list[str]]) -> str | None:
    """Where a tensor of OpenCLIP goes that none of our parameters takes; empty: nowhere; None: it is unknown.

    SD 2.x takes the text before the last layer, so the layer after ours has no use. Without a projection in our model,
    the component ignores `text_projection` by its name.
    """
    layer = re.match(r"transformer\.resblocks\.(\d+)\.", name)
    layers = 1 + max((int(m[1]) for own in ours if (m := re.match(r"transformer\.resblocks\.(\d+)\.", own))), default=0)
    if layer is not None:
        return "" if int(layer[1]) == layers and "text_projection" not in ours else None
    # Some converters write the projection as a linear layer.
    own_names = {"logit_scale": "logit_scale", "text_projection.weight": "text_projection.weight"}
    return own_names.get(name, "text_projection.weight" if name == "text_projection" else None)
