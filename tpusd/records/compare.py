"""Two images made from one recipe: the same, the same within tolerance, or different, and where they first differ.

Reads the images from two run directories by their manifest records. Knows nothing of how they were made.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from tpusd import storage
from tpusd.records.manifest import ImageRecord
from tpusd.storage.pictures import PictureError, open_picture


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """min_psnr: dB. max_difference: of 255, of any one value."""

    min_psnr: float
    max_difference: int


# What other devices, batch sizes and compilers do to the last bits, grown over the steps; nearly twice the measured:
# docs/reproducibility.md. Keyed by the UNet's dtype.
TOLERANCES = {
    "float32": Tolerance(min_psnr=60, max_difference=4),
    "bfloat16": Tolerance(min_psnr=40, max_difference=36),
    "float16": Tolerance(min_psnr=40, max_difference=36),
}

Verdict = Literal["identical", "within tolerance", "within rounding", "different", "original damaged", "missing"]
SAME: tuple[Verdict, ...] = ("identical", "within tolerance", "within rounding")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How an image that was made again compares with its original.

    name: row-copy.
    psnr: dB, infinite for equal images, None where there are not two of one size.
    first_difference: the first stage whose digests differ, as in `latents after row 5`; None where none does.
    times_rounding: how far the original is, where that was examined; 1 is as far as rounding alone moved the image.
    """

    name: str
    verdict: Verdict
    psnr: float | None = None
    max_difference: int | None = None
    first_difference: str | None = None
    times_rounding: float | None = None

    def values(self) -> dict[str, Any]:
        """For JSON, which knows no infinity."""
        rounded = {"psnr": _finite(self.psnr), "times_rounding": _finite(self.times_rounding)}
        return asdict(self) | rounded

    def __str__(self) -> str:
        measured = (
            ""
            if self.psnr is None or math.isinf(self.psnr)
            else (f", PSNR {self.psnr:.1f} dB, largest difference {self.max_difference}/255")
        )
        if self.times_rounding is not None:
            measured += f", {_times(self.times_rounding)} rounding moves it"
        where = (
            f", first in the {self.first_difference}" if self.first_difference and self.verdict != "identical" else ""
        )
        return f"{self.name}: {self.verdict}{measured}{where}"


def compare(
    original: Path,
    before: ImageRecord,
    again: Path,
    after: ImageRecord | None,
    tolerance: Tolerance | None,
) -> Comparison:
    """How an image that was made again compares with the original.

    original, again: run directories.
    before: the image's record in `original`.
    after: its record in `again`; None where it was not made.
    tolerance: None: only an equal image is the same.
    """
    name = before.name
    if after is None:
        return Comparison(name=name, verdict="missing")
    first = first_difference(before.trace, after.trace)
    old, new = read_pixels(original, before), read_pixels(again, after)
    if old is None:
        return Comparison(name=name, verdict="original damaged", first_difference=first)
    if new is None:
        return Comparison(name=name, verdict="missing", first_difference=first)
    if old.shape != new.shape:
        return Comparison(name=name, verdict="different", first_difference=first or "size")
    psnr, largest = measure(old, new)
    if largest == 0:
        return Comparison(name=name, verdict="identical", psnr=psnr, max_difference=0, first_difference=first)
    close = tolerance is not None and psnr >= tolerance.min_psnr and largest <= tolerance.max_difference
    return Comparison(
        name=name,
        verdict="within tolerance" if close else "different",
        psnr=psnr,
        max_difference=largest,
        first_difference=first or "pixels",
    )


def measure(a: np.ndarray, b: np.ndarray) -> tuple[float, int]:
    """uint8 images of one shape -> PSNR in dB (infinite for equal ones), and the largest difference of a value."""
    difference = a.astype(np.int32) - b.astype(np.int32)
    error = float(np.mean(np.square(difference, dtype=np.float64)))
    return (10 * math.log10(255**2 / error) if error else math.inf), int(np.abs(difference).max(initial=0))


def same_start(before: object, after: object) -> bool:
    """Whether two traces have the same tokens, initial noise and number of steps, so that rounding can be what differs.

    Traces come from files, so they and their values may have any type.
    """
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return False
    if any(before.get(stage) != after.get(stage) for stage in ("tokens", "initial_noise")):
        return False
    old, new = before.get("latents"), after.get("latents")
    return isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() == new.keys()


def first_difference(before: object, after: object) -> str | None:
    """The first of tokens, text embedding, initial noise and latents in which two traces differ; None: no difference.

    Traces come from files, so they and their values may have any type.
    """
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return None
    for stage in ("tokens", "text_embedding", "picture", "control", "initial_noise"):
        if before.get(stage) != after.get(stage):
            return stage.replace("_", " ")
    old, new = before.get("latents"), after.get("latents")
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return None
    for row in sorted((row for row in old.keys() & new.keys() if row.isdecimal()), key=int):
        if old[row] != new[row]:
            return f"latents after row {row} of the sampler's table"
    return None if old.keys() == new.keys() else "number of steps"


def _times(value: float) -> str:
    return "farther than" if math.isinf(value) else f"{value:.2f} times as far as"


def _finite(value: float | None) -> float | None:
    """For JSON, with two digits."""
    return None if value is None or math.isinf(value) else round(value, 2)


def read_pixels(path: Path, record: ImageRecord) -> np.ndarray | None:
    """uint8 (H, W, 3) of a record's image; None where the file is not the one that the record was written for."""
    file = path / record.file_name
    try:
        if storage.file_size(file) is None or storage.file_sha256(file) != record.sha256:
            return None
        with open_picture(file) as image:
            if image.size != (record.width, record.height):
                return None
            return np.asarray(image.convert("RGB"))
    except (OSError, PictureError):
        return None


def side_by_side(original: np.ndarray, again: np.ndarray) -> list[tuple[str, Image.Image]]:
    """The two, and their difference made visible: labelled pictures for a contact sheet."""
    pictures = [("original", Image.fromarray(original)), ("made again", Image.fromarray(again))]
    if original.shape == again.shape:
        difference = np.abs(original.astype(np.int32) - again.astype(np.int32))
        factor = 255 // max(1, int(difference.max()))
        shown = Image.fromarray((difference * factor).astype(np.uint8))
        pictures.append((f"difference x {factor}", shown))
    return pictures
