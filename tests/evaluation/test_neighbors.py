"""Nearest neighbors against sorting all distances, on inputs that make it hard."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedding_learning.evaluation import blocked_distances, neighbors, parallel_products
from embedding_learning.evaluation.neighbors import find_nearest, find_nearest_matches, find_ranks

Draw = Callable[[int, int], np.ndarray]


def naive_nearest(queries: np.ndarray, k: int, gallery: np.ndarray | None = None):
    """The definition, query by query in float64: sorted by distance, then by index."""
    rows = (queries if gallery is None else gallery).astype(np.float64)
    all_distances, all_rows = [], []
    for number, query in enumerate(queries.astype(np.float64)):
        distance = np.sqrt(((rows - query) ** 2).sum(axis=1))
        order = np.argsort(distance, kind="stable")
        order = order[order != number] if gallery is None else order
        all_rows.append(order[:k])
        all_distances.append(distance[order[:k]])
    return np.array(all_distances), np.array(all_rows)


def unit_rows(count: int, dimensions: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def lattice(count: int, dimensions: int) -> np.ndarray:
    """Whole numbers: many pairs are equally distant without being equal."""
    return np.random.default_rng(5).integers(-1, 2, (count, dimensions)).astype(np.float32)


def duplicated(count: int, dimensions: int) -> np.ndarray:
    return unit_rows(count, dimensions)[np.random.default_rng(3).integers(0, count // 9, count)]


def with_an_outlier(count: int, dimensions: int) -> np.ndarray:
    """One row so far away that float32 takes all others for one."""
    x = unit_rows(count, dimensions)
    x[count // 2] = 1e4
    return x


def in_two_places(count: int, dimensions: int) -> np.ndarray:
    """Within each, squared distances are below the rounding of float32."""
    places = unit_rows(2, dimensions)[np.arange(count) % 2]
    return places + np.float32(1e-4) * unit_rows(count, dimensions, seed=4)


DRAWS: dict[str, Draw] = {
    "unit rows": unit_rows,
    "duplicates": duplicated,
    "one row": lambda count, d: np.repeat(unit_rows(1, d), count, axis=0),
    "nearly one row": lambda count, d: unit_rows(1, d) + np.float32(1e-4) * unit_rows(count, d, 4),
    "lattice": lattice,
    "zeros": lambda count, d: np.zeros((count, d), np.float32),
    "far from the origin": lambda count, d: 1000 + unit_rows(count, d),
    "an outlier": with_an_outlier,
    "two places": in_two_places,
    "large": lambda count, d: np.float32(1e38) * unit_rows(count, d),
    "small": lambda count, d: np.float32(1e-30) * unit_rows(count, d),
}


@pytest.fixture(params=["some queries", "some of both", "single distances"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The memory in use at one time is less than that of all distances between so many rows."""
    count, listed, size = {
        "some queries": (24, 100, (2**8, 2**16)),
        "some of both": (24, 60, (100, 13)),
        "single distances": (12, 1, (1, 1)),
    }[request.param]
    monkeypatch.setattr(blocked_distances, "_PAIRS", 17)
    monkeypatch.setattr(blocked_distances, "_ROWS", 11)
    monkeypatch.setattr(neighbors, "_LISTED", listed)
    monkeypatch.setattr(neighbors, "_LISTING", size)
    monkeypatch.setattr(neighbors, "_COUNTING_FEW", size)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("count, dimensions", [(40, 2), (101, 33), (260, 128)])
