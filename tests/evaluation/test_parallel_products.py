"""Products of BLAS, and the threads that compute them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from embedding_learning.evaluation import parallel_products
from embedding_learning.evaluation.neighbors import find_nearest
from embedding_learning.evaluation.parallel_products import blas_threads, multiply

MANY = parallel_products._MANY


def blas_counts() -> list[int]:
    """The number of threads that each BLAS library may use now."""
    return [library["num_threads"] for library in parallel_products._blas_libraries().info()]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows, columns, inner", [(1, 1, 1), (3, 7, 2), (40, 9, 33)])
def test_products_are_those_of_all_rows(dtype: type, rows: int, columns: int, inner: int) -> None:
    """Whole numbers have exact products."""
    rng = np.random.default_rng(0)
    left, right = (rng.integers(-9, 10, (n, inner)).astype(dtype) for n in (rows, columns))
    product = multiply(left, right)
    expected = [[sum(a * b for a, b in zip(x, y)) for y in right] for x in left]
    np.testing.assert_array_equal(product, expected)
    assert product.dtype == dtype


@pytest.mark.parametrize("distances", [1, MANY])
def test_each_task_is_done_once(distances: int) -> None:
    done: list[int] = []
    with threadpool_limits(3), blas_threads(distances) as run:
        run(done.append, range(500))
        run(done.append, range(500, 520))
    assert sorted(done) == list(range(520))


def test_as_many_threads_work_as_blas_has_and_each_product_takes_one() -> None:
    """The tasks wait for each other, so none would end in fewer threads."""
    together, threads = threading.Barrier(2, timeout=60), set()

    def work(_: int) -> None:
        together.wait()
        threads.add(threading.get_ident())
        counts.update(blas_counts())

    counts: set[int] = set()
    with threadpool_limits(2, user_api="blas"):
        before = blas_counts()
        with blas_threads(MANY) as run:
            run(work, range(2))
        assert counts == {1}
        assert blas_counts() == before
        assert max(before) == 2
    assert len(threads) == 2 and threading.get_ident() not in threads


@pytest.mark.parametrize("distances", [1, MANY])
def test_after_a_failure_no_task_is_begun(distances: int) -> None:
    begun = []

    def work(task: int) -> None:
        begun.append(task)
        if task == 3:
            raise ValueError("on purpose")

    def tasks() -> Iterator[int]:
        yield from range(4)
        # Those that other threads take before the failure is known.
        yield from range(4, 1_000_000)

    with pytest.raises(ValueError, match="on purpose"), blas_threads(distances) as run:
        run(work, tasks())
    assert len(begun) < 1_000_000
    with blas_threads(distances) as run:
        run(begun.append, [-1])
    assert begun[-1] == -1


def test_two_threads_may_search_at_once() -> None:
    x = np.random.default_rng(0).normal(size=(2100, 4)).astype(np.float32)
    expected = find_nearest(x, 2)[1]
    found: list[np.ndarray] = []
    searches = [threading.Thread(target=lambda: found.append(find_nearest(x, 2)[1]))
                for _ in range(2)]  # fmt: skip
    with threadpool_limits(2):
        before = blas_counts()
        for search in searches:
            search.start()
        for search in searches:
            search.join()
        assert blas_counts() == before
    for rows in found:
        np.testing.assert_array_equal(rows, expected)
    assert len(found) == 2
