"""NMI and AMI against their definitions, k-means against a plain loop."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from embedding_learning.evaluation import clustering
from embedding_learning.evaluation.clustering import ami, k_means, nmi


def naive_information(labels: list[int], clusters: list[int]) -> float:
    n = len(labels)
    classes, groups = Counter(labels), Counter(clusters)
    return sum(
        count / n * math.log(n * count / (classes[a] * groups[b]))
        for (a, b), count in Counter(zip(labels, clusters)).items()
    )


def naive_mean_entropy(labels: list[int], clusters: list[int]) -> float:
    return (naive_information(labels, labels) + naive_information(clusters, clusters)) / 2


SMALL = [
    ([0, 0, 1, 1], [0, 1, 0, 1]),
    ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1]),
    ([0, 0, 0, 1, 1, 2], [1, 0, 0, 1, 2, 2]),
    ([0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2]),
    ([0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1]),
    ([0, 0, 0, 0], [0, 1, 1, 1]),
    ([0, 1, 1, 1], [3, 3, 3, 3]),
]


@pytest.mark.parametrize("labels, clusters", SMALL)
def test_nmi_follows_the_definition(labels: list[int], clusters: list[int]) -> None:
    expected = naive_information(labels, clusters) / naive_mean_entropy(labels, clusters)
    assert nmi(np.array(labels), np.array(clusters)) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("labels, clusters", SMALL)
def test_ami_takes_off_the_mean_over_all_ways_to_deal_out(
    labels: list[int], clusters: list[int]
) -> None:
    ways = list(itertools.permutations(clusters))
    expected = sum(naive_information(labels, list(way)) for way in ways) / len(ways)
    found = naive_information(labels, clusters)
    score = (found - expected) / (naive_mean_entropy(labels, clusters) - expected)
    assert ami(np.array(labels), np.array(clusters)) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("score", [nmi, ami])
@pytest.mark.parametrize("labels", [[5], [2, 2, 2], [0, 0, 1, 1, 1], [7, 3, 3, 7]])
def test_other_names_of_the_same_classes_are_1(score: object, labels: list[int]) -> None:
    assert callable(score)
    names = np.array(["abcdefgh"[label] for label in labels])
    assert score(np.array(labels), names) == score(names, np.array(labels)) == 1.0


def test_by_chance_ami_is_0_and_nmi_is_not() -> None:
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(0, 200, (2, 1000))
    assert abs(ami(labels, clusters)) < 0.02
    assert nmi(labels, clusters) > 0.5


def blobs(clusters: int, each: int, dimensions: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = np.arange(clusters * each) % clusters
    centers = 10 * rng.normal(size=(clusters, dimensions))
    return (centers[labels] + rng.normal(size=(len(labels), dimensions))).astype("f"), labels


@pytest.mark.parametrize("clusters, each", [(1, 9), (7, 20), (30, 10)])
def test_clusters_that_lie_apart_are_found(clusters: int, each: int) -> None:
    x, labels = blobs(clusters, each)
    assert nmi(labels, k_means(x, clusters)) > 0.97


def test_of_more_clusters_than_rounds_several_centers_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, labels = blobs(45, 6)
    monkeypatch.setattr(clustering, "_ROUNDS", 20)
    centers = clustering._first_centers(x, 45, np.random.default_rng(0))
    assert len(np.unique(centers, axis=0)) == 45
    # Nearly each blob has one: drawn at random, a third would have none.
    distance = np.linalg.norm(x[:45, None] - centers, axis=2).min(axis=1)
    assert (distance < 10).mean() > 0.85
    assert nmi(labels, k_means(x, 45)) > 0.95


def test_the_first_centers_are_far_from_each_other() -> None:
    """A single distant image is nearly always a center; a random choice would rarely select it."""
    x = np.zeros((1000, 2), np.float32)
    x[:, 0] = np.linspace(0, 1, 1000)
    x[77] = 1000
    for seed in range(10):
        centers = clustering._first_centers(x, 3, np.random.default_rng(seed))
        assert [1000, 1000] in centers.tolist()


@pytest.mark.parametrize("clusters", [2, 9, 40])
def test_the_iterations_are_those_of_lloyd(clusters: int) -> None:
    x, _ = blobs(5, 40, 3)
    centers = clustering._first_centers(x, clusters, np.random.default_rng(4)).astype(np.float64)
    for _ in range(20):
        nearest = np.linalg.norm(x[:, None] - centers, axis=2).argmin(axis=1)
        for cluster in np.unique(nearest):
            centers[cluster] = x[nearest == cluster].astype(np.float64).mean(axis=0)
    np.testing.assert_array_equal(k_means(x, clusters, seed=4), nearest)


def test_they_stop_where_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = blobs(4, 30)
    expected = k_means(x, 4)
    monkeypatch.setattr(clustering, "_ITERATIONS", 10**9)
    np.testing.assert_array_equal(k_means(x, 4), expected)


def test_a_seed_gives_the_same_clusters_and_another_does_not() -> None:
    x = np.random.default_rng(0).normal(size=(300, 4)).astype("f")
    first = k_means(x, 20)
    np.testing.assert_array_equal(k_means(x, 20), first)
    assert not np.array_equal(k_means(x, 20, seed=1), first)


def test_there_are_no_more_clusters_than_different_embeddings() -> None:
    x = np.repeat(np.eye(3, dtype="f"), 20, axis=0)
    assert nmi(np.arange(60) // 20, k_means(x, 3)) == 1.0
    np.testing.assert_array_equal(k_means(x, 50), k_means(x, 3))
    assert set(k_means(np.zeros((40, 5)), 8)) == {0}
    assert k_means(np.zeros((1, 5)), 1).tolist() == [0]


def test_as_many_clusters_as_embeddings() -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    assert sorted(k_means(x, 30)) == list(range(30))


def test_a_center_that_loses_all_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third has nothing until the second has moved away from the last image."""
    centers = np.array([[0.0], [7.0], [12.9]], "f")
    monkeypatch.setattr(clustering, "_first_centers", lambda *_: centers.copy())
    x = np.array([[0.0], [1.0], [4.0], [4.2], [9.5]])
    assert k_means(x, 3).tolist() == [0, 0, 1, 1, 2]


def test_the_embeddings_are_left_as_they_are() -> None:
    x, _ = blobs(3, 5)
    before = x.copy()
    k_means(x, 3)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    "embeddings", [np.zeros(3), np.zeros((0, 3)), np.array([[np.nan, 0.0], [1.0, 1.0]])]
)
def test_what_are_no_embeddings_is_refused(embeddings: np.ndarray) -> None:
    with pytest.raises(ValueError, match="embeddings"):
        k_means(embeddings, 2)
