"""CLIP whole: a checkpoint of transformers -> embeddings of pictures and of texts, in one space.

clip = load_clip("DIR")
cosines = (unit(clip.image_features(pictures)) * unit(clip.text_features(texts))).sum(-1)
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tpusd.checkpoints import Identity, Tokenizer, weights_digest
from tpusd.checkpoints.fill import Matched
from tpusd.checkpoints.names import Naming
from tpusd.checkpoints.opened import check_size, check_vocabulary
from tpusd.checkpoints.tokenizer import FILES, MAX_LENGTH, open_tokenizer
from tpusd.engine.compile_cache import enable_compile_cache
from tpusd.engine.devices import Devices
from tpusd.errors import UserError, show
from tpusd.families.base import Ignored, Rename
from tpusd.families.latent_diffusion import CLIP_TEXT_COMPONENT_WITH_PROJECTION
from tpusd.networks.abstract import abstract_model
from tpusd.networks.clip_text import CLIPTextConfig, CLIPTextModel
from tpusd.networks.clip_vision import CLIPVisionConfig, CLIPVisionModel
from tpusd.networks.config import TRANSFORMERS_FIELDS, Number, read_config
from tpusd.vision.files import CONFIG, Network, chosen_weights, existing, files_of
from tpusd.vision.preprocessing import PreprocessorConfig, preprocess
from tpusd.vision.program import BatchProgram

if TYPE_CHECKING:
    from PIL import Image

    Picture = Image.Image | np.ndarray

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"  # the second has the first inside of it
LOGIT_SCALE = "logit_scale"
_ADVICE = "get the checkpoint again, or choose another CLIP in the layout of transformers"
_TOWERS = ("text_config", "vision_config", "text_config_dict", "vision_config_dict")


@dataclass(frozen=True, kw_only=True)
class TensorNames:
    """How a vision tower's files name its tensors, as fill.match reads it."""

    renames: tuple[Rename, ...]
    ignored: tuple[Ignored, ...]


