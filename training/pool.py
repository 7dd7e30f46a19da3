"""Pictures by the thousand: picture i of seed s is the same, however many are drawn and by how many processes."""

import functools
import multiprocessing
from pathlib import Path

import numpy as np

from tpusd.scores.portraits.draw import SIZE, make_picture
from tpusd.scores.portraits.world import VALUES


def make_pictures(count: int, *, seed: int, start: int = 0, held_out: bool = False, processes: int = 2):
    """(images (n,128,128,3) uint8, labels (n,attributes) int32) of pictures start .. start+count."""
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    labels = np.empty((count, len(VALUES)), np.int32)
    make = functools.partial(make_picture, seed=seed, held_out=held_out)
    if processes == 1:
        for i in range(count):
            images[i], labels[i] = make(start + i)
        return images, labels
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for i, (image, label) in enumerate(pool.imap(make, range(start, start + count), chunksize=256)):
            images[i], labels[i] = image, label
    return images, labels


def load_pictures(directory: Path, count: int, *, seed: int, held_out: bool = False):
    """`make_pictures`, kept in `directory` for the next time."""
    stem = f"{'held_out' if held_out else 'train'}_{seed}_{count}"
    files = [directory / f"{stem}_{part}.npy" for part in ("images", "labels")]
    if not all(file.exists() for file in files):
        directory.mkdir(parents=True, exist_ok=True)
        for file, array in zip(files, make_pictures(count, seed=seed, held_out=held_out), strict=True):
            np.save(file, array)
    return tuple(np.load(file, mmap_mode="r") for file in files)


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in -1..1."""
    return images.astype(np.float32) / 127.5 - 1.0


def to_uint8(images: np.ndarray) -> np.ndarray:
    """float in about -1..1 -> uint8."""
    return np.clip(np.round((np.asarray(images) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """(n,H,W,3), n a multiple of columns -> one picture, row by row."""
    rows = [np.concatenate(images[i : i + columns], axis=1) for i in range(0, len(images), columns)]
    return np.concatenate(rows, axis=0)
