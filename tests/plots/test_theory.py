"""The curves of the paper's section 4: against naive integrals, random points and sampled noise."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from scipy import special

from embedding_learning import DistanceWeightedSampling
from embedding_learning.plots import theory

DIMENSIONS = [16, 64, 128, 512, 1024]


def points(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(count, dimension))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# The density


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [3, 4, 5, 7, *DIMENSIONS, 4096])
def test_the_density_is_the_papers_divided_by_its_integral(dimension: int) -> None:
    at = (np.arange(200_000) + 0.5) / 100_000
    n = np.longdouble(dimension)
    d = at.astype(np.longdouble)
    logarithm = (n - 2) * np.log(d) + (n - 3) / 2 * np.log(1 - d * d / 4)
    naive = np.exp(logarithm - logarithm.max())
    naive /= naive.sum() / 100_000
    expected = naive.astype(np.float64)
    np.testing.assert_allclose(
        theory.density(at, dimension), expected, rtol=1e-8, atol=1e-8 * expected.max()
    )


def test_the_density_where_it_is_known() -> None:
    at = np.array([0.0, 0.5, 1.0, 1.5, 1.9])
    # A circle's is 1 over pi times the cosine of half the angle; a ball's distances grow evenly.
    circle = 1 / (np.pi * np.sqrt(1 - at**2 / 4))
    np.testing.assert_allclose(theory.density(at, 2), circle, rtol=1e-14)
    np.testing.assert_allclose(theory.density(at, 3), at / 2, rtol=1e-14)
    assert theory.density(np.array([2.0]), 2) == np.inf
    np.testing.assert_allclose(theory.density(np.array([2.0]), 3), 1.0)
    ends = np.array([0.0, 2.0])
    for dimension in (4, 128, 4096):
        assert theory.density(ends, dimension).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="in 1 dimensions"):
        theory.density(at, 1)


@pytest.mark.slow
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_random_points_have_that_density(dimension: int) -> None:
    x = points(10_000, dimension)
    distances = np.linalg.norm(x - np.roll(x, 1, axis=0), axis=1)
    # Ten intervals of equal probability, by the density's integral.
    at = (np.arange(20_000) + 0.5) / 10_000
    cumulative = np.cumsum(theory.density(at, dimension)) / 10_000
    edges = np.interp(np.arange(1, 10) / 10, cumulative, at + 0.5e-4)
    counts = np.bincount(np.searchsorted(edges, distances), minlength=10)
    # A count's standard deviation is 30.
    assert np.abs(counts - 1000).max() < 4 * 30


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_the_samplings_weights_are_the_inverse_of_that_density(dimension: int) -> None:
    """At distances so close to each other that no weight is rounded to 0."""
    distances = np.linspace(1.2, 1.25, 20)
    x = np.zeros((42, dimension))
    x[:2, 0] = 1
    x[2:, 0] = np.repeat(1 - distances**2 / 2, 2)
    x[2:, 1] = np.sqrt(1 - x[2:, 0] ** 2)
    sampling = DistanceWeightedSampling(2)
    weights = sampling.probabilities(mx.nd.array(x)).asnumpy()[0, 2::2]
    found, expected = np.log(weights), -np.log(theory.density(distances, dimension))
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=0.01)
    assert sampling.cutoffs == (0.5, 1.4)


# The variance of the gradient's direction


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [1, 2, 3, 16, 128])
@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_the_variance_is_that_of_noise_drawn(dimension: int, noise: float) -> None:
    """The nuclear norm of the covariance matrix of (h + z) / |h + z|."""
    distances = np.array([0.0, 0.02, 0.1, 0.5, 2.0])
    found = theory.direction_variance(distances, noise, dimension)
    rng = np.random.default_rng(0)
    h = points(1, dimension)[0]
    for distance, variance in zip(distances, found):
        v = distance * h + rng.normal(scale=noise, size=(10_000, dimension))
        u = v / np.linalg.norm(v, axis=1, keepdims=True)
        covariance = np.atleast_2d(np.cov(u, rowvar=False))
        assert variance == pytest.approx(np.linalg.norm(covariance, "nuc"), abs=0.02)


@pytest.mark.parametrize("dimension", [1, 2, 16, 128, 1024, 4096])
def test_the_variance_is_exact(dimension: int) -> None:
    """Against the closed form, a confluent hypergeometric function, and its ends."""
    distances, n = np.array([1e-3, 0.1, 0.5, 1.4, 2.0]), dimension
    for noise in (0.01, 0.1, 1.0):
        ratio = distances / noise
        mean = (
            ratio
            / np.sqrt(2)
            * np.exp(special.gammaln((n + 1) / 2) - special.gammaln(n / 2 + 1))
            * special.hyp1f1(0.5, n / 2 + 1, -(ratio**2) / 2)
        )
        found = theory.direction_variance(distances, noise, dimension)
        np.testing.assert_allclose(found, 1 - mean**2, atol=1e-10)
        assert (np.diff(found) <= 1e-12).all()
    assert theory.direction_variance(np.array([0.0]), 0.1, dimension).tolist() == [1.0]
    # Little noise: that of n - 1 components across h, each (noise / D)².
    small = theory.direction_variance(np.array([2.0]), 1e-3, dimension)
    np.testing.assert_allclose(small, (dimension - 1) * 0.25e-6, rtol=2e-3, atol=1e-10)
