"""The arrays of an image's inputs. Knows no files."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Input:
    """What an image starts from, at the image's own size.

    pixels: (H,W,3) uint8.
    masked: bool (H,W), what is made; None: all of it.
    paste: float32 (H,W), 0..1, the share of the made image in the result: 0 where the picture's own pixels are put
        back. None: nothing is put back.
    """

    pixels: np.ndarray
    masked: np.ndarray | None = None
    paste: np.ndarray | None = None

    def pixel_mask(self) -> np.ndarray:
        """bool (H,W), what is made."""
        return np.ones(self.pixels.shape[:2], bool) if self.masked is None else self.masked

    def latent_mask(self, downscale: int) -> np.ndarray:
        """bool (h,w,1): a latent is made where its first pixel is masked, as the reference resizes a mask."""
        return self.pixel_mask()[::downscale, ::downscale, None]

    def pasted(self, made: np.ndarray) -> np.ndarray:
        """The made image (H,W,3) uint8, with the picture's own pixels put back."""
        if self.paste is None:
            return made
        share = self.paste[..., None]
        mixed = np.round(share * made.astype(np.float32) + (1 - share) * self.pixels.astype(np.float32))
        pixels: np.ndarray = mixed.astype(np.uint8)
        return pixels
