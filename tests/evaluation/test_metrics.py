"""Metrics against loops over their definitions, recalls against the original's numbers too."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from embedding_learning.data.datasets import registry
from embedding_learning.evaluation import metrics, neighbors
from embedding_learning.evaluation.clustering import ami, k_means, nmi
from embedding_learning.evaluation.metrics import (
    compute_metrics,
    evaluate,
    map_at_r,
    parse_metrics,
    r_precision,
    recall_at_k,
    recall_metrics,
)

KS = (1, 2, 4, 8, 16)

Draw = Callable[[int, int], np.ndarray]


def naive_recall(
    embeddings: np.ndarray, labels: np.ndarray, ks: Sequence[int] = KS
) -> dict[int, float]:
    """The definition, image by image in float64: sorted by distance, then by index."""
    x = embeddings.astype(np.float64)
    count = len(x)
    hits = dict.fromkeys(ks, 0)
    for query in range(count):
        distance = np.sqrt(((x - x[query]) ** 2).sum(axis=1))
        order = np.argsort(distance, kind="stable")
        is_right = labels[order[order != query]] == labels[query]
        for k in ks:
            hits[k] += bool(is_right[:k].any())
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
        is_right = gallery_labels[np.argsort(distance, kind="stable")] == labels[query]
        for k in ks:
            hits[k] += bool(is_right[:k].any())
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


def naive_map_and_precision(
    queries: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> tuple[float, float]:
    """MAP@R and R-precision, query by query and place by place."""
    rows = (queries if gallery is None else gallery).astype(np.float64)
    row_labels = labels if gallery_labels is None else gallery_labels
    averages, precisions = [], []
    for query in range(len(queries)):
        distance = np.sqrt(((rows - queries[query].astype(np.float64)) ** 2).sum(axis=1))
        order = [
            i for i in np.argsort(distance, kind="stable") if gallery is not None or i != query
        ]
        r = sum(row_labels[i] == labels[query] for i in order)
        if r == 0:
            continue
        right, total = 0, 0.0
        for place in range(1, r + 1):
            if row_labels[order[place - 1]] == labels[query]:
                right += 1
                total += right / place
        averages.append(total / r)
        precisions.append(right / r)
    if not averages:
        return math.nan, math.nan
    return sum(averages) / len(averages), sum(precisions) / len(precisions)


def naive_at_k(
    k: int,
    queries: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> dict[str, float]:
    """precision@K and map@K, query by query and place by place."""
    rows = (queries if gallery is None else gallery).astype(np.float64)
    row_labels = labels if gallery_labels is None else gallery_labels
    precisions, averages = [], []
    for query in range(len(queries)):
        distance = np.sqrt(((rows - queries[query].astype(np.float64)) ** 2).sum(axis=1))
        order = np.argsort(distance, kind="stable")
        found = [
            bool(row_labels[i] == labels[query]) for i in order if gallery is not None or i != query
        ]
        r, nearest = sum(found), found[:k]
        precisions.append(sum(nearest) / len(nearest) if nearest else 0.0)
        if r:
            total = 0.0
            for place in range(1, len(nearest) + 1):
                if nearest[place - 1]:
                    total += sum(nearest[:place]) / place
            averages.append(total / min(k, r))
    return {
        f"precision@{k}": sum(precisions) / len(precisions),
        f"map@{k}": sum(averages) / len(averages) if averages else math.nan,
    }


DRAWS = [unit_rows, duplicated, collapsed, nearly_collapsed, lattice, far_from_the_origin]


Recall = Callable[..., dict[int, float]]


def recall_of_lists(
    embeddings: np.ndarray,
    labels: np.ndarray,
    ks: Sequence[int] = KS,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> dict[int, float]:
    """The recalls, computed together with a metric that needs lists of neighbors."""
    names = ["map@r", *recall_metrics(ks)]
    values = evaluate(embeddings, labels, names, gallery, gallery_labels)
    return {k: values[f"recall@{k}"] for k in ks}


@pytest.fixture(params=["counted", "listed", "both"])
def recall(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Recall:
    """A match is found among listed neighbors, or those before it are counted."""
    if request.param == "both":
        monkeypatch.setattr(metrics, "_LISTED_RANKS", 0)
    return recall_at_k if request.param == "counted" else recall_of_lists


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("count, dimensions", [(40, 2), (101, 33), (260, 128)])
def test_recall_follows_the_definition(
    recall: Recall, draw: Draw, count: int, dimensions: int
) -> None:
    embeddings, labels = draw(count, dimensions), some_labels(count)
    assert recall(embeddings, labels) == naive_recall(embeddings, labels)


@pytest.mark.slow
@pytest.mark.parametrize("draw", [unit_rows, duplicated, collapsed])
@pytest.mark.parametrize("size", [(1, 1), (50, 7), (200, 2**16)])
@pytest.mark.parametrize("listed_ranks", [0, 64])
def test_metrics_do_not_depend_on_the_pieces_they_are_computed_in(
    monkeypatch: pytest.MonkeyPatch, draw: Draw, size: tuple[int, int], listed_ranks: int
) -> None:
    monkeypatch.setattr(metrics, "_LISTED_RANKS", listed_ranks)
    embeddings, labels = draw(25, 16), some_labels(25, 5)
    names = ["recall@1", "recall@5", "map@r", "r-precision", "precision@7", "map@9"]
    gallery = embeddings[10:], labels[10:]
    whole = evaluate(embeddings, labels, names)
    in_gallery = evaluate(embeddings[:10], labels[:10], names, *gallery)
    monkeypatch.setattr(neighbors, "_LISTING", size)
    monkeypatch.setattr(neighbors, "_COUNTING_FEW", size)
    monkeypatch.setattr(neighbors, "_LISTED", size[0])
    monkeypatch.setattr(neighbors, "_QUERIES_OF_CLASSES", 1 + size[0] // 20)
    assert evaluate(embeddings, labels, names) == whole
    assert evaluate(embeddings[:10], labels[:10], names, *gallery) == in_gallery


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(
    "count, gallery_count, dimensions", [(40, 3, 2), (33, 70, 33), (160, 100, 128), (1, 9, 4)]
)
def test_recall_in_a_gallery_follows_the_definition(
    recall: Recall, draw: Draw, count: int, gallery_count: int, dimensions: int
) -> None:
    """Images on both sides are equal or equally distant in most of the draws."""
    both = draw(count + gallery_count, dimensions)
    labels = some_labels(len(both))
    split = both[:count], labels[:count], both[count:], labels[count:]
    queries, query_labels, gallery, gallery_labels = split
    found = recall(queries, query_labels, KS, gallery, gallery_labels)
    assert found == naive_recall_in(*split)


def test_a_query_that_stands_in_the_gallery_too_is_not_left_out(recall: Recall) -> None:
    x, labels = unit_rows(30, 8), np.arange(30)
    assert recall(x, labels, KS) == dict.fromkeys(KS, 0.0)
    assert recall(x, labels, KS, x, labels) == dict.fromkeys(KS, 1.0)
    assert recall(x, labels, (1,), x, np.roll(labels, 1)) == {1: 0.0}


def test_of_equal_images_in_the_gallery_the_lower_index_is_the_nearer(recall: Recall) -> None:
    query, gallery = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    for labels, expected in (((2, 1, 0), {1: 0.0, 2: 1.0}), ((2, 0, 1), {1: 1.0, 2: 1.0})):
        assert recall(query, np.zeros(1), (1, 2), gallery, np.array(labels)) == expected


def test_a_query_whose_class_the_gallery_lacks_can_only_miss(recall: Recall) -> None:
    queries, labels = unit_rows(4, 8), np.array([0, 0, 1, 7])
    gallery, gallery_labels = unit_rows(3, 8, seed=1), np.array([0, 1, 5])
    assert recall(queries, labels, (1000,), gallery, gallery_labels) == {1000: 0.75}
    # Others of its class among the queries do not count.
    assert recall(queries, labels, (1000,), gallery, np.full(3, 5)) == {1000: 0.0}


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


def test_of_one_class_every_image_hits(recall: Recall) -> None:
    assert recall(unit_rows(20, 8), np.zeros(20)) == dict.fromkeys(KS, 1.0)


def test_an_image_alone_in_its_class_misses_at_any_k(recall: Recall) -> None:
    labels = np.array([0, 0, 1, 2])
    assert recall(unit_rows(4, 8), labels, (1000,)) == {1000: 0.5}


def test_classes_of_single_images_have_no_recall(recall: Recall) -> None:
    assert recall(unit_rows(20, 8), np.arange(20)) == dict.fromkeys(KS, 0.0)


def test_a_single_image_has_no_recall(recall: Recall) -> None:
    assert recall(unit_rows(1, 8), np.zeros(1)) == dict.fromkeys(KS, 0.0)


def test_a_duplicate_is_a_neighbor(recall: Recall) -> None:
    x = np.array([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1], [0.8, 0.3]])
    assert recall(x, np.array([0, 1, 0, 1]), (1, 2)) == {1: 0.25, 2: 0.5}
    assert recall(x, np.array([0, 0, 1, 1]), (1, 2)) == {1: 0.75, 2: 0.75}


def test_of_equally_distant_neighbors_the_lower_index_is_the_nearer(recall: Recall) -> None:
    x = np.array([[0.0], [1.0], [-1.0]])
    assert recall(x, np.array([0, 1, 0]), (1, 2)) == {1: 1 / 3, 2: 2 / 3}
    assert recall(x, np.array([0, 0, 1]), (1, 2)) == {1: 2 / 3, 2: 2 / 3}


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


@pytest.mark.slow
def test_memory_does_not_grow_with_the_square_of_the_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a sixteenth of the memory; all distances at once would be 36 MB in float32."""
    monkeypatch.setattr(neighbors, "_LISTED", neighbors._LISTED // 16)
    monkeypatch.setattr(neighbors, "_LISTING", (neighbors._LISTING[0] // 16, 2**16))
    monkeypatch.setattr(neighbors, "_COUNTING", (neighbors._COUNTING[0] // 16, 504))
    x, labels = unit_rows(3000, 8), np.arange(3000) // 50
    for names in (["recall@1", "recall@1000"], ["map@r"], ["precision@500", "map@500"]):
        tracemalloc.start()
        try:
            evaluate(x, labels, names)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 15e6, names


def test_a_gallery_comes_with_its_labels() -> None:
    x, labels = np.eye(4), np.arange(4)
    with pytest.raises(ValueError, match="a gallery needs labels"):
        recall_at_k(x, labels, gallery=x)
    with pytest.raises(ValueError, match="a gallery needs labels"):
        recall_at_k(x, labels, gallery_labels=labels)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("count, dimensions", [(40, 2), (101, 33), (200, 128)])
def test_map_and_precision_follow_the_definition(draw: Draw, count: int, dimensions: int) -> None:
    """In classes of 1, of many and of some; a gallery lacks classes and has others."""
    embeddings = draw(count, dimensions)
    labels = np.minimum(some_labels(count, 30), 20)
    labels[:3] = 100, 101, 102
    expected = naive_map_and_precision(embeddings, labels)
    assert map_at_r(embeddings, labels) == pytest.approx(expected[0], abs=1e-12)
    assert r_precision(embeddings, labels) == pytest.approx(expected[1], abs=1e-12)
    split = embeddings[:30], labels[:30], embeddings[30:], labels[30:]
    expected = naive_map_and_precision(*split)
    assert map_at_r(*split) == pytest.approx(expected[0], abs=1e-12)
    assert r_precision(*split) == pytest.approx(expected[1], abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("k", [1, 3, 10, 70, 10**6])
@pytest.mark.parametrize("count, dimensions", [(40, 2), (101, 33)])
def test_precision_and_map_at_k_follow_the_definition(
    draw: Draw, count: int, dimensions: int, k: int
) -> None:
    """In classes of 1, of many and of some; a gallery lacks classes and has others."""
    embeddings = draw(count, dimensions)
    labels = np.minimum(some_labels(count, 30), 20)
    labels[:3] = 100, 101, 102
    for split in (
        (embeddings, labels),
        (embeddings[:30], labels[:30], embeddings[30:], labels[30:]),
        (embeddings[4:], labels[4:], embeddings[:4], labels[:4]),
    ):
        expected = naive_at_k(k, *split)
        queries, query_labels, *gallery = split
        found = evaluate(queries, query_labels, list(expected), *gallery)
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_precision_and_map_at_k_of_a_list_done_by_hand() -> None:
    """The R = 3 matches are at positions 1, 3 and 4."""
    gallery, labels = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([7, 0, 7, 7])
    expected = {
        **{"precision@1": 1.0, "precision@2": 1 / 2, "precision@3": 2 / 3, "precision@9": 3 / 4},
        **{"map@1": 1.0, "map@2": 1 / 2, "map@3": (1 + 2 / 3) / 3},
        **{"map@4": (1 + 2 / 3 + 3 / 4) / 3, "map@9": (1 + 2 / 3 + 3 / 4) / 3},
    }
    found = evaluate(np.zeros((1, 1)), np.array([7]), list(expected), gallery, labels)
    assert found == pytest.approx(expected)


def test_of_equally_distant_neighbors_the_lower_index_counts_first() -> None:
    x, names = np.array([[0.0], [1.0], [-1.0]]), ["precision@1", "map@1"]
    in_gallery = np.zeros((1, 1)), np.array([0]), names, x[1:]
    assert evaluate(*in_gallery, np.array([0, 1])) == dict.fromkeys(names, 1.0)
    assert evaluate(*in_gallery, np.array([1, 0])) == dict.fromkeys(names, 0.0)


def test_cmc_is_another_name_of_recall(recall: Recall) -> None:
    x, labels = unit_rows(90, 5), some_labels(90, 30)
    names = ["cmc@1", "recall@1", "cmc@70", "recall@70"]
    found = evaluate(x, labels, names)
    assert list(found) == names
    assert found["cmc@1"] == found["recall@1"] < found["cmc@70"] == found["recall@70"]
    assert evaluate(x, labels, ["cmc@70"]) == {"cmc@70": found["recall@70"]}


def test_each_metric_names_how_many_images_it_is_computed_over() -> None:
    """An image alone in its class counts as a miss, or does not count where R divides."""
    x = np.array([[0.0], [0.1], [5.0], [5.1], [9.0]])
    over_all = {"recall@1": 0.8, "cmc@1": 0.8, "precision@1": 0.8, "nmi": 1.0, "ami": 1.0}
    over_matched = {"map@1": 1.0, "map@r": 1.0, "r-precision": 1.0}
    found = compute_metrics(x, np.array([0, 0, 1, 1, 2]), [*over_all, *over_matched])
    assert found.values == pytest.approx({**over_all, **over_matched})
    assert found.bases == {**dict.fromkeys(over_all, 5), **dict.fromkeys(over_matched, 4)}
    assert (found.queries, found.without_match, found.others) == (5, 1, 4)
    (note,) = found.notes()
    assert note.startswith("1 of 5 images have no match")
    assert "map@r and r-precision leave them out" in note


def test_queries_of_classes_that_the_gallery_lacks_have_no_match() -> None:
    x, labels = unit_rows(6, 3), np.array([0, 0, 1, 2, 2, 2])
    found = compute_metrics(x, labels, ["recall@9", "map@r"], x[:2], np.array([0, 1]))
    assert found.bases == {"recall@9": 6, "map@r": 3}
    assert (found.without_match, found.others) == (3, 2)


def test_a_precision_of_more_images_than_are_searched_is_noted() -> None:
    names = ["precision@5", "precision@6", "recall@6", "map@6"]
    x, labels = unit_rows(6, 3), np.array([0, 0, 1, 1, 2, 2])
    (note,) = compute_metrics(x, labels, names).notes()
    assert note.startswith("precision@6: fewer images are searched") and note.endswith("all 5.")


def test_data_in_which_each_image_has_a_match_needs_no_notes() -> None:
    found = compute_metrics(unit_rows(6, 3), np.array([0, 0, 1, 1, 2, 2]), ["recall@5"])
    assert found.notes() == []


@pytest.mark.parametrize("labels", [np.arange(5), np.arange(1)])
def test_without_any_match_a_metric_of_none_is_computed_over_none(labels: np.ndarray) -> None:
    names = ["recall@1", "precision@2", "map@2", "map@r"]
    found = compute_metrics(unit_rows(len(labels), 3), labels, names)
    assert [found.bases[name] for name in names] == [len(labels), len(labels), 0, 0]
    assert found.values["recall@1"] == found.values["precision@2"] == 0.0
    assert math.isnan(found.values["map@2"])


def test_map_at_r_of_a_list_done_by_hand() -> None:
    """Musgrave et al. weigh by place what R-precision only counts: of R = 3, places 1 and 3."""
    gallery, labels = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([7, 0, 7, 7])
    task = np.zeros((1, 1)), np.array([7]), gallery, labels
    assert map_at_r(*task) == pytest.approx((1 + 2 / 3) / 3)
    assert r_precision(*task) == pytest.approx(2 / 3)
    # The other way about the place of the wrong one counts.
    task = np.zeros((1, 1)), np.array([7]), gallery, labels[[1, 0, 2, 3]]
    assert map_at_r(*task) == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert r_precision(*task) == pytest.approx(2 / 3)


def test_single_images_are_left_out_of_map_and_precision_but_not_of_recall() -> None:
    x = np.array([[0.0], [0.1], [5.0], [5.1], [9.0]])
    names = ["recall@1", "map@r", "r-precision"]
    found = evaluate(x, np.array([0, 0, 1, 1, 2]), names)
    assert found == {"recall@1": 0.8, "map@r": 1.0, "r-precision": 1.0}


@pytest.mark.parametrize("labels", [np.arange(5), np.arange(1)])
def test_without_any_image_to_find_map_and_precision_are_no_number(labels: np.ndarray) -> None:
    x = unit_rows(len(labels), 3)
    found = evaluate(x, labels, ["map@r", "r-precision", "recall@1000"])
    assert math.isnan(found["map@r"]) and math.isnan(found["r-precision"])
    assert found["recall@1000"] == 0.0
    assert math.isnan(map_at_r(x, labels, x, labels + 10))


def test_of_one_class_all_is_right() -> None:
    names = ["recall@1", "map@r", "r-precision", "nmi", "ami"]
    assert evaluate(unit_rows(30, 4), np.zeros(30), names) == dict.fromkeys(names, 1.0)


def test_many_metrics_at_once_are_those_of_one_at_a_time() -> None:
    """This holds also if a match is not among the neighbors that MAP@R lists."""
    x, labels = unit_rows(300, 5), some_labels(300, 60)
    names = ["nmi", "recall@1", "map@r", "recall@2", "recall@100", "recall@299", "ami"]
    names += ["r-precision", "precision@1", "precision@170", "map@3", "map@200", "cmc@2"]
    found = evaluate(x, labels, names)
    assert list(found) == names
    for name in names:
        assert evaluate(x, labels, [name]) == {name: found[name]}
    recalls = naive_recall(x, labels, (1, 2, 100, 299))
    assert {k: found[f"recall@{k}"] for k in recalls} == recalls
    assert len(set(recalls.values())) == 4
    some = x[:90], labels[:90], names, x[90:], labels[90:]
    found = evaluate(*some)
    expected = naive_recall_in(x[:90], labels[:90], x[90:], labels[90:], (1, 2, 100, 299))
    assert {k: found[f"recall@{k}"] for k in recalls} == expected


def test_clusters_are_as_many_as_classes_and_of_the_queries_alone() -> None:
    x, labels = unit_rows(120, 4), some_labels(120, 7)
    clusters = k_means(x, 7)
    expected = {"nmi": nmi(labels, clusters), "ami": ami(labels, clusters)}
    assert evaluate(x, labels, ["nmi", "ami"]) == expected
    assert evaluate(x, labels, ["nmi", "ami"], unit_rows(9, 4, 1), np.arange(9) - 5) == expected


def test_one_search_serves_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    def counted(*arguments: object) -> object:
        searches.append(arguments[1])
        return neighbors.find_nearest_in_blocks(*arguments)

    monkeypatch.setattr(metrics, "find_nearest_in_blocks", counted)
    x, labels = unit_rows(60, 4), np.arange(60) // 5
    evaluate(x, labels, ["recall@1", "recall@8", "map@r", "r-precision"])
    assert searches == [8]
    evaluate(x, labels, ["recall@1", "map@r", "nmi"])
    assert searches == [8, 4]
    evaluate(x, labels, ["nmi", "ami"])
    assert searches == [8, 4]
    evaluate(x, labels, ["recall@1", "precision@3", "map@12", "map@r"])
    assert searches == [8, 4, 12]


def test_the_metrics_that_papers_report() -> None:
    assert recall_metrics() == [f"recall@{k}" for k in (1, 2, 4, 8, 16)]
    ranks = {layout.name: layout.recall_at for layout in registry.FORMATS}
    assert ranks.pop("sop") == (1, 10, 100, 1000)
    assert ranks.pop("inshop") == (1, 10, 20, 30, 40, 50)
    assert set(ranks.values()) == {(1, 2, 4, 8, 16)}
    x, labels = unit_rows(40, 4), some_labels(40)
    assert list(evaluate(x, labels)) == recall_metrics()


def test_metrics_are_read_with_commas_between_them() -> None:
    read = parse_metrics(" Recall@1, map@R,recall@1000,r-precision,NMI,ami,recall@1")
    assert read == ["recall@1", "map@r", "recall@1000", "r-precision", "nmi", "ami"]
    assert parse_metrics("MAP@5,Precision@5,CMC@5") == ["map@5", "precision@5", "cmc@5"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "recall",
        "recall@",
        "recall@0",
        "recall@-1",
        "recall@1.5",
        "recall@01",
        "map",
        "map@0",
        "cmc",
        "precision@",
        "precision@r",
        "recall@r",
        "r-precision@5",
        "recall@1,,nmi",
        "nmi;ami",
        "recall@²",
        "recall@٣",
        "recall@999999999999999999999",
        "recall@1\n2",
    ],
)
def test_an_unknown_metric_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"is no metric; the metrics are recall@K, .* ami \(K from 1\)"
    ) as error:
        parse_metrics(text)
    assert "\n" not in str(error.value)


def test_an_unknown_metric_is_not_evaluated() -> None:
    with pytest.raises(ValueError, match="'f1' is no metric"):
        evaluate(unit_rows(5, 2), np.arange(5), ["recall@1", "f1"])
