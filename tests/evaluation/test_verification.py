"""Verification against its definition, counted pair by pair, and against scikit-learn."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from embedding_learning.evaluation import verification


def make_pairs(seed: int, count: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances that overlap; with few digits many are equal. Both types are there."""
    rng = np.random.default_rng(seed)
    is_same = rng.permutation(np.arange(count) % 3 == 0)
    distances = rng.normal(np.where(is_same, 0.8, 1.2), 0.2)
    return np.round(np.clip(distances, 0, 2), digits), is_same


def naive_rates(distances: np.ndarray, is_same: np.ndarray, limit: float) -> tuple[int, int]:
    """Returns how many pairs of either type have a distance of at most the limit."""
    accepted = [bool(same) for d, same in zip(distances, is_same) if d <= limit]
    return sum(accepted), len(accepted) - sum(accepted)


@pytest.mark.parametrize("digits", [1, 2, 9])
def test_the_roc_is_that_of_scikit_learn_and_counts_each_threshold(digits: int) -> None:
    distances, is_same = make_pairs(digits, 400, digits)
    roc = verification.compute_roc(distances, is_same)
    false, true, thresholds = roc_curve(is_same, -distances, drop_intermediate=False)
    np.testing.assert_allclose(roc.false_accept_rates, false, rtol=1e-12)
    np.testing.assert_allclose(roc.true_accept_rates, true, rtol=1e-12)
    np.testing.assert_array_equal(roc.thresholds[1:], -thresholds[1:])
    for limit, *counts in zip(*roc):
        assert naive_rates(distances, is_same, limit) == tuple(counts)


@pytest.mark.parametrize("digits", [1, 9])
def test_the_true_accept_rate_is_the_largest_with_so_few_false_accepts(digits: int) -> None:
    distances, is_same = make_pairs(7, 3000, digits)  # 2,000 of them different
    roc = verification.compute_roc(distances, is_same)
    false, true, _ = roc_curve(is_same, -distances, drop_intermediate=False)
    counts = []
    for limit in sorted(set(distances)):
        accepted = is_same[distances <= limit]
        counts.append((accepted.sum(), (~accepted).sum(), limit))
    for rate in (0.5, 0.1, 1e-2, 1e-3, 1e-4):
        found = verification.find_operating_point(roc, rate)
        allowed = [count for count in counts if count[1] / 2000 <= rate]
        best = allowed[-1] if allowed else (0, 0, -math.inf)
        assert (found.same, found.different, found.threshold) == best
        assert found.true_accept_rate == best[0] / 1000
        assert found.true_accept_rate == pytest.approx(true[false <= rate].max())


def test_a_rate_that_is_a_whole_number_of_pairs_accepts_all_of_them() -> None:
    """0.29 * 100 is 28.999999999999996 in floats."""
    distances, is_same = np.arange(101.0), np.arange(101) == 100
    roc = verification.compute_roc(distances, is_same)
    for count in range(101):
        assert verification.find_operating_point(roc, count / 100).different == count


def naive_threshold_accuracy(distances: np.ndarray, is_same: np.ndarray, limit: float) -> float:
    rights = [(d <= limit) == same for d, same in zip(distances, is_same)]
    return sum(rights) / len(rights)


@pytest.mark.parametrize("digits", [1, 9])
def test_each_fold_is_measured_with_the_threshold_of_the_others(digits: int) -> None:
    distances, is_same = make_pairs(3, 90, digits)
    folds = np.random.default_rng(0).permutation(np.arange(90) % 5)
    found = verification.compute_fold_accuracies(distances, is_same, folds)
    for fold in range(5):
        rest, own = folds != fold, folds == fold
        limits = sorted({-math.inf, *distances[rest]})
        rated = [naive_threshold_accuracy(distances[rest], is_same[rest], v) for v in limits]
        best = rated.index(max(rated))
        middle = (limits[best] + [*limits, math.inf][best + 1]) / 2
        expected = limits[best] if best in (0, len(limits) - 1) else middle
        assert found.thresholds[fold] == expected
        accuracy = naive_threshold_accuracy(distances[own], is_same[own], expected)
        assert found.accuracies[fold] == pytest.approx(accuracy)
    values = found.accuracies.tolist()
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.standard_error == pytest.approx(statistics.stdev(values) / math.sqrt(5))


def test_a_fold_has_no_part_in_its_own_threshold() -> None:
    """The last fold would be all right with a threshold of 5; the others say 1.5."""
    distances = np.array([1.0, 2, 1, 2, 4, 6])
    is_same = np.array([True, False] * 3)
    found = verification.compute_fold_accuracies(distances, is_same, np.array([0, 0, 1, 1, 2, 2]))
    assert (found.thresholds[2], found.accuracies[2]) == (1.5, 0.5)


def test_if_all_pairs_look_the_wrong_way_round_none_or_all_are_accepted() -> None:
    far = np.array([3.0, 1, 2]), np.array([True, False, False])
    assert verification.find_best_threshold(*far) == -math.inf
    near = np.array([3.0, 1, 2]), np.array([True, False, True])
    assert verification.find_best_threshold(*near) == 3.0


def test_pairs_without_folds_are_dealt_out_evenly_by_type() -> None:
    is_same = np.array([True] * 7 + [False] * 9)
    folds = verification.assign_folds(is_same, 3)
    assert folds.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 0, 1, 2, 0, 1, 2]


def test_distances_are_those_of_the_rows() -> None:
    embeddings = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    first, second = np.array([0, 4, 2]), np.array([3, 4, 1])
    expected = [math.dist(embeddings[a], embeddings[b]) for a, b in zip(first, second)]
    found = verification.pair_distances(embeddings, first, second)
    assert found.tolist() == pytest.approx(expected)
