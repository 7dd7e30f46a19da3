"""Which metrics a run computes for its own images, and where their weights are."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tpusd.config.paths import with_whole_path
from tpusd.config.typed import Help
from tpusd.errors import UserError, show

Metric = Literal["aesthetic", "attributes", "clip_score", "colorfulness", "hpsv21", "pickscore"]
FIELD = "score_weights"


@dataclass(frozen=True, kw_only=True)
class WeightsPlace:
    """Where weights are: at most one of `path` and `repo`. Without both: where they were published."""

    path: Annotated[str | None, Help("a directory, or for `aesthetic` a file")] = None
    repo: Annotated[str | None, Help("owner/name on the Hugging Face Hub")] = None
    revision: Annotated[str | None, Help("the repo's branch, tag or commit")] = None


@dataclass(frozen=True, kw_only=True)
class ScoreWeights:
    """The weights of the metrics, as the words of `python -m tpusd.score` name them."""

    clip: Annotated[WeightsPlace, Help("another CLIP, for `clip_score` and `aesthetic`")] = WeightsPlace()
    pickscore: Annotated[WeightsPlace, Help("the weights of `pickscore`")] = WeightsPlace()
    hpsv21: Annotated[WeightsPlace, Help("the weights of `hpsv21`")] = WeightsPlace()
    aesthetic: Annotated[WeightsPlace, Help("the file of `aesthetic`")] = WeightsPlace()

    def given(self) -> dict[str, WeightsPlace]:
        """Those that the user gives, by their names."""
        every = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: place for name, place in every if place != WeightsPlace()}


PUBLISHED = ScoreWeights()


def check_scores_once(scores: tuple[Metric, ...]) -> None:
    """Raises UserError for a metric that is named twice."""
    for number, name in enumerate(scores):
        if name in scores[:number]:
            raise UserError(f"scores=[{', '.join(scores)}]: names {name} twice; leave one out")


def check_score_weights(weights: ScoreWeights) -> None:
    """The rules between its fields. Raises UserError."""
    for name, place in weights.given().items():
        if place.path is not None and (place.repo is not None or place.revision is not None):
            other = "repo" if place.repo is not None else "revision"
            raise UserError(
                f"{FIELD}.{name}.path={show(place.path)}: {FIELD}.{name}.{other} is set too; leave one of the two out"
            )
        if place.path is not None and not place.path.strip():
            raise UserError(f"{FIELD}.{name}.path='': must name a directory or a file")


def with_home(weights: ScoreWeights) -> ScoreWeights:
    """With the home that a leading ~ of a path stands for. Raises UserError."""
    return dataclasses.replace(
        weights, **{name: with_whole_path(place, f"{FIELD}.{name}") for name, place in weights.given().items()}
    )


def weights_to_save(weights: ScoreWeights) -> ScoreWeights:
    """With full paths, so that the run continues from every working directory."""
    return dataclasses.replace(
        weights,
        **{
            name: dataclasses.replace(place, path=str(Path(place.path).resolve()))
            for name, place in weights.given().items()
            if place.path is not None
        },
    )
