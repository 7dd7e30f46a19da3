"""The table of a sampler: what a row means, and how rows become a table. NumPy.

A row is one model call:

    out = model(c_in * x, t)                     after classifier-free guidance of this row's scale
    pred = p_x * x + p_out * out                 the variable that this sampler keeps
    seen = (x, y, pred, h1, h2, h3, noise)
    x, y = X . seen, Y . seen
    h1, h2, h3 = (pred, h1, h2) if push else (h1, h2, h3)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SEEN = ("x", "y", "pred", "h1", "h2", "h3", "noise")
TERMS = len(SEEN)
HISTORY = 3
C_IN, T, P_X, P_OUT, PUSH, X, Y = 0, 1, 2, 3, 4, 5, 5 + TERMS
GUIDANCE = Y + TERMS  # the scale of classifier-free guidance, which no sampler decides
COLUMNS = GUIDANCE + 1
NOISE = X + SEEN.index("noise")  # the coefficient of the noise, which only x takes
MAX_ROWS = 2048  # Heun makes two calls a step, and 1000 steps are allowed


@dataclass(frozen=True)
class Table:
    """What a sampler does, in numbers.

    rows: float64 (n, COLUMNS), one a model call.
    init_scale: the factor on the initial standard normal noise.
    levels: float64 (n, 2): the factors on a clean sample and on standard normal noise, whose sum is the sample before
        each row. An image that starts from a picture needs them.
    """

    rows: np.ndarray
    init_scale: float
    levels: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.rows.ndim == 2 and self.rows.shape[1] == COLUMNS, self.rows.shape
        assert 0 < len(self.rows) <= MAX_ROWS, len(self.rows)
        assert self.levels is None or self.levels.shape == (len(self.rows), 2), self.levels
        if not (np.isfinite(self.rows.astype(np.float32)).all() and np.isfinite(self.init_scale)):
            raise ArithmeticError("a coefficient is not finite")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def timesteps(self) -> np.ndarray:
        """The timestep of each model call, (n,)."""
        return self.rows[:, T]

    def padded(self, guidance: Sequence[float] | None = None, controls: Sequence[Sequence[float]] = ()) -> np.ndarray:
        """float32 (MAX_ROWS, COLUMNS + controls). The rows of zeros at the end do not change an image.

        guidance: the guidance scale of each row; None: rows as they are, for a model without guidance.
        controls: of each ControlNet, its scale at each row.
        """
        padded = np.zeros((MAX_ROWS, COLUMNS + len(controls)), np.float32)
        padded[: len(self.rows), :COLUMNS] = self.rows
        for place, scales in enumerate(controls, COLUMNS):
            padded[: len(self.rows), place] = scales
        if guidance is not None:
            padded[: len(self.rows), GUIDANCE] = guidance
        return padded

    def padded_levels(self) -> np.ndarray:
        """float32 (MAX_ROWS, 2): the levels after each row. After the last one, and in padding, the sample is clean."""
        assert self.levels is not None
        padded = np.tile(np.array([1.0, 0.0], np.float32), (MAX_ROWS, 1))
        padded[: len(self.rows) - 1] = self.levels[1:]
        return padded


def row(
    *,
    t: float,
    x: Mapping[str, float],
    y: Mapping[str, float] | None = None,
    pred: tuple[float, float] = (0.0, 1.0),
    c_in: float = 1.0,
    push: bool = True,
) -> np.ndarray:
    """One row of a table, (COLUMNS,).

    Args:
        t: the timestep of the model call.
        x: the coefficients of the new x, by the names in SEEN.
        y: the coefficients of the new y; None: y does not change.
        pred: p_x and p_out.
        c_in: the factor on x before the model call.
        push: whether the prediction joins the history.
    """
    made = np.zeros(COLUMNS)
    made[[C_IN, T, P_X, P_OUT, PUSH]] = c_in, t, *pred, push
    for start, terms in ((X, x), (Y, {"y": 1.0} if y is None else y)):
        for name, coefficient in terms.items():
            made[start + SEEN.index(name)] = coefficient
    return made


def table(rows: Sequence[np.ndarray], levels: Sequence[tuple[float, float]], init_scale: float = 1.0) -> Table:
    """rows: (COLUMNS,) each. levels: one a row, as in Table. init_scale: the factor on the initial noise."""
    return Table(np.stack(rows), float(init_scale), np.array(levels, np.float64))


def level_of(a: float) -> tuple[float, float]:
    """The level at `a`, the share of the clean sample's variance, in the variable of constant variance."""
    return math.sqrt(a), math.sqrt(1 - a)
