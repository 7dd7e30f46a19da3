"""Distances between two sets of pictures, from the features of each: FID, KID and CMMD. NumPy alone, in float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating[Any]]  # (n,d)
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
KID_SUBSETS, KID_SIZE, KID_DEGREE = 100, 1000, 3
BLOCK = 2048  # rows of a kernel that are in memory at once


@dataclass(frozen=True)
class Gaussian:
    """mean (d,) and covariance (d,d) of a set's features."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def gaussian(features: Features) -> Gaussian:
    """With the unbiased covariance, of at least two features."""
    values = features.astype(np.float64)
    return Gaussian(values.mean(axis=0), np.atleast_2d(np.cov(values, rowvar=False)))


def is_covariance(matrix: NDArray[np.float64]) -> bool:
    """Whether it is symmetric and has no negative eigenvalue, but for the rounding of float32."""
    scale = float(np.abs(matrix).max(initial=0.0))
    return bool(np.allclose(matrix, matrix.T, rtol=0, atol=1e-5 * scale)) and bool(
        np.linalg.eigvalsh(matrix).min(initial=0.0) >= -1e-5 * scale * len(matrix)
    )


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)): FID, where the features are InceptionV3's (Heusel et al. 2017)."""
    means = a.mean - b.mean
    roots = np.sqrt(np.linalg.eigvals(a.covariance @ b.covariance).astype(np.complex128)).real.sum()
    return float(means @ means + np.trace(a.covariance) + np.trace(b.covariance) - 2 * roots)


def kernel_distance(a: Features, b: Features, *, subsets: int = KID_SUBSETS, size: int = KID_SIZE) -> float:
    """KID (Binkowski et al. 2018): the mean over subsets of the unbiased squared MMD with the kernel (x.y / d + 1)^3.

    A subset has as many features of each set. One subset is enough where it holds all of both.
    The subsets are the same for the same number of features.
    """
    size = min(size, len(a), len(b))
    if size == len(a) == len(b):
        subsets = 1
    random = np.random.default_rng(0)
    return float(np.mean([_unbiased(_drawn(a, size, random), _drawn(b, size, random)) for _ in range(subsets)]))


def gaussian_distance(a: Features, b: Features, *, sigma: float = CMMD_SIGMA, scale: float = CMMD_SCALE) -> float:
    """CMMD (Jayasumana et al. 2024), where the features are CLIP's, of length 1: the squared MMD with a Gaussian
    kernel, in the estimator that counts each feature with itself too, times `scale`."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    gamma = 1 / (2 * sigma**2)
    return scale * (_mean_kernel(x, x, gamma) + _mean_kernel(y, y, gamma) - 2 * _mean_kernel(x, y, gamma))


def _mean_kernel(x: NDArray[np.float64], y: NDArray[np.float64], gamma: float) -> float:
    total = 0.0
    norms = (y**2).sum(axis=1)
    for start in range(0, len(x), BLOCK):
        rows = x[start : start + BLOCK]
        squares = (rows**2).sum(axis=1)[:, None] + norms - 2 * rows @ y.T
        total += float(np.exp(-gamma * squares).sum())
    return total / (len(x) * len(y))


def _drawn(features: Features, size: int, random: np.random.Generator) -> NDArray[np.float64]:
    return features[random.permutation(len(features))[:size]].astype(np.float64)


def _unbiased(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Two sets of one size, of at least two."""
    m = len(x)
    own = [_kernel(one, one) for one in (x, y)]
    within = sum(float(kernel.sum() - np.trace(kernel)) for kernel in own) / (m * (m - 1))
    return within - 2 * float(_kernel(x, y).sum()) / m**2


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = (x @ y.T / x.shape[1] + 1) ** KID_DEGREE
    return kernel
