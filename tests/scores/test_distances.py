"""FID and KID against torchmetrics on given features; CMMD against its published formula."""

import numpy as np
import pytest

from tpusd.scores.distances import frechet_distance, gaussian, gaussian_distance, kernel_distance


def features(seed, number, size=13):
    random = np.random.default_rng(seed)
    return (random.normal(size=(number, size)) @ random.normal(size=(size, size)) + seed).astype(np.float32)


def torch_features():
    """A network that gives its input: torchmetrics then takes features in place of pictures."""
    import torch

    class Same(torch.nn.Module):
        num_features = 13

        def forward(self, x):
            return x

    return Same()


@pytest.mark.parity
@pytest.mark.parametrize("numbers", [(29, 37), (8, 200)])  # fewer features than numbers too: a singular covariance
def test_fid_is_that_of_torchmetrics(numbers):
    fid, torch = pytest.importorskip("torchmetrics.image.fid"), pytest.importorskip("torch")

    a, b = features(1, numbers[0]), features(2, numbers[1])
    metric = fid.FrechetInceptionDistance(feature=torch_features()).set_dtype(torch.float64)
    metric.update(torch.from_numpy(a), real=True)
    metric.update(torch.from_numpy(b), real=False)
    assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(float(metric.compute()), rel=1e-6)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:Metric .Kernel")
def test_kid_is_that_of_torchmetrics():
    kid, torch = pytest.importorskip("torchmetrics.image.kid"), pytest.importorskip("torch")

    a, b = features(1, 31), features(2, 31)
    metric = kid.KernelInceptionDistance(feature=torch_features(), subsets=1, subset_size=31)
    metric.update(torch.from_numpy(a).double(), real=True)
    metric.update(torch.from_numpy(b).double(), real=False)
    assert kernel_distance(a, b) == pytest.approx(float(metric.compute()[0]), rel=1e-5)


def test_kid_of_subsets_is_near_that_of_all_and_always_the_same():
    a, b = features(1, 120), features(1, 120) + 0.5
    assert kernel_distance(a, b, size=60) == kernel_distance(a, b, size=60)
    assert kernel_distance(a, b, size=60, subsets=200) == pytest.approx(kernel_distance(a, b), rel=0.1)


def test_cmmd_is_the_published_formula():
    """Sums over pairs, as section 4 of the paper writes them, in the estimator of its program (i = j counts too)."""
    a, b = features(1, 11), features(2, 7)

    def mean(x, y):
        return np.mean([[np.exp(-np.sum((p - q) ** 2) / (2 * 10.0**2)) for q in y] for p in x])

    x, y = a.astype(np.float64), b.astype(np.float64)
    assert gaussian_distance(a, b) == pytest.approx(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rel=1e-9)
    assert gaussian_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_cmmd_does_not_depend_on_the_blocks(monkeypatch):
    a, b = features(1, 50), features(2, 70)
    whole = gaussian_distance(a, b)
    monkeypatch.setattr("tpusd.scores.distances.BLOCK", 7)
    assert gaussian_distance(a, b) == pytest.approx(whole, rel=1e-12)
