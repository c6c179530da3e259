"""t-SNE: repeatable, near stays near, and what is asked of odd or many embeddings."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import numpy as np
import pytest

from embedding_learning.plots import projection
from embedding_learning.plots.projection import choose_rows, tsne


def clusters(count: int, classes: int, dimensions: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around well separated centres, and their classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    centres = rng.normal(size=(classes, dimensions))
    x = centres[labels] + 0.1 * rng.normal(size=(count, dimensions))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.slow
def test_images_of_a_class_stay_together() -> None:
    x, labels = clusters(150, 5)
    points = tsne(x, seed=1)
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert points.shape == (150, 2)
    assert np.isfinite(points).all()
    nearest = np.argsort(distance, axis=1)[:, :10]
    assert (labels[nearest] == labels[:, None]).mean() > 0.99


@pytest.mark.slow
def test_the_seed_fixes_the_result() -> None:
    x, _ = clusters(60, 4)
    before = x.copy()
    points = tsne(x, seed=1)
    np.testing.assert_array_equal(points, tsne(x, seed=1))
    assert not np.array_equal(points, tsne(x, seed=2))
    np.testing.assert_array_equal(x, before)


def test_a_bar_shows_the_iterations_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []

    class Bar:
        n = 0

        def update(self, more: int) -> None:
            self.n += more
            shown.append(self.n)

    monkeypatch.setattr(projection, "open_bar", lambda *_: nullcontext(Bar()))
    tsne(clusters(60, 4)[0], seed=1)
    assert shown == sorted(shown)
    assert shown[0] == 50 and len(shown) >= 10
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_few_images_are_apart(count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = tsne(np.eye(5, dtype=np.float32)[:count], seed=1)
    assert points.shape == (count, 2)
    assert len(np.unique(points, axis=0)) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    "x",
    [np.ones((30, 8)), np.repeat(np.eye(2), 15, axis=0), np.arange(9.0)[:, None]],
    ids=["all equal", "two values", "one dimension"],
)
def test_embeddings_of_low_rank_have_points(x: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = tsne(x, seed=1)
    assert np.isfinite(points).all()
    assert len(np.unique(points, axis=0)) == len(x)


@pytest.mark.parametrize(
    "x", [np.zeros((0, 4)), np.zeros((4, 0)), np.zeros(4), np.full((4, 2), np.nan)]
)
def test_what_has_no_map_is_refused(x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="embeddings"):
        tsne(x, seed=1)


def test_no_row_is_left_out_while_there_is_room() -> None:
    np.testing.assert_array_equal(choose_rows(np.arange(50) % 7, 1, most=50), np.arange(50))


def test_few_classes_have_equally_many_rows_as_far_as_they_go() -> None:
    labels = np.repeat([3, 5, 9], [1000, 30, 600])
    rows = choose_rows(labels, seed=1, most=230)
    assert np.bincount(labels[rows])[[3, 5, 9]].tolist() == [100, 30, 100]
    assert (np.diff(rows) > 0).all()
    # At random, not the first ones.
    assert rows.max() > 1100 and np.diff(rows[:100]).max() > 5


def test_of_many_classes_some_are_whole() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(5000) // 5)
    rows = choose_rows(labels, seed=1, most=400)
    counts = np.bincount(labels[rows], minlength=1000)
    assert len(rows) == 400
    assert sorted(np.unique(counts)) == [0, 5]
    assert np.flatnonzero(counts).max() > 500


def test_the_seed_fixes_the_rows() -> None:
    labels = np.arange(3000) // 3
    rows = choose_rows(labels, seed=1, most=100)
    np.testing.assert_array_equal(rows, choose_rows(labels, seed=1, most=100))
    assert not np.array_equal(rows, choose_rows(labels, seed=2, most=100))
