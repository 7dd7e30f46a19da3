"""The safety checker of a run: found, compared with what the config asks for, and what becomes of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tpusd.config.safety import SafetyConfig
from tpusd.config.schema import ModelConfig, RunConfig
from tpusd.errors import ChangedFile, show
from tpusd.process.waiting import waiting
from tpusd.vision.verdict import Verdict

if TYPE_CHECKING:  # they import JAX
    from tpusd.checkpoints import Checkpoint
    from tpusd.vision.safety import OpenedChecker

BLUR = 24  # the deviation of the Gaussian is the shorter side by this number


class OpenSafety(Protocol):
    """The signature of `open_safety`."""

    def __call__(
        self, safety: SafetyConfig, model: ModelConfig, checkpoint: "Checkpoint", /
    ) -> "OpenedChecker | None": ...


def open_safety(safety: SafetyConfig, model: ModelConfig, checkpoint: "Checkpoint") -> "OpenedChecker | None":
    """The run's checker, whose weights are not read yet; None where nobody looks. Raises UserError."""
    if not safety.is_on:
        return None
    from tpusd.vision.safety import open_checker

    with waiting("reading the safety checker"):
        opened = open_checker(checkpoint, path=safety.path, repo=safety.repo, revision=safety.revision)
        _ = opened.sha256  # reads all of it, which takes seconds
    return opened


def open_safety_once() -> OpenSafety:
    """As `open_safety`, for runs of which several have the same checker: it is opened once."""
    opened: dict[tuple[SafetyConfig, ModelConfig], OpenedChecker | None] = {}

    def open_one(safety: SafetyConfig, model: ModelConfig, checkpoint: "Checkpoint", /) -> "OpenedChecker | None":
        key = replace(safety, name="record" if safety.is_on else "off", sha256=None), model
        if key not in opened:
            opened[key] = open_safety(safety, model, checkpoint)
        return opened[key]

    return open_one


def check_checker(config: RunConfig, opened: "OpenedChecker | None") -> tuple[str, ...]:
    """What the user should know, a line each. Raises ChangedFile for a checker that is not the one of the config."""
    wanted = config.safety.sha256
    if opened is None or wanted is None or wanted == opened.sha256:
        return ()
    changed = f"{opened.where}: has changed: sha256 {opened.sha256[:12]}..., not {show(wanted)[:12]}..."
    if config.on_changed_weights == "error":
        raise ChangedFile(
            f"{changed}; restore the old checker, leave out safety.sha256, or set on_changed_weights=warn to continue "
            "with this one, which may decide otherwise"
        )
    return (changed,)


def safety_to_save(safety: SafetyConfig, opened: "OpenedChecker | None") -> SafetyConfig:
    """The fields with what their meaning depended on: a full path, or the commit, and the sha256."""
    if opened is None:
        return safety
    if safety.path is not None:
        safety = replace(safety, path=str(Path(safety.path).resolve()))
    elif safety.repo is not None:
        safety = replace(safety, revision=opened.network.files.commit or safety.revision)
    return replace(safety, sha256=opened.sha256)


def describe_safety(opened: "OpenedChecker") -> dict[str, Any]:
    """What run.json says of the checker: its directory, or repository and commit; the sha256 of each file."""
    identity = opened.identity
    path = str(opened.network.files.directory.root) if identity.repo is None else None
    return {"path": path, "repo": identity.repo, "commit": identity.commit, "sha256": dict(identity.sha256)}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What becomes of one picture. values: of its manifest line; None where nobody looked."""

    values: dict[str, Any] | None = None
    is_blurred: bool = False
    is_dropped: bool = False


def judged(safety: SafetyConfig, verdict: Verdict | None) -> Judged:
    """What a verdict means for a picture of this run."""
    if verdict is None:
        return Judged()
    if not verdict.nsfw or safety.name not in ("blur", "drop"):
        return Judged(values=verdict.values())
    if safety.name == "drop":
        return Judged(values=verdict.values(), is_dropped=True)
    return Judged(values=verdict.values() | {"blurred": True}, is_blurred=True)


def verdicts_of(verdicts: Sequence[Verdict | None], number: int) -> Sequence[Verdict | None]:
    """One for each of `number` pictures. verdicts: empty where nobody looked."""
    assert len(verdicts) in (0, number), (len(verdicts), number)
    return verdicts or (None,) * number


def blurred(pixels: np.ndarray) -> np.ndarray:
    """A picture in which shapes and colours are left, and nothing that could be recognised. (H,W,3) uint8."""
    from PIL import Image, ImageFilter

    radius = max(4.0, min(pixels.shape[:2]) / BLUR)
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
