"""The distances of a batch's pairs, against the definition, and their histogram."""

from __future__ import annotations

import numpy as np
import pytest

from embedding_learning.evaluation import pair_distances


def points(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(count, dimension))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("batch_k", [1, 2, 5])
def test_all_pairs_of_different_class_are_there_once(batch_k: int) -> None:
    x = points(20, 6).astype(np.float32)
    expected = [
        np.linalg.norm(x[i].astype(np.float64) - x[j])
        for i in range(20)
        for j in range(i + 1, 20)
        if i // batch_k != j // batch_k
    ]
    found = pair_distances.negative_pair_distances(x, batch_k)
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.filterwarnings("error")
def test_equal_embeddings_have_no_distance_and_one_class_no_pairs() -> None:
    """However the squares of their distances round: some come out negative."""
    for seed in range(20):
        x = np.tile(points(1, 1000, seed), (6, 1)).astype(np.float32)
        found = pair_distances.negative_pair_distances(x, 3)
        assert len(found) == 9
        assert np.abs(found).max() < 1e-6
    assert pair_distances.negative_pair_distances(x, 6).tolist() == []


def test_every_distance_is_counted_in_its_bin() -> None:
    assert pair_distances.histogram(np.empty(0)) == [0] * 80
    # Rounding may lead beyond 2.
    counts = pair_distances.histogram(
        np.array([0.0, 0.0249, 0.0251, 1.99, 2.0, np.float32(2.0000003)])
    )
    assert counts == [2, 1] + [0] * 77 + [3]
    distances = np.random.default_rng(0).uniform(0, 2, 1000)
    expected = [int(((distances >= k / 40) & (distances < (k + 1) / 40)).sum()) for k in range(80)]
    assert pair_distances.histogram(distances) == expected
