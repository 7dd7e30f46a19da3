"""Reads the attributes of a picture by drawing: the portrait whose drawing comes nearest to it. Nothing is learned.

Knows the renderer, no model: a picture counts as having an attribute if drawing it with any other value fits worse.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpusd.scores.portraits.draw import Pose, draw, make_picture
from tpusd.scores.portraits.world import VALUES, Portrait, from_labels

SEED = 71
STARTS = 1500  # drawings among which a start is looked for
TRIES = 3  # starts
SWEEPS = 4
# Attributes that are tried together, because one hides or imitates the other.
TOGETHER = (
    ("background",), ("hair_style", "hair_color"), ("hat", "hat_color"), ("clothes_color", "clothes_pattern"),
    ("skin",), ("person", "beard"), ("glasses", "eye_color"), ("expression",),
)  # fmt: skip
POSE_STEPS = {
    "x": 1.0,
    "y": 1.0,
    "scale": 0.02,
    "width": 0.7,
    "height": 0.7,
    "eye_distance": 0.4,
    "shade": 0.5,
    "parting": 2.0,
}
POSE_BOUNDS = {
    "scale": (1.0, 1.25),
    "width": (23, 28),
    "height": (26, 32),
    "eye_distance": (9.5, 12.5),
    "shade": (-1.5, 1.5),
    "parting": (-1, 1),
}
MIDDLE = Pose(x=64, y=66, scale=1.115, width=25.5, height=29, eye_distance=11, gaze=(0, 0), shade=0, parting=1.0)


Pixels = NDArray[Any]  # (..., 3) of 0..255
Look = Callable[[Pixels], Pixels]  # (..., 3) of 0..255 -> the same in another style


def as_drawn(image: Pixels) -> Pixels:
    """The look of the drawn world itself."""
    return image


def read_portrait(image: Pixels, look: Look = as_drawn) -> Portrait:
    """image (128,128,3) uint8, in a look -> the portrait that it shows best."""
    target = image.astype(np.float32)
    images, labels = _starts()
    nearest = np.argsort(np.abs(look(images) - _small(image)[None]).mean(axis=(1, 2, 3)))[:TRIES]
    return min((_descend(target, from_labels(labels[i]), look) for i in nearest), key=lambda found: found[1])[0]


def prepare() -> None:
    """Draws what `read_portrait` starts from, which takes seconds, once."""
    _starts()


def _descend(target: Pixels, portrait: Portrait, look: Look) -> tuple[Portrait, float]:
    """From a start to the best portrait that changing one group of attributes or the pose leads to, and its misfit."""
    pose, best = MIDDLE, _misfit(target, portrait, MIDDLE, look)
    for sweep in range(SWEEPS):
        pose, best = _fit_pose(target, portrait, pose, best, 1.0 if sweep == 0 else 0.5, look)
        before = portrait
        for names in TOGETHER:
            for other in _variants(portrait, names):
                misfit = _misfit(target, other, pose, look)
                if misfit < best:
                    portrait, best = other, misfit
        if portrait == before:
            break
    return portrait, best


def _variants(portrait: Portrait, names: tuple[str, ...]) -> Iterator[Portrait]:
    for values in itertools.product(*(VALUES[name] for name in names)):
        other = dataclasses.replace(portrait, **dict(zip(names, values, strict=True)))
        hidden = [name for name in names if name not in other.visible]
        if other == portrait or (other.person == "woman" and other.beard != "none"):
            continue
        if any(getattr(other, name) != VALUES[name][0] for name in hidden):
            continue  # the same picture again
        yield other


def _fit_pose(
    target: Pixels, portrait: Portrait, pose: Pose, best: float, size: float, look: Look
) -> tuple[Pose, float]:
    for name, step in POSE_STEPS.items():
        for direction in (-1, 1):
            while True:
                value = getattr(pose, name) + direction * step * (1.0 if name == "parting" else size)
                low, high = POSE_BOUNDS.get(name, (-np.inf, np.inf))
                other = dataclasses.replace(pose, **{name: value})
                if not low <= value <= high or (misfit := _misfit(target, portrait, other, look)) >= best:
                    break
                pose, best = other, misfit
    return pose, best


def _misfit(target: Pixels, portrait: Portrait, pose: Pose, look: Look) -> float:
    return float(np.abs(look(draw(portrait, pose, oversampling=1)) - target).mean())


def _small(image: Pixels) -> Pixels:
    small: Pixels = image.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
    return small


@functools.cache
def _starts() -> tuple[Pixels, NDArray[np.int32]]:
    pictures = [make_picture(i, seed=SEED) for i in range(STARTS)]
    return np.stack([_small(image) for image, _ in pictures]), np.stack([labels for _, labels in pictures])
