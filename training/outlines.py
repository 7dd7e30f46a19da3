"""Outlines of pictures, for a ControlNet to follow. Knows pixels, no model."""

import numpy as np

STEP = 40  # of 0..255, in any channel, from a pixel to its right or lower neighbour


def outline(image: np.ndarray) -> np.ndarray:
    """(...,H,W,3) uint8 -> (...,H,W) bool: where the colour changes. The last row and column have none."""
    values = image.astype(np.int16)
    down = np.abs(np.diff(values, axis=-3)).max(axis=-1) > STEP
    right = np.abs(np.diff(values, axis=-2)).max(axis=-1) > STEP
    found = np.zeros(image.shape[:-1], bool)
    found[..., :-1, :] |= down
    found[..., :-1] |= right
    return found


def drawn(lines: np.ndarray) -> np.ndarray:
    """(...,H,W) bool -> (...,H,W,3) uint8, white on black: a control image."""
    return np.repeat(lines[..., None], 3, axis=-1).astype(np.uint8) * 255


def overlap(lines: np.ndarray, other: np.ndarray, reach: int = 1) -> float:
    """Intersection over union of two outlines (H,W) bool; a line within `reach` pixels of one of the other meets it."""
    met = (lines & _thick(other, reach)).sum() + (other & _thick(lines, reach)).sum()
    return float(met / max(1, lines.sum() + other.sum() - met / 2) / 2)


def _thick(lines: np.ndarray, reach: int) -> np.ndarray:
    height, width = lines.shape
    padded = np.pad(lines, reach)
    span = range(2 * reach + 1)
    return np.any([padded[y : y + height, x : x + width] for y in span for x in span], axis=0)