def test_neighbors_follow_the_definition(name: str, count: int, dimensions: int) -> None:
    x = DRAWS[name](count, dimensions)
    expected_distances, expected = naive_nearest(x, 300)
    for k in (1, 10, 300):
        found_distances, found = find_nearest(x, k)
        np.testing.assert_array_equal(found, expected[:, :k])
        np.testing.assert_allclose(found_distances, expected_distances[:, :k], rtol=1e-6)
        assert found.dtype == np.int64 and found_distances.dtype == np.float32


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(
    "count, gallery_count, dimensions", [(40, 3, 2), (33, 70, 33), (60, 200, 128), (1, 12, 4)]
)
def test_neighbors_in_a_gallery_follow_the_definition(
    name: str, count: int, gallery_count: int, dimensions: int
) -> None:
    both = DRAWS[name](count + gallery_count, dimensions)
    queries, gallery = both[:count], both[count:]
    expected_distances, expected = naive_nearest(queries, 300, gallery)
    for k in (1, 10, 300):
        found_distances, found = find_nearest(queries, k, gallery)
        np.testing.assert_array_equal(found, expected[:, :k])
        np.testing.assert_allclose(found_distances, expected_distances[:, :k], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unit rows", "duplicates", "lattice", "an outlier"])
@pytest.mark.parametrize("k", [1, 7, 14, 30])
def test_neighbors_do_not_depend_on_the_pieces_they_are_found_in(
    pieces: int, name: str, k: int
) -> None:
    x = DRAWS[name](pieces, 5)
    np.testing.assert_array_equal(find_nearest(x, k)[1], naive_nearest(x, k)[1])
    queries, gallery = np.split(x, [pieces // 3])
    np.testing.assert_array_equal(
        find_nearest(queries, k, gallery)[1], naive_nearest(queries, k, gallery)[1]
    )


@pytest.mark.parametrize("k", [1, 40, 700])
def test_long_rows_are_bounded_by_the_minima_of_groups(k: int) -> None:
    """So many columns that a group holds several, in order and not; the last are in none."""
    gallery = unit_rows(5003, 3)
    gallery = np.concatenate([gallery, gallery[np.argsort(gallery[:, 0])]])
    queries = unit_rows(10, 3, seed=1)
    np.testing.assert_array_equal(
        find_nearest(queries, k, gallery)[1], naive_nearest(queries, k, gallery)[1]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
def test_the_rank_of_the_kth_neighbor_is_k(pieces: int, name: str) -> None:
    x = DRAWS[name](pieces, 7)
    queries, gallery = np.split(x, [pieces // 3])
    _, rows = naive_nearest(x, pieces)
    _, gallery_rows = naive_nearest(queries, pieces, gallery)
    for k in (0, 2, len(gallery) - 1):
        assert (find_ranks(x, rows[:, k], x, np.arange(pieces)) == k).all()
        assert (find_ranks(queries, gallery_rows[:, k], gallery) == k).all()


@pytest.mark.parametrize("name", DRAWS)
def test_ranks_follow_the_definition(name: str) -> None:
    x = DRAWS[name](150, 20)
    _, rows = naive_nearest(x, 149)
    for k in (0, 1, 75, 148):
        assert (find_ranks(x, rows[:, k], x, np.arange(150)) == k).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["duplicates", "one row", "lattice", "unit rows"])
@pytest.mark.parametrize("below", [1, 3, 10])
def test_ranks_are_right_below_what_is_asked(name: str, below: int) -> None:
    x = DRAWS[name](60, 3)
    _, rows = naive_nearest(x, 59)
    for k in range(59):
        found = find_ranks(x, rows[:, k], x, np.arange(60), below)
        assert (found == k).all() if k < below else (found >= below).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("queries_of_classes", [1, 7, 256])
def test_nearest_matches_follow_the_definition(
    name: str, queries_of_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "_QUERIES_OF_CLASSES", queries_of_classes)
    x = DRAWS[name](80, 6)
    labels = np.random.default_rng(1).integers(0, 9, 80)
    labels[:2] = 20, 21
    _, rows = naive_nearest(x, 79)
    expected = [next((j for j in row if labels[j] == labels[i]), -1) for i, row in enumerate(rows)]
    found = find_nearest_matches(x, labels, x, labels, np.arange(80))
    np.testing.assert_array_equal(found, expected)
    _, rows = naive_nearest(x[:30], 50, x[30:])
    expected = [
        next((j for j in row if labels[30 + j] == labels[i]), -1) for i, row in enumerate(rows)
    ]
    found = find_nearest_matches(x[:30], labels[:30], x[30:], labels[30:])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["unit rows", "duplicates", "lattice", "an outlier"])
def test_nearest_matches_do_not_depend_on_the_pieces(pieces: int, name: str) -> None:
    x, labels = DRAWS[name](pieces, 5), np.arange(pieces) % 2
    _, rows = naive_nearest(x, pieces)
    expected = [next(j for j in row if labels[j] == labels[i]) for i, row in enumerate(rows)]
    found = find_nearest_matches(x, labels, x, labels, np.arange(pieces))
    np.testing.assert_array_equal(found, expected)


def test_what_is_counted_in_threads_is_what_is_counted_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = duplicated(300, 8)
    labels = np.arange(300) % 12
    own = np.arange(300)
    matches = find_nearest_matches(x, labels, x, labels, own)
    ranks = find_ranks(x, matches, x, own)
    monkeypatch.setattr(parallel_products, "_MANY", 0)
    monkeypatch.setattr(neighbors, "_COUNTING_FEW", (500, 16))
    monkeypatch.setattr(neighbors, "_QUERIES_OF_CLASSES", 9)
    for _ in range(5):
        np.testing.assert_array_equal(find_nearest_matches(x, labels, x, labels, own), matches)
        np.testing.assert_array_equal(find_ranks(x, matches, x, own), ranks)


def test_nothing_is_counted_for_a_query_without_a_row() -> None:
    x = duplicated(60, 4)
    _, rows = naive_nearest(x, 59)
    given = rows[:, 7].copy()
    given[[0, 30, 59]] = -1
    expected = np.where(given < 0, 0, 7)
    np.testing.assert_array_equal(find_ranks(x, given, x, np.arange(60)), expected)


def test_many_rows_are_counted_in_larger_blocks() -> None:
    x = unit_rows(1200, 4)
    distances = ((x.astype(np.float64)[:, None] - x) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    match = np.roll(np.arange(1200), 5)
    expected = (distances < distances[np.arange(1200), match][:, None]).sum(axis=1)
    np.testing.assert_array_equal(find_ranks(x, match, x, np.arange(1200)), expected)


def test_some_of_the_rows_are_searched_with_their_own_left_out() -> None:
    x = duplicated(90, 4)
    chosen = np.array([80, 3, 41])
    _, expected = naive_nearest(x, 12)
    for block, _, found in neighbors.find_nearest_in_blocks(x[chosen], 12, x, chosen):
        np.testing.assert_array_equal(found, expected[chosen][block])
    found = find_ranks(x[chosen], expected[chosen, 5], x, chosen)
    np.testing.assert_array_equal(found, [5, 5, 5])


def test_lists_are_filled_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "_LISTED", 60)
    x = unit_rows(40, 3)
    pieces = [block for block, _, _ in neighbors.find_nearest_in_blocks(x, 5, x)]
    assert pieces == [slice(0, 12), slice(12, 24), slice(24, 36), slice(36, 40)]


def test_where_float32_decides_little_float64_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise nearly all pairs would be compared one by one."""
    compared = 0

    def counted(left: object, right: object, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(rows)
        return squared_distances_of_pairs(left, right, rows, others)

    squared_distances_of_pairs = blocked_distances.squared_distances_of_pairs
    monkeypatch.setattr(neighbors, "squared_distances_of_pairs", counted)
    for draw in (unit_rows, with_an_outlier, in_two_places):
        x = draw(1500, 32)
        compared = 0
        _, rows = find_nearest(x, 3)
        assert 3 * 1500 <= compared < 5 * 1500
        compared = 0
        find_ranks(x, rows[:, 2], x, np.arange(1500))
        assert 1500 <= compared < 4 * 1500
    # Of further pieces of a gallery only what is nearer than what has been listed is compared.
    monkeypatch.setattr(neighbors, "_LISTING", (2**20, 50))
    compared = 0
    find_nearest(unit_rows(1500, 32), 3)
    assert compared < 20 * 1500  # 90 without


def test_a_collapsed_network_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more equal rows are compared than can be listed."""
    compared = 0

    def counted(left: object, right: object, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(rows)
        return squared_distances_of_pairs(left, right, rows, others)

    squared_distances_of_pairs = blocked_distances.squared_distances_of_pairs
    monkeypatch.setattr(neighbors, "squared_distances_of_pairs", counted)
    x = np.repeat(unit_rows(3, 16), 500, axis=0)
    _, rows = find_nearest(x, 2)
    np.testing.assert_array_equal(rows[:3], [[1, 2], [0, 2], [0, 1]])
    np.testing.assert_array_equal(rows[-1], [1000, 1001])
    assert compared <= 1500 * 9
    assert (find_ranks(x, rows[:, 1], x, np.arange(1500), 2) == 1).all()


def test_a_duplicate_of_a_query_is_found_but_not_the_query() -> None:
    x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found_distances, found = find_nearest(x, 2)
    np.testing.assert_array_equal(found, [[2, 1], [0, 2], [0, 1]])
    np.testing.assert_allclose(found_distances, [[0, 2**0.5], [2**0.5] * 2, [0, 2**0.5]])
    assert find_nearest(x, 1, x)[1].ravel().tolist() == [0, 1, 0]


def test_where_there_are_fewer_rows_all_are_found() -> None:
    x = unit_rows(4, 3)
    assert find_nearest(x, 1000)[1].shape == (4, 3)
    assert find_nearest(x, 1000, x)[1].shape == (4, 4)
    found_distances, found = find_nearest(x[:1], 5)
    assert found_distances.shape == found.shape == (1, 0)


@pytest.mark.parametrize(
    "queries, k, gallery, message",
    [
        (np.zeros((3, 2)), 0, None, "k must be at least 1"),
        (np.zeros(3), 1, None, "embeddings"),
        (np.zeros((0, 3)), 1, None, "embeddings"),
        (np.zeros((3, 0)), 1, None, "embeddings"),
        (np.array([[0.0], [np.nan]]), 1, None, "not finite"),
        (np.array([[0.0], [-np.inf]]), 1, None, "not finite"),
        (np.zeros((3, 2)), 1, np.zeros((3, 5)), "one dimension"),
        (np.zeros((3, 2)), 1, np.zeros((0, 2)), "embeddings"),
        (np.zeros((3, 2)), 1, np.array([[0.0, np.inf]]), "not finite"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    queries: np.ndarray, k: int, gallery: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_nearest(queries, k, gallery)


@pytest.mark.slow
def test_a_gallery_in_a_file_is_searched_in_pieces(tmp_path: Path) -> None:
    """200,000 rows of 128 take 102 MB; a copy of them in float64 would take as much again twice."""
    file = tmp_path / "gallery.npy"
    written = np.lib.format.open_memmap(file, "w+", np.float32, (200_000, 128))
    written[:] = unit_rows(1000, 128)[np.arange(200_000) % 1000]
    written[150_000:] += np.arange(50_000, dtype=np.float32)[:, None] / 1000
    written.flush()
    gallery = np.load(file, mmap_mode="r")
    queries = np.asarray(gallery[[0, 150_003, 199_999]])
    tracemalloc.start()
    try:
        _, found = find_nearest(queries, 3, gallery)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found[0], [0, 1000, 2000])
    assert found[1, 0] == 150_003 and found[2, 0] == 199_999
    assert peak < 180e6


@pytest.mark.slow
@pytest.mark.parametrize("queries, k", [(10_000, 1), (2000, 1000)])
def test_memory_is_bounded(queries: int, k: int) -> None:
    """All distances between these would take 400 MB in float32."""
    x = unit_rows(10_000, 8)
    tracemalloc.start()
    try:
        find_nearest(x[:queries], k, x)
        find_ranks(x[:queries], np.arange(queries), x, below=k)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150e6 + queries * k * 12


def test_no_mxnet_is_needed() -> None:
    code = (
        "import sys; sys.modules['mxnet'] = None; "
        "import embedding_learning.evaluation.metrics, embedding_learning.evaluation.neighbors"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
