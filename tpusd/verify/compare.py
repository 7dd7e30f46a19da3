"""How far two arrays are apart, and how far they may be. NumPy."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bound:
    """The largest and the mean difference that rounding explains, as shares of the largest value of the reference."""

    largest: float
    mean: float


# The bounds of the comparisons in tests/: of networks, and of whole images in 0..1, which are rounded to 1 / 255.
EQUAL = Bound(0.0, 0.0)
TEXT_BOUND = Bound(1e-4, 1e-4)
LATENTS_BOUND = Bound(5e-3, 5e-4)
PIXELS_BOUND = Bound(5e-3, 5e-4)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One place on the way to an image.

    name: of the place.
    largest, mean: differences, as shares of the largest value of the reference; not finite where a value is not.
    bound: which both must keep.
    """

    name: str
    largest: float
    mean: float
    bound: Bound

    @property
    def same(self) -> bool:
        """Whether the bound is kept. NaN keeps no bound."""
        return self.largest <= self.bound.largest and self.mean <= self.bound.mean


def stage(
    name: str, ours: np.ndarray, theirs: np.ndarray, bound: Bound, *, largest_value: float | None = None
) -> Stage:
    """Compares two arrays of the same meaning. largest_value: of the reference; None: it is looked for.

    Arrays of different shapes are infinitely far apart.
    """
    if ours.shape != theirs.shape:
        return Stage(name=name, largest=np.inf, mean=np.inf, bound=bound)
    theirs = theirs.astype(np.float64)
    difference = np.abs(ours.astype(np.float64) - theirs)
    scale = float(np.abs(theirs).max(initial=0)) if largest_value is None else largest_value
    if not difference.any():
        scale = 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return Stage(
            name=name,
            largest=float(difference.max(initial=0) / scale),
            mean=float(difference.mean() / scale),
            bound=bound,
        )
