"""Recall@k against a loop over its definition and the original's numbers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from embedding_learning import evaluation
from embedding_learning.evaluation import recall_at_k

KS = (1, 2, 4, 8, 16)


def naive_recall(
    embeddings: np.ndarray, labels: np.ndarray, ks: Sequence[int] = KS
) -> dict[int, float]:
    """The definition, image by image in float64: sorted by distance, then by index."""
    x = embeddings.astype(np.float64)
    count = len(x)
    hits = dict.fromkeys(ks, 0)
    for query in range(count):
        distance = np.sqrt(((x - x[query]) ** 2).sum(axis=1))
        others = [i for i in np.argsort(distance, kind="stable") if i != query]
        for k in ks:
            hits[k] += any(labels[i] == labels[query] for i in others[:k])
    return {k: hits[k] / count for k in ks}


def naive_recall_in(
    queries: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    ks: Sequence[int] = KS,
) -> dict[int, float]:
    """The definition for a gallery, query by query in float64."""
    x, y = queries.astype(np.float64), gallery.astype(np.float64)
    hits = dict.fromkeys(ks, 0)
    for query in range(len(x)):
        distance = np.sqrt(((y - x[query]) ** 2).sum(axis=1))
        order = np.argsort(distance, kind="stable")
        for k in ks:
            hits[k] += any(gallery_labels[i] == labels[query] for i in order[:k])
    return {k: hits[k] / len(x) for k in ks}


def unit_rows(count: int, dimensions: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def some_labels(count: int, classes: int = 10) -> np.ndarray:
    return np.random.default_rng(2).integers(0, classes, count)


def duplicated(count: int, dimensions: int) -> np.ndarray:
    """Every row several times, in different classes."""
    return unit_rows(count, dimensions)[np.random.default_rng(3).integers(0, count // 4, count)]


def collapsed(count: int, dimensions: int) -> np.ndarray:
    """One row for all: every distance is 0."""
    return np.repeat(unit_rows(1, dimensions), count, axis=0)


def nearly_collapsed(count: int, dimensions: int) -> np.ndarray:
    """Rows that differ in their last digits: squared distances far below those of float32."""
    return unit_rows(1, dimensions) + np.float32(1e-4) * unit_rows(count, dimensions, seed=4)


def lattice(count: int, dimensions: int) -> np.ndarray:
    """Whole numbers: many pairs are equally distant without being equal."""
    return np.random.default_rng(5).integers(-1, 2, (count, dimensions)).astype(np.float32)


def far_from_the_origin(count: int, dimensions: int) -> np.ndarray:
    return 1000 + unit_rows(count, dimensions)


@pytest.mark.parametrize(
    "draw",
    [unit_rows, duplicated, collapsed, nearly_collapsed, lattice, far_from_the_origin],
)
@pytest.mark.parametrize("count, dimensions", [(40, 2), (101, 33), (260, 128)])
def test_recall_follows_the_definition(draw: object, count: int, dimensions: int) -> None:
    assert callable(draw)
    embeddings, labels = draw(count, dimensions), some_labels(count)
    assert recall_at_k(embeddings, labels) == naive_recall(embeddings, labels)


@pytest.mark.parametrize("draw", [unit_rows, duplicated, collapsed])
@pytest.mark.parametrize("rows_at_once", [0.5, 1, 7, 100])
def test_recall_does_not_depend_on_the_pieces_it_is_computed_in(
    monkeypatch: pytest.MonkeyPatch, draw: object, rows_at_once: float
) -> None:
    assert callable(draw)
    embeddings, labels = draw(130, 16), some_labels(130)
    monkeypatch.setattr(evaluation, "_DISTANCES_AT_ONCE", int(rows_at_once * 130))
    pieces = recall_at_k(embeddings, labels)
    monkeypatch.setattr(evaluation, "_DISTANCES_AT_ONCE", 130 * 130)
    assert pieces == recall_at_k(embeddings, labels)


@pytest.mark.parametrize(
    "draw",
    [unit_rows, duplicated, collapsed, nearly_collapsed, lattice, far_from_the_origin],
)
@pytest.mark.parametrize(
    "count, gallery_count, dimensions", [(40, 3, 2), (33, 70, 33), (160, 100, 128), (1, 9, 4)]
)
def test_recall_in_a_gallery_follows_the_definition(
    draw: object, count: int, gallery_count: int, dimensions: int
) -> None:
    """Images on both sides are equal or equally distant in most of the draws."""
    assert callable(draw)
    both = draw(count + gallery_count, dimensions)
    labels = some_labels(len(both))
    split = both[:count], labels[:count], both[count:], labels[count:]
    queries, query_labels, gallery, gallery_labels = split
    found = recall_at_k(queries, query_labels, KS, gallery, gallery_labels)
    assert found == naive_recall_in(*split)


@pytest.mark.parametrize("rows_at_once", [0.5, 1, 7])
def test_recall_in_a_gallery_does_not_depend_on_the_pieces_it_is_computed_in(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: float
) -> None:
    both, labels = duplicated(130, 16), some_labels(130)
    split = both[:50], labels[:50], both[50:], labels[50:]
    monkeypatch.setattr(evaluation, "_DISTANCES_AT_ONCE", int(rows_at_once * 80))
    queries, query_labels, gallery, gallery_labels = split
    found = recall_at_k(queries, query_labels, KS, gallery, gallery_labels)
    assert found == naive_recall_in(*split)


def test_a_query_that_stands_in_the_gallery_too_is_not_left_out() -> None:
    x, labels = unit_rows(30, 8), np.arange(30)
    assert recall_at_k(x, labels, KS) == dict.fromkeys(KS, 0.0)
    assert recall_at_k(x, labels, KS, x, labels) == dict.fromkeys(KS, 1.0)
    assert recall_at_k(x, labels, (1,), x, np.roll(labels, 1)) == {1: 0.0}


def test_of_equal_images_in_the_gallery_the_lower_index_is_the_nearer() -> None:
    query, gallery = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    for labels, expected in (((2, 1, 0), {1: 0.0, 2: 1.0}), ((2, 0, 1), {1: 1.0, 2: 1.0})):
        assert recall_at_k(query, np.zeros(1), (1, 2), gallery, np.array(labels)) == expected


def test_a_query_whose_class_the_gallery_lacks_can_only_miss() -> None:
    queries, labels = unit_rows(4, 8), np.array([0, 0, 1, 7])
    gallery, gallery_labels = unit_rows(3, 8, seed=1), np.array([0, 1, 5])
    assert recall_at_k(queries, labels, (1000,), gallery, gallery_labels) == {1000: 0.75}
    # Others of its class among the queries do not count.
    assert recall_at_k(queries, labels, (1000,), gallery, np.full(3, 5)) == {1000: 0.0}


@pytest.mark.parametrize(
    "gallery, labels",
    [
        (np.zeros((0, 2)), np.zeros(0)),
        (np.zeros((3, 2)), np.zeros(2)),
        (np.zeros((3, 5)), np.zeros(3)),
        (np.zeros(3), np.zeros(3)),
        (np.full((3, 2), np.nan), np.zeros(3)),
    ],
)
def test_a_gallery_that_does_not_fit_is_refused(gallery: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"embeddings|dimension"):
        recall_at_k(np.zeros((5, 2)), np.zeros(5), KS, gallery, labels)


@pytest.mark.shared
def test_the_recalls_are_those_of_the_original(golden: dict[str, np.ndarray]) -> None:
    at = golden["recall/at"].tolist()
    found = recall_at_k(golden["recall/x"], golden["recall/labels"], at)
    assert [found[k] for k in at] == golden["recall/values"].tolist()


def test_of_one_class_every_image_hits() -> None:
    assert recall_at_k(unit_rows(20, 8), np.zeros(20)) == dict.fromkeys(KS, 1.0)


def test_an_image_alone_in_its_class_misses_at_any_k() -> None:
    labels = np.array([0, 0, 1, 2])
    assert recall_at_k(unit_rows(4, 8), labels, (1000,)) == {1000: 0.5}


def test_classes_of_single_images_have_no_recall() -> None:
    assert recall_at_k(unit_rows(20, 8), np.arange(20)) == dict.fromkeys(KS, 0.0)


def test_a_single_image_has_no_recall() -> None:
    assert recall_at_k(unit_rows(1, 8), np.zeros(1)) == dict.fromkeys(KS, 0.0)


def test_a_duplicate_is_a_neighbour() -> None:
    x = np.array([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1], [0.8, 0.3]])
    assert recall_at_k(x, np.array([0, 1, 0, 1]), (1, 2)) == {1: 0.25, 2: 0.5}
    assert recall_at_k(x, np.array([0, 0, 1, 1]), (1, 2)) == {1: 0.75, 2: 0.75}


def test_of_equally_distant_neighbours_the_lower_index_is_the_nearer() -> None:
    x = np.array([[0.0], [1.0], [-1.0]])
    assert recall_at_k(x, np.array([0, 1, 0]), (1, 2)) == {1: 1 / 3, 2: 2 / 3}
    assert recall_at_k(x, np.array([0, 0, 1]), (1, 2)) == {1: 2 / 3, 2: 2 / 3}


def test_labels_may_be_anything_that_compares() -> None:
    x, labels = unit_rows(60, 4), some_labels(60)
    names = np.array(["abcdefghij"[label] for label in labels])
    assert recall_at_k(x, names) == recall_at_k(x, labels.astype(np.float32)) != {}
    assert recall_at_k(x, names) == naive_recall(x, labels)


def test_the_embeddings_are_left_as_they_are() -> None:
    x = unit_rows(30, 4)
    before = x.copy()
    recall_at_k(x, some_labels(30))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    "embeddings, labels, ks",
    [
        (np.zeros(5), np.zeros(5), KS),
        (np.zeros((5, 2, 1)), np.zeros(5), KS),
        (np.zeros((5, 2)), np.zeros(4), KS),
        (np.zeros((5, 2)), np.zeros((5, 1)), KS),
        (np.zeros((0, 2)), np.zeros(0), KS),
        (np.array([[0.0], [np.nan]]), np.zeros(2), KS),
        (np.array([[0.0], [np.inf]]), np.zeros(2), KS),
        (np.zeros((5, 2)), np.zeros(5), (0,)),
        (np.zeros((5, 2)), np.zeros(5), (1, -1)),
    ],
)
def test_what_has_no_recall_is_refused(
    embeddings: np.ndarray, labels: np.ndarray, ks: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"embeddings|every k"):
        recall_at_k(embeddings, labels, ks)


def test_memory_does_not_grow_with_the_square_of_the_images() -> None:
    """All distances between these at once would be 400 MB in float32."""
    x, labels = unit_rows(10_000, 8), np.arange(10_000) // 50
    tracemalloc.start()
    try:
        recall_at_k(x, labels)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60e6


def test_a_gallery_comes_with_its_labels() -> None:
    x, labels = np.eye(4), np.arange(4)
    with pytest.raises(ValueError, match="come together"):
        recall_at_k(x, labels, gallery=x)
    with pytest.raises(ValueError, match="come together"):
        recall_at_k(x, labels, gallery_labels=labels)
