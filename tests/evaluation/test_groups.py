"""Searches that leave out the query's group, against loops over the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from embedding_learning.evaluation import metrics as metrics_module
from embedding_learning.evaluation import neighbors
from embedding_learning.evaluation.groups import number_groups
from embedding_learning.evaluation.metrics import compute_metrics, evaluate
from embedding_learning.evaluation.neighbors import find_nearest
from tests.evaluation.test_metrics import DRAWS, Draw, some_labels, unit_rows

NAMES = [
    *("recall@1", "recall@3", "recall@30", "cmc@2", "precision@1", "precision@5", "precision@90"),
    *("map@1", "map@7", "map@r", "r-precision"),
]


def some_groups(count: int, groups: int, seed: int) -> np.ndarray:
    """A third of the images have none."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(count) < 1 / 3, -1, rng.integers(0, groups, count))


def naive_lists(
    queries: np.ndarray, groups: np.ndarray, gallery: np.ndarray | None, gallery_groups: np.ndarray
) -> list[list[int]]:
    """All that is searched for each query, nearest first, in float64."""
    rows = (queries if gallery is None else gallery).astype(np.float64)
    lists = []
    for query in range(len(queries)):
        distance = np.sqrt(((rows - queries[query].astype(np.float64)) ** 2).sum(axis=1))
        is_searched = np.full(len(rows), True)
        if gallery is None:
            is_searched[query] = False
        if groups[query] >= 0:
            is_searched &= gallery_groups != groups[query]
        order = np.argsort(distance, kind="stable")
        lists.append(order[is_searched[order]].tolist())
    return lists


def naive_metrics(
    lists: list[list[int]], labels: np.ndarray, row_labels: np.ndarray
) -> dict[str, float]:
    """Each metric query by query and place by place; an image without a match has NaN."""
    of_queries: dict[str, list[float]] = {name: [] for name in NAMES}
    for query, found in enumerate(lists):
        right = row_labels[found] == labels[query]
        precisions = np.cumsum(right) / np.arange(1, len(right) + 1)
        r = sum(right)
        for name in NAMES:
            base, _, k_text = name.partition("@")
            k = int(k_text) if k_text.isdigit() else r
            nearest = right[:k]
            if base in ("recall", "cmc"):
                value = float(any(nearest))
            elif base == "precision":
                value = precisions[:k][-1] if len(nearest) else 0.0
            elif not r:
                continue
            elif base == "r-precision":
                value = sum(nearest) / r
            else:
                value = precisions[:k][nearest].sum() / min(k, r)
            of_queries[name].append(value)
    return {
        name: sum(values) / len(values) if values else math.nan
        for name, values in of_queries.items()
    }