VISION_NAMES = TensorNames(
    # transformers before 5 had a class between a network and its vision tower: the safety checker's files.
    renames=(Rename(None, re.compile(r"^vision_model\.vision_model\."), "vision_model."),),
    ignored=(
        Ignored(re.compile(r"(^|\.)embeddings\.position_ids$"), "positions are counted, not read"),
        Ignored(re.compile(r"^(text_model|text_projection)\."), "of CLIP's tower for texts"),
        Ignored(re.compile(rf"^{LOGIT_SCALE}$"), "read by itself"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class _Projection:
    """What the config of the whole CLIP has beside its towers."""

    projection_dim: Number = 512


@dataclass(frozen=True, kw_only=True)
class Towers:
    """The configs of CLIP's towers. text: None where a file has no tower for texts."""

    vision: CLIPVisionConfig
    text: CLIPTextConfig | None


def read_towers(values: Mapping[str, Any], name: str) -> Towers:
    """Reads the config.json of a CLIPModel, or of a CLIPVisionModelWithProjection. Raises UserError.

    values: any JSON values. name: of the file, with which an error begins.
    """
    try:
        whole = "vision_config" in values or "vision_config_dict" in values
        if "CLIPVisionModelWithProjection" in (values.get("architectures") or ()):
            return Towers(
                vision=CLIPVisionConfig.from_dict(_tower(values, "vision") if whole else values, name=name), text=None
            )
        if not whole:
            raise UserError(
                f"{name}: is neither a CLIPModel nor a CLIPVisionModelWithProjection (architectures="
                f"{show(values.get('architectures'))})"
            )
        return Towers(vision=read_vision(values, name), text=_read_text(values, name))
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(f"{name}: {show(str(error), 300)}") from None


def read_vision(values: Mapping[str, Any], name: str) -> CLIPVisionConfig:
    """The vision tower of a config of the whole CLIP, with the projection of the whole. Raises UserError."""
    return CLIPVisionConfig.from_dict(_tower(values, "vision") | _projection(values, name), name=name)


def _read_text(values: Mapping[str, Any], name: str) -> CLIPTextConfig:
    named = {"architectures": ["CLIPTextModelWithProjection"]}
    return CLIPTextConfig.from_dict(_tower(values, "text") | _projection(values, name) | named, name=name)


def _projection(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    own = {key: value for key, value in values.items() if key not in _TOWERS}
    harmless = TRANSFORMERS_FIELDS | {"logit_scale_init_value"}
    return {"projection_dim": read_config(_Projection, own, only={}, harmless=harmless, name=name).projection_dim}


def _tower(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A tower's fields. Old files have them twice, and transformers then takes all from the `_dict`."""
    fields = values.get(f"{kind}_config_dict")
    fields = values.get(f"{kind}_config") if fields is None else fields
    if not isinstance(fields, Mapping):
        raise UserError(f"{kind}_config={show(fields)}: must be a group of fields")
    return dict(fields)


@dataclass(frozen=True, kw_only=True)
class ClipCheckpoint:
    """CLIP, opened: its small files are checked, and its weights are not read yet."""

    network: Network
    towers: Towers
    preprocessor: PreprocessorConfig
    has_tokenizer: bool

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Takes seconds, because it loads transformers. Raises UserError."""
        assert self.towers.text is not None
        found = open_tokenizer(self.network.files.directory, "")
        return check_vocabulary(found, self.towers.text, self.network.where)

    @functools.cached_property
    def identity(self) -> Identity:
        return self.network.identity()

    def match_vision(self) -> Matched:
        """The stored tensors of the tower for pictures, by name and shape; reads no values. Raises UserError."""
        model = abstract_model(CLIPVisionModel, self.towers.vision, dtype=jnp.float32, param_dtype=jnp.float32)
        return self._match(model, VISION_NAMES)

    def match_text(self) -> Matched:
        """The same of the tower for texts. Raises UserError where there is no such tower, too."""
        text, where = self.towers.text, self.network.where
        if text is None or not self.has_tokenizer:
            lacks = "tower for texts" if text is None else "tokenizer"
            raise UserError(f"{where}: this CLIP has no {lacks}; choose a whole CLIPModel with its tokenizer")
        if text.max_position_embeddings != MAX_LENGTH:
            raise UserError(f"{where}: max_position_embeddings={text.max_position_embeddings}: must be {MAX_LENGTH}")
        model = abstract_model(CLIPTextModel, text, dtype=jnp.float32, param_dtype=jnp.float32)
        return self._match(model, CLIP_TEXT_COMPONENT_WITH_PROJECTION)

    def _match(self, model: nnx.Module, names: Naming) -> Matched:
        weights = self.network.weights
        return Matched.of(model, names, weights.open(), weights.where)


def open_clip(
    path: str | Path | None = None, *, repo: str | None = None, revision: str | None = None, field: str = "clip"
) -> ClipCheckpoint:
    """Reads and checks all but the weights' data. Raises UserError. Arguments: as of `load_clip`."""
    files = files_of(path, repo, revision, field)
    if not files.has(CONFIG):
        raise UserError(f"{field}={show(path or repo)}: has no {CONFIG}; {_ADVICE}")
    values = files.directory.json(CONFIG)
    try:
        towers = read_towers(values, files.directory.shown(CONFIG))
    except UserError as error:
        raise UserError(f"{error}; {_ADVICE}") from None
    weights = chosen_weights(files, "", _ADVICE)
    check_size(towers.vision, weights.open().tensors, weights.where)
    small = tuple(existing(files, (CONFIG, PREPROCESSOR, PROCESSOR, *(FILES if towers.text is not None else ()))))
    network = Network(files=files, folder="", weights=weights, names=small)
    preprocessor = read_preprocessor(network, "", towers.vision)
    return ClipCheckpoint(
        network=network, towers=towers, preprocessor=preprocessor, has_tokenizer=any(name in FILES for name in small)
    )


def read_preprocessor(network: Network, folder: str, vision: CLIPVisionConfig) -> PreprocessorConfig:
    """The preprocessor of a tower; CLIP's own where the directory has no file of it. Raises UserError.

    folder: that has its file.
    """
    directory, prefix = network.files.directory, f"{folder}/" if folder else ""
    values: Any = {"size": vision.image_size, "crop_size": vision.image_size}
    name = next((name for name in (PREPROCESSOR, PROCESSOR) if prefix + name in network.names), None)
    where = directory.shown(prefix + (name or PREPROCESSOR))
    if name is not None:
        values = directory.json(prefix + name)
        values = values.get("image_processor", values) if name == PROCESSOR else values
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: image_processor={show(values)}: must be a group of fields; {_ADVICE}")
    config = PreprocessorConfig.from_dict(values, name=where)
    if config.output_size != (vision.image_size, vision.image_size):
        raise UserError(
            f"{where}: makes pictures of {show(config.output_size)} pixels, and the network has image_size="
            f"{vision.image_size}; {_ADVICE}"
        )
    return config


def load_clip(
    path: str | Path | None = None,
    *,
    repo: str | None = None,
    revision: str | None = None,
    field: str = "clip",
    devices: Sequence[jax.Device] | None = None,
    batch_size_per_device: int = 8,
) -> "Clip":
    """CLIP from a directory or the Hub, in the layout of transformers. Raises UserError.

    path: the directory of a CLIPModel or a CLIPVisionModelWithProjection.
    repo, revision: the same on the Hub, in place of `path`.
    field: how an error line names it, as in `clip.path=...`.
    devices: that make the embeddings; None: all local ones.
    batch_size_per_device: pictures, or texts, at a time.
    """
    opened = open_clip(path, repo=repo, revision=revision, field=field)
    enable_compile_cache()
    return Clip(opened, Devices(jax.local_devices() if devices is None else devices), batch_size_per_device)


class Clip:
    """An opened CLIP on some devices. A tower's weights are read, and it is compiled, when it is first asked."""

    def __init__(self, checkpoint: ClipCheckpoint, devices: Devices, batch_size_per_device: int):
        self._checkpoint, self._devices, self._per_device = checkpoint, devices, batch_size_per_device

    @property
    def dimension(self) -> int:
        """Numbers of an embedding."""
        return self._checkpoint.towers.vision.projection_dim

    @property
    def identity(self) -> Identity:
        """Which files it is."""
        return self._checkpoint.identity

    @property
    def sha256(self) -> str:
        """One digest of all its files, which it reads for that."""
        return weights_digest(self.identity.sha256)

    @functools.cached_property
    def logit_scale(self) -> float:
        """The factor of cosines, by which CLIP was trained. Raises UserError where the file has none."""
        source = self._checkpoint.network.weights.open()
        info = source.tensors.get(LOGIT_SCALE)
        if info is None or info.shape not in ((), (1,)):
            raise UserError(f"{self._checkpoint.network.weights.where}: has no {LOGIT_SCALE}; choose a whole CLIPModel")
        return float(np.exp(source.read(LOGIT_SCALE).astype(np.float64).reshape(())))

    def image_features(self, pictures: "Iterable[Picture]") -> np.ndarray:
        """Embeddings of pictures (n,dimension), float32, of any length.

        pictures: of Pillow, of any mode and size, or (H,W,3) uint8; read as they are needed. Raises UserError.
        """
        rows = (preprocess(picture, self._checkpoint.preprocessor) for picture in pictures)
        return self._joined(list(self._vision(rows)))

    def text_features(self, texts: Iterable[str]) -> np.ndarray:
        """Embeddings of texts (n,dimension), float32, of any length; a text is cut at 77 tokens. Raises UserError."""
        listed = list(texts)
        program = self._text
        return self._joined(list(program(self._checkpoint.tokenizer(listed).input_ids)) if listed else [])

    def _joined(self, parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros((0, self.dimension), np.float32), *parts])

    @functools.cached_property
    def _vision(self) -> BatchProgram:
        return self._program(self._checkpoint.match_vision(), lambda network, pixels: network(pixels))

    @functools.cached_property
    def _text(self) -> BatchProgram:
        return self._program(self._checkpoint.match_text(), lambda network, ids: network(ids).pooled)

    def _program(self, matched: Matched, call: Callable[..., jax.Array]) -> BatchProgram:
        return BatchProgram(matched, call, self._devices, batch_size_per_device=self._per_device)


def unit(features: np.ndarray) -> np.ndarray:
    """(...,p), each of length 1, as torch.nn.functional.normalize."""
    divided: np.ndarray = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    return divided
