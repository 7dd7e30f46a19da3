"""CompVis' safety checker on some devices: pixels in, verdicts out.

A checker is a directory or a repository of its own, or the folder safety_checker/ of a checkpoint.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from tpusd.checkpoints import Checkpoint, Identity, weights_digest
from tpusd.checkpoints.fill import Matched
from tpusd.checkpoints.opened import check_size
from tpusd.engine.devices import Devices
from tpusd.errors import UserError, show
from tpusd.networks.abstract import abstract_model
from tpusd.networks.clip_vision import CLIPVisionConfig
from tpusd.networks.safety_checker import SafetyCheckerModel
from tpusd.vision.clip import PREPROCESSOR, PROCESSOR, VISION_NAMES, read_preprocessor, read_vision
from tpusd.vision.files import CONFIG, Files, HubFiles, LocalFiles, Network, chosen_weights, existing, files_of
from tpusd.vision.preprocessing import PreprocessorConfig, preprocess
from tpusd.vision.program import BatchProgram
from tpusd.vision.verdict import Verdict, decide

FOLDER, EXTRACTOR = "safety_checker", "feature_extractor"  # of a checkpoint
_ADVICE = "get the checker again, or name another one with safety.path=DIR or safety.repo=OWNER/NAME"


@dataclass(frozen=True, kw_only=True)
class OpenedChecker:
    """A checker whose small files are checked, and whose weights are not read yet."""

    network: Network
    vision: CLIPVisionConfig
    preprocessor: PreprocessorConfig

    @functools.cached_property
    def identity(self) -> Identity:
        return self.network.identity()

    @functools.cached_property
    def sha256(self) -> str:
        """One digest of all its files, which it reads for that. Raises UserError."""
        try:
            return weights_digest(self.identity.sha256)
        except OSError as error:
            raise UserError(f"{self.network.where}: a file of the checker went away: {error.strerror}") from None

    @property
    def where(self) -> str:
        return self.network.where


def open_checker(
    checkpoint: Checkpoint, *, path: str | None = None, repo: str | None = None, revision: str | None = None
) -> OpenedChecker:
    """The checker at `path` or in `repo`; without both, the checkpoint's own. Raises UserError.

    path, repo: of a checker alone, or of a checkpoint that has one.
    """
    if path is None and repo is None:
        return _own_checker(checkpoint)
    files = files_of(path, repo, revision, "safety")
    for folder in ("", FOLDER):
        if files.has(_in(folder, CONFIG)) and (folder or "vision_config" in files.directory.json(CONFIG)):
            return _open(files, folder)
    name = "path" if repo is None else "repo"
    raise UserError(
        f"safety.{name}={show(path if repo is None else repo)}: has no safety checker ({CONFIG} with a vision_config, "
        f"or {FOLDER}/{CONFIG}); choose another one"
    )


def _own_checker(checkpoint: Checkpoint) -> OpenedChecker:
    identity = checkpoint.identity
    files: Files
    if identity.repo is None:
        files = LocalFiles(checkpoint.directory, "model")
    else:
        files = HubFiles(identity.repo, identity.commit, "model")
    if not files.has(_in(FOLDER, CONFIG)):
        raise UserError(
            f"safety: the model has no {FOLDER}/; name one with safety.path=DIR or safety.repo=OWNER/NAME, such as "
            "safety.repo=stable-diffusion-v1-5/stable-diffusion-v1-5, or remove safety"
        )
    return _open(files, FOLDER)


def _open(files: Files, folder: str) -> OpenedChecker:
    extractor = EXTRACTOR if folder else ""
    directory, config = files.directory, _in(folder, CONFIG)
    values, where = directory.json(config), directory.shown(config)
    try:
        vision = read_vision(values, where)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(f"{where}: {show(str(error), 300)}; {_ADVICE}") from None
    except UserError as error:
        raise UserError(f"{error}; {_ADVICE}") from None
    weights = chosen_weights(files, folder, _ADVICE)
    opened = weights.open()
    check_size(vision, opened.tensors, weights.where)
    small = (config, _in(extractor, PREPROCESSOR), _in(extractor, PROCESSOR))
    network = Network(files=files, folder=folder, weights=weights, names=tuple(existing(files, small)))
    matched_network(network, vision)  # what does not fit is found before anything is compiled
    return OpenedChecker(network=network, vision=vision, preprocessor=read_preprocessor(network, extractor, vision))


def _in(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def matched_network(network: Network, vision: CLIPVisionConfig) -> Matched:
    """The stored tensor of every parameter, by name and shape; reads no values. Raises UserError."""
    model = abstract_model(SafetyCheckerModel, vision, dtype=jnp.float32, param_dtype=jnp.float32)
    return Matched.of(model, VISION_NAMES, network.weights.open(), network.weights.where)


class SafetyChecker:
    """A checker with its weights, on devices. Compiles with its first batch."""

    def __init__(self, opened: OpenedChecker, devices: Devices, *, batch_size_per_device: int):
        """Reads the weights. batch_size_per_device: pictures. Raises UserError."""
        self._preprocessor = opened.preprocessor
        matched = matched_network(opened.network, opened.vision)
        self._thresholds = tuple(
            np.asarray(matched.source.read(matched.chosen[name]), np.float32)
            for name in ("concept_embeds_weights", "special_care_embeds_weights")
        )
        self._program = BatchProgram(
            matched, lambda network, pixels: network.nearness(pixels), devices,
            batch_size_per_device=batch_size_per_device,
        )  # fmt: skip

    def check(self, pictures: Sequence[np.ndarray]) -> list[Verdict]:
        """The verdict on each picture. pictures: (H,W,3) uint8."""
        rows = (preprocess(picture, self._preprocessor) for picture in pictures)
        return [
            decide(concepts, special, *self._thresholds)
            for batch in self._program(rows)
            for concepts, special in zip(batch.concepts, batch.special, strict=True)
        ]
