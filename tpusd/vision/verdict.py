"""What the safety checker says of a picture: the decision of CompVis' checker (2022), in the reference's arithmetic.

A score is a cosine less its threshold, in float32, rounded to three decimals. The checker gives its 17 concepts no
names, so a picture's concepts are numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ADJUSTMENT = 0.01  # is added to all later scores once a concept that calls for special care is found
DECIMALS = 3


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """concepts, special_care: numbers of those that are found, by a score above 0. scores, special_scores: of all."""

    concepts: tuple[int, ...]
    scores: tuple[float, ...]
    special_care: tuple[int, ...]
    special_scores: tuple[float, ...]

    @property
    def nsfw(self) -> bool:
        """Whether the checker calls the picture not safe for work. Special care alone does not decide that."""
        return bool(self.concepts)

    def values(self) -> dict[str, Any]:
        """As a manifest line has it."""
        return {
            "nsfw": self.nsfw,
            "concepts": list(self.concepts),
            "scores": list(self.scores),
            "special_care": list(self.special_care),
            "special_scores": list(self.special_scores),
        }


def decide(
    concepts: np.ndarray, special: np.ndarray, concept_thresholds: np.ndarray, special_thresholds: np.ndarray
) -> Verdict:
    """The verdict on one picture, as diffusers' StableDiffusionSafetyChecker finds it.

    concepts, special: cosines (17,) and (3,), float32.
    concept_thresholds, special_thresholds: of the same shapes.
    """
    adjustment, special_scores = np.float32(0), []
    for cosine, threshold in zip(special, special_thresholds, strict=True):
        special_scores.append(_rounded(cosine - threshold + adjustment))
        if special_scores[-1] > 0:
            adjustment = np.float32(ADJUSTMENT)
    scores = [
        _rounded(cosine - threshold + adjustment)
        for cosine, threshold in zip(concepts, concept_thresholds, strict=True)
    ]
    return Verdict(
        concepts=_above_zero(scores),
        scores=tuple(scores),
        special_care=_above_zero(special_scores),
        special_scores=tuple(special_scores),
    )


def _rounded(score: np.float32) -> float:
    """Rounded in float32, then as the shortest number that means the same."""
    return round(float(np.round(score, DECIMALS)), DECIMALS)


def _above_zero(scores: Sequence[float]) -> tuple[int, ...]:
    return tuple(number for number, score in enumerate(scores) if score > 0)
