"""Distances: of pairs exactly, of all pairs within the margin that is claimed for them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
import pytest

from embedding_learning.evaluation import blocked_distances
from embedding_learning.evaluation.blocked_distances import (
    Block,
    Gallery,
    Product,
    Selection,
    make_gallery,
    split_into_strips,
    squared_distances_of_pairs,
)


def blocks_of(
    queries: np.ndarray, gallery: Gallery, own: np.ndarray | None, size: tuple[int, int]
) -> Iterator[Block]:
    return chain.from_iterable(split_into_strips(queries, gallery, own, size))


def normal(count: int, dimensions: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)


def with_an_outlier(count: int, dimensions: int) -> np.ndarray:
    return np.concatenate([normal(count - 1, dimensions), np.full((1, dimensions), 1e6, "f")])


DRAWS = {
    "normal": normal,
    "far from the origin": lambda count, d: np.float32(1e4) + normal(count, d),
    "two places": lambda count, d: np.float32(100) * (normal(count, d) > 0) + normal(count, d, 1),
    "an outlier": with_an_outlier,
    "large": lambda count, d: np.float32(1e37) * normal(count, d),
    "small": lambda count, d: np.float32(1e-20) * normal(count, d),
    "tiny": lambda count, d: np.float32(1e-42) * normal(count, d),
    "all equal": lambda count, d: np.repeat(normal(1, d), count, axis=0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("dimensions", [1, 3, 128, 513])
def test_products_are_within_their_margin(name: str, dimensions: int) -> None:
    x = DRAWS[name](150, dimensions)
    queries, rows = x[:50], x[50:]
    precise = queries[:, None].astype(np.longdouble) - rows.astype(np.longdouble)
    exact = (precise**2).sum(axis=2)
    gallery = make_gallery(rows, len(rows))
    for block in blocks_of(queries, gallery, None, (700, 33)):
        assert block.fits_float32() == (name != "large")
        for dtype in [np.float32] * block.fits_float32() + [np.float64]:
            product = block.product(dtype)
            assert product.squares.dtype == dtype
            error = np.abs(product.squares - exact[block.queries, block.columns]).max(axis=1)
            assert (error <= product.margin).all()


def test_the_margin_is_not_so_wide_that_it_decides_nothing() -> None:
    x = normal(150, 128)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    (block,) = blocks_of(x, make_gallery(x, 150), None, (2**20, 2**16))
    assert block.product(np.float32).margin.max() < 5e-5
    assert block.product(np.float64).margin.max() < 2e-13


def test_limits_are_decided_right_unless_within_the_margin() -> None:
    """Each pair is held against limits about its own exact distance, to the last bit."""
    x = normal(40, 20)
    gallery = make_gallery(x, 40)
    everyone = np.arange(40)
    (block,) = blocks_of(x, gallery, None, (2**20, 2**16))
    for dtype in (np.float32, np.float64):
        product = block.product(dtype)
        for row in range(40):
            exact = squared_distances_of_pairs(x, x, everyone, np.full(40, row))
            assert not product.at_most(exact - product.margin)[:, row].any()
            assert product.at_most(exact + product.margin)[:, row].all()


def test_a_product_in_float64_follows_one_that_leaves_many_pairs() -> None:
    """More than 100 unneeded pairs of 1,600 would be many."""
    x = normal(40, 5)
    (block,) = blocks_of(x, make_gallery(x, 40), None, (2**20, 2**16))
    for count, wanted, expected in (
        (100, 0, [np.float32]),
        (101, 0, [np.float32, np.float64]),
        (110, 10, [np.float32]),
        (111, 10, [np.float32, np.float64]),
    ):
        dtypes = []

        def select(product: Product, count: int = count, dtypes: list = dtypes) -> list:
            dtypes.append(product.squares.dtype)
            return [Selection(np.arange(count), np.full(40, len(dtypes)))]

        [selection] = block.select(select, wanted)
        assert dtypes == expected
        assert selection.nearer[0] == len(dtypes)


def test_pairs_are_split_into_queries_and_gallery_rows() -> None:
    x = normal(9, 3)[[0, 1, 1, 2, 3, 4, 5, 6, 7, 8]]
    first, *_ = blocks_of(x, make_gallery(x, 1), None, (12, 4))
    selection = Selection(np.array([0, 3, 4, 11]), np.zeros(3, np.int64))
    query, row = selection.split_pairs(first.rows)
    assert query.tolist() == [0, 0, 1, 2]
    assert row.tolist() == [0, 4, 0, 4]  # row 2 is equal to row 1 and not searched


def test_a_query_is_infinitely_far_from_the_row_it_is_itself() -> None:
    x = normal(60, 8)
    own = np.array([5, 0, 59, 30])
    found = np.zeros((4, 60))
    for block in blocks_of(x[own], make_gallery(x, 60), own, (30, 7)):
        for dtype in (np.float32, np.float64):
            product = block.product(dtype)
            is_own = np.isinf(product.squares)
            found[block.queries, block.columns] += is_own
            assert not product.at_most(np.full(len(is_own), np.inf))[is_own].any()
    expected = np.zeros((4, 60))
    expected[np.arange(4), own] = 2
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(1, 1), (10, 3), (50, 100), (10_000, 10_000)])
def test_all_pairs_are_covered_once_in_pieces_of_the_size_that_is_asked(
    size: tuple[int, int],
) -> None:
    x = normal(23, 4)
    covered = np.zeros((23, 23))
    for block in blocks_of(x, make_gallery(x, 23), None, size):
        covered[block.queries, block.columns] += 1
        assert len(block.rows) <= size[1]
        assert len(block.reach) * len(block.rows) <= max(size)
    assert (covered == 1).all()


@pytest.mark.parametrize("size", [(1, 1), (10, 3), (50, 100), (10_000, 10_000)])
def test_mirrored_blocks_cover_each_pair_of_queries_once(size: tuple[int, int]) -> None:
    x = normal(23, 4)
    own = np.arange(23)
    exact = ((x.astype(np.float64)[:, None] - x) ** 2).sum(axis=2)
    covered = np.zeros((23, 23))
    for strip in split_into_strips(x, make_gallery(x, 23), own, size, is_mirrored=True):
        for block in strip:
            covered[block.queries, block.columns] += 1
            if not len(block.column_reach):
                assert block.queries == block.columns
                continue
            covered[block.columns, block.queries] += 1
            mirror = block.product(np.float32).transposed()
            error = np.abs(mirror.squares - exact[block.columns, block.queries]).max(axis=1)
            assert (error <= mirror.margin).all()
    assert (covered == 1).all()


@pytest.mark.parametrize("dimensions", [1, 2, 7, 64, 129])
def test_the_distance_of_a_pair_does_not_depend_on_where_it_stands(dimensions: int) -> None:
    x = normal(50, dimensions)
    left, right = np.random.default_rng(1).integers(0, 50, (2, 5000))
    squares = squared_distances_of_pairs(x, x, left, right)
    for order in (np.arange(5000)[::-1], np.arange(3, 5000), np.arange(17), np.array([4711])):
        again = squared_distances_of_pairs(x, x, left[order], right[order])
        np.testing.assert_array_equal(again, squares[order])
    np.testing.assert_array_equal(squared_distances_of_pairs(x, x, right, left), squares)
    expected = ((x[left].astype(np.float64) - x[right]) ** 2).sum(axis=1)
    np.testing.assert_allclose(squares, expected, rtol=1e-14)


@pytest.mark.parametrize("copies", [1, 2, 3, 100])
def test_of_equal_rows_the_first_are_kept(copies: int) -> None:
    x = normal(12, 5)[np.random.default_rng(2).integers(0, 12, 100)]
    x[50:, 2] = -0.0
    x[60:, 2] = 0.0
    seen: dict[tuple[float, ...], int] = {}
    expected = []
    for row, values in enumerate(map(tuple, x)):
        seen[values] = seen.get(values, 0) + 1
        if seen[values] <= copies:
            expected.append(row)
    assert make_gallery(x, copies).kept.tolist() == expected


def test_rows_that_only_look_equal_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one key that differ, in pieces of a few rows."""
    monkeypatch.setattr(blocked_distances, "_ROWS", 3)
    x = np.zeros((40, 6), np.float32)
    x[::2, 0] = np.float32(1e-45)  # the key of these is 0 as well, or nearly
    assert set(make_gallery(x, 1).kept) >= {0, 1}


def test_columns_of_rows_that_were_left_out() -> None:
    x = normal(6, 3)
    x[3] = x[1]
    gallery = make_gallery(x, 1)
    assert gallery.kept.tolist() == [0, 1, 2, 4, 5]
    assert gallery.columns_of(np.arange(6)).tolist() == [0, 1, 2, -1, 3, 4]
    x[5] = x[0]
    assert make_gallery(x, 1).columns_of(np.array([5, 4])).tolist() == [-1, 3]


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 64, 2040, 2041, 5000])
def test_what_is_true_is_counted_in_each_row(columns: int) -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3, 1.0):
        drawn = rng.random((5, columns)) < share
        for is_counted in (drawn, np.asfortranarray(drawn)):
            counts = blocked_distances.count_in_rows(is_counted)
            assert counts.tolist() == [sum(map(bool, row)) for row in drawn]


def test_rows_of_different_labels_are_not_equal() -> None:
    x, labels = np.zeros((6, 2), np.float32), np.array([1, 0, 1, 0, 1, 2])
    assert blocked_distances.without_surplus(x, 1, labels).tolist() == [0, 1, 5]
    assert blocked_distances.without_surplus(x, 2, labels).tolist() == [0, 1, 2, 3, 5]