@pytest.fixture(params=["listed", "counted", "few rows at once"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A match is found among listed neighbors, or those before it are counted."""
    if request.param == "counted":
        monkeypatch.setattr(metrics_module, "_LISTED_RANKS", 0)
    if request.param == "few rows at once":
        monkeypatch.setattr(neighbors, "_LISTING", (50, 7))
        monkeypatch.setattr(neighbors, "_COUNTING", (40, 9))
        monkeypatch.setattr(neighbors, "_FEW", 0)
    return str(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("group_count", [1, 3, 40])
def test_all_metrics_follow_the_definition_with_groups(
    way: str, draw: Draw, group_count: int
) -> None:
    count = 40
    embeddings, labels = draw(count, 16), some_labels(count, 6)
    groups = some_groups(count, group_count, seed=7)
    expected = naive_metrics(naive_lists(embeddings, groups, None, groups), labels, labels)
    numbered = number_groups(groups)
    found = evaluate(embeddings, labels, NAMES, groups=numbered)
    assert found == pytest.approx(expected, nan_ok=True)
    for names in (NAMES[:1], NAMES[1:4]):  # Without the others they are counted.
        alone = evaluate(embeddings, labels, names, groups=numbered)
        assert alone == {name: expected[name] for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("group_count", [1, 3, 40])
def test_all_metrics_follow_the_definition_with_groups_and_a_gallery(
    way: str, draw: Draw, group_count: int
) -> None:
    queries, gallery = np.split(draw(60, 16), [20])
    labels, gallery_labels = np.split(some_labels(60, 6), [20])
    groups, gallery_groups = np.split(some_groups(60, group_count, seed=8), [20])
    lists = naive_lists(queries, groups, gallery, gallery_groups)
    expected = naive_metrics(lists, labels, gallery_labels)
    numbered = number_groups(groups, gallery_groups)
    found = evaluate(queries, labels, NAMES, gallery, gallery_labels, numbered)
    assert found == pytest.approx(expected, nan_ok=True)
    for names in (NAMES[:1], NAMES[1:4]):
        alone = evaluate(queries, labels, names, gallery, gallery_labels, numbered)
        assert alone == {name: expected[name] for name in names}


def test_queries_whose_matches_are_all_in_their_group_count_as_without_a_match() -> None:
    embeddings, labels = unit_rows(7, 8), np.array([0, 0, 0, 1, 1, 2, 2])
    # All of class 0 are one group, of class 1 none has a group.
    groups = number_groups(np.array([4, 4, 4, -1, -1, 9, 4]))
    measured = compute_metrics(
        embeddings, labels, ["recall@6", "map@r", "precision@6"], groups=groups
    )
    assert measured.without_match == 3
    assert measured.bases == {"recall@6": 7, "map@r": 4, "precision@6": 7}
    assert measured.values["recall@6"] == 4 / 7
    # Of the last group three others are left out, and of six others three are searched.
    assert measured.others == 3
    without, fewer = measured.notes()
    assert "3 of 7 images have no match" in without and "outside their group" in without
    assert fewer == (
        "precision@6: fewer images are searched for some queries; it is the share among all of "
        "them, 3 or more."
    )


def test_groups_of_one_image_each_change_nothing() -> None:
    embeddings, labels = unit_rows(50, 8), some_labels(50)
    expected = evaluate(embeddings, labels, NAMES)
    for groups in (np.arange(50), np.full(50, -3)):
        assert evaluate(embeddings, labels, NAMES, groups=number_groups(groups)) == expected


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("k", [1, 5, 59])
def test_lists_end_where_nothing_is_left(draw: Draw, k: int) -> None:
    embeddings, groups = draw(60, 16), some_groups(60, 2, seed=9)
    distances, rows = find_nearest(embeddings, k, groups=number_groups(groups))
    assert rows.shape == (60, k)
    for query, expected in enumerate(naive_lists(embeddings, groups, None, groups)):
        length = min(k, len(expected))
        assert rows[query, :length].tolist() == expected[:length]
        assert (rows[query, length:] == -1).all() and np.isinf(distances[query, length:]).all()
        assert np.isfinite(distances[query, :length]).all()


def test_many_equal_rows_do_not_hide_those_of_other_groups() -> None:
    """Of equal rows only some are searched; a group of many must not use them up."""
    embeddings = np.repeat(unit_rows(2, 8), 100, axis=0)
    groups = np.repeat([0, 1, 2, 3], 50)
    labels = np.repeat([0, 1], 100)
    _, rows = find_nearest(embeddings, 3, groups=number_groups(groups))
    assert rows[[0, 60, 100, 160]].tolist() == [
        [50, 51, 52],
        [0, 1, 2],
        [150, 151, 152],
        [100, 101, 102],
    ]
    values = evaluate(embeddings, labels, ["recall@1", "recall@2"], groups=number_groups(groups))
    assert values == {"recall@1": 1.0, "recall@2": 1.0}


def test_groups_have_to_fit_the_images() -> None:
    x, labels = unit_rows(3, 4), np.arange(3)
    message = "groups of 3 queries and 3 searched images expected, not of 3 and 2"
    with pytest.raises(ValueError, match=message):
        evaluate(x, labels, ["recall@1"], x, labels, number_groups(labels, labels[:2]))
    with pytest.raises(ValueError, match=message):
        find_nearest(x, 1, x, number_groups(labels, labels[:2]))
    with pytest.raises(ValueError, match="expected, not of 4 and 4"):
        find_nearest(x, 1, groups=number_groups(np.arange(4)))
    with pytest.raises(ValueError, match="groups as number_groups makes them expected, not "):
        evaluate(x, labels, ["recall@1"], groups=labels)  # type: ignore[arg-type]


def test_groups_are_numbered_together() -> None:
    groups = number_groups(np.array([7, -5, 3]), np.array([-1, 9, 7, 7]))
    assert groups.queries.tolist() == [1, -1, 0]
    assert groups.gallery.tolist() == [-2, 2, 1, 1]
    assert groups.largest == 2
    left_out = groups.count_left_out(np.array([0, 0, 0]), np.array([0, 0, 0, 1]))
    assert left_out.tolist() == [1, 0, 0]
