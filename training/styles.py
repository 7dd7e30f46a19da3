"""Looks that a picture of the drawn world can take, for adapters to learn. Knows pixels, no model."""

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, ITU-R BT.601
PAPER = np.array([255, 225, 180], np.float32)  # what white becomes on an old photograph
INK = np.array([20, 10, 5], np.float32)  # what black becomes


def old_photograph(image: np.ndarray) -> np.ndarray:
    """(..., 3) of 0..255 -> the same in brown and cream, as float32: only how light a colour is, is left."""
    lightness = image.astype(np.float32) @ LUMA / 255
    return INK + lightness[..., None] * (PAPER - INK)


def share_off(image: np.ndarray, limit: float = 24.0) -> float:
    """The share of pixels whose colour is further than `limit` (of 0..255, in any channel) from an old photograph's."""
    pixels = image.reshape(-1, 3).astype(np.float32)
    span = PAPER - INK
    along = np.clip((pixels - INK) @ span / (span @ span), 0, 1)[:, None]
    return float((np.abs(pixels - (INK + along * span)).max(axis=1) > limit).mean())
