"""Plots, read back: what is drawn, where, and that nothing hides anything."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from embedding_learning import plots
from embedding_learning.errors import DataError, UsageError
from embedding_learning.plots import canvas, tsne
from embedding_learning.plots import distance_histograms as distances
from embedding_learning.plots import query_gallery as gallery
from embedding_learning.plots import run_curves as curves

NASTY = ["a" * 4000, "日本語 🐦", "$\\frac{$", "--><b>&", "line\nbreak", "\ud800", "", "\x00"]


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    """A plot is drawn without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        yield


@pytest.fixture(autouse=True)
def no_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressing a picture takes longer than reading a large file."""
    monkeypatch.setattr(canvas, "_PNG_COMPRESSION", 0)


@pytest.fixture()
def small_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps that are quick to draw and to search."""
    monkeypatch.setattr(tsne, "_PHOTOGRAPHS", 800)
    monkeypatch.setattr(tsne, "_POINTS", 500)


class Thumbnails:
    """Each image one color of its own; remembers which were asked for."""

    def __init__(self, height: int = 12, width: int = 12) -> None:
        self.asked: list[int] = []
        self._shape = (height, width, 3)

    @staticmethod
    def color(row: int) -> tuple[int, int, int]:
        """Differs for rows below 8,000, and from what is drawn around photographs."""
        return 10 + row % 20 * 10, 10 + row // 20 % 20 * 10, 5 + row // 400 % 20 * 10

    def __call__(self, row: int) -> np.ndarray:
        self.asked.append(int(row))
        return np.full(self._shape, self.color(int(row)), np.uint8)


def read(path: Path) -> np.ndarray:
    """RGB pixels of a PNG file."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None
    return image[:, :, ::-1]


def where(image: np.ndarray, row: int) -> np.ndarray:
    """Pixels (y, x) in the color of the row's thumbnail."""
    red, green, blue = Thumbnails.color(row)
    return np.argwhere((image[..., 2] == blue) & (image[..., 1] == green) & (image[..., 0] == red))


def texts(path: Path) -> list[str]:
    """Returns the texts of an SVG: the letters are shapes, and comments hold the text."""
    return [unescape(text) for text in re.findall("<!-- (.*?) -->", path.read_text("utf-8"))]


def scattered(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(count, 2))


# The map of photographs


@pytest.mark.slow
@pytest.mark.usefixtures("small_map")
@pytest.mark.parametrize("count", [1, 2, 40, 250])
def test_every_photograph_shown_is_whole_and_at_its_place(tmp_path: Path, count: int) -> None:
    points, thumbnails = scattered(count), Thumbnails()
    plots.plot_tsne_photographs(points, thumbnails, str(tmp_path / "a.png"))
    image = read(tmp_path / "a.png")
    assert len(thumbnails.asked) == len(set(thumbnails.asked)) >= 0.9 * count
    places = np.array([where(image, row) for row in thumbnails.asked])
    # All squares of one size: none lies over another.
    side = round(places.shape[1] ** 0.5)
    assert places.shape[1] == side * side >= (800 // 32 - 2) ** 2
    assert (np.ptp(places, axis=1) == side - 1).all()
    if count > 1:
        at = places.mean(axis=1)[:, ::-1]
        shown = points[thumbnails.asked]
        scale = max(np.ptp(at, axis=0)) / max(np.ptp(shown, axis=0))
        error = (at - at.mean(axis=0)) - scale * (shown - shown.mean(axis=0))
        assert np.abs(error).max() < 4 * side
        assert np.abs(error).mean() < side


@pytest.mark.slow
def test_of_very_many_photographs_some_are_shown_large_enough(tmp_path: Path) -> None:
    thumbnails = Thumbnails()
    points = scattered(7000)
    plots.plot_tsne_photographs(points, thumbnails, str(tmp_path / "a.svg"), "Birds")
    # 3,000 pixels for 32 photographs: 93 for each.
    assert 32 * 32 * 0.95 < len(thumbnails.asked) == len(set(thumbnails.asked)) <= 32 * 32
    heading = (
        f"Photographs: {len(thumbnails.asked):,} of 7,000; the others would lie on top of them"
    )
    assert texts(tmp_path / "a.svg") == ["Birds", heading]


def test_photographs_on_one_spot_are_not_piled_up(tmp_path: Path) -> None:
    thumbnails = Thumbnails()
    plots.plot_tsne_photographs(np.zeros((100, 2)), thumbnails, str(tmp_path / "a.png"))
    assert len(thumbnails.asked) == 5 * 5


@pytest.mark.parametrize("grid", [8, 13])
def test_snapping_keeps_to_free_cells_near_the_point(grid: int) -> None:
    points = np.random.default_rng(0).uniform(size=(150, 2)) ** 2
    rows, cells = tsne._assign_cells(points, grid)
    assert len(set(map(tuple, cells))) == len(rows) == len(set(rows))
    assert cells.min() >= 0 and cells.max() < grid
    assert np.abs(cells + 0.5 - points[rows] * grid).max() <= 2.5
    # The points that were left out had no free cell in reach.
    taken = set(map(tuple, cells))
    for row in set(range(150)) - set(rows):
        home = np.clip(np.rint(points[row] * grid - 0.5), 0, grid - 1).astype(int)
        steps = [home + np.array([i, j]) for i in range(-2, 3) for j in range(-2, 3)]
        inside = [tuple(cell) for cell in steps if cell.min() >= 0 and cell.max() < grid]
        assert set(inside) <= taken


def test_a_photograph_keeps_its_shape(tmp_path: Path) -> None:
    plots.plot_tsne_photographs(np.zeros((1, 2)), Thumbnails(30, 60), str(tmp_path / "a.png"))
    height, width = np.ptp(where(read(tmp_path / "a.png"), 0), axis=0) + 1
    assert width == 3000 // 8 - 2
    assert width / 2 == pytest.approx(height, abs=1)


# The map of points


@pytest.fixture()
def names_drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[float, ...]]]:
    """The names on a map of points and their boxes: left, top, right, bottom."""
    drawn = []
    write = canvas.write

    def record_and_write(
        axes: Any, x: float, y: float, text: str, pixels: float, *rest: Any, **how: Any
    ) -> None:
        if how.get("ha") == "center":
            half = canvas.text_width(text, pixels, "bold") / 2
            drawn.append((text, (x - half, y - pixels / 2, x + half, y + pixels / 2)))
        write(axes, x, y, text, pixels, *rest, **how)

    monkeypatch.setattr(canvas, "write", record_and_write)
    return drawn


@pytest.mark.slow
def test_names_stand_apart_and_on_the_page(tmp_path: Path, names_drawn: list[Any]) -> None:
    names = [f"{label:03d}.Some_kind_of_bird_{label}" for label in range(40)]
    plots.plot_tsne_points(scattered(400), np.arange(400) % 40, names, str(tmp_path / "a.png"))
    height, width, _ = read(tmp_path / "a.png").shape
    texts, boxes = zip(*names_drawn)
    assert len(texts) > 30
    assert set(texts) <= {f"Some kind of bird {label}" for label in range(40)}
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert min(left, top) >= 0 and right <= width and bottom <= height
        for other in boxes[:number]:
            assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]


def test_a_name_stands_where_most_of_its_class_is() -> None:
    """A cluster at the left and stragglers far right, between which mean and median lie."""
    rng = np.random.default_rng(0)
    cluster, stragglers = rng.normal(size=(12, 2)), rng.uniform(50, 100, size=(20, 2))
    np.testing.assert_allclose(tsne._densest(np.concatenate([stragglers, cluster])), 0, atol=3)


def test_names_without_room_are_counted(tmp_path: Path, names_drawn: list[Any]) -> None:
    """All classes are on one spot."""
    names = [f"A long name that covers much {label}" for label in range(100)]
    plots.plot_tsne_points(np.zeros((200, 2)), np.arange(200) % 100, names, str(tmp_path / "a.svg"))
    assert 1 <= len(names_drawn) < 50
    left_out = 100 - len(names_drawn)
    heading = f"Images: 200. Classes: 100, {left_out} of them without room for the name"
    assert texts(tmp_path / "a.svg")[-1] == heading


def test_more_than_a_hundred_classes_are_not_named(tmp_path: Path, names_drawn: list[Any]) -> None:
    path = tmp_path / "a.svg"
    names = [f"bird {label}" for label in range(101)]
    plots.plot_tsne_points(scattered(300), np.arange(300) % 101, names, str(path), "Birds")
    assert texts(path) == ["Birds", "Images: 300. Classes: 101, too many to be named"]
    assert names_drawn == []
    plots.plot_tsne_points(scattered(300), np.arange(300) % 3, names, str(path), "Birds")
    assert sorted(name for name, _ in names_drawn) == ["bird 0", "bird 1", "bird 2"]


def test_classes_that_share_a_color_are_far_apart() -> None:
    centers = np.stack(np.meshgrid(range(6), range(6)), axis=-1).reshape(-1, 2).astype(float)
    colors = tsne._far_apart(centers, np.ones(36))
    assert len(np.unique(colors)) == len(tsne._PALETTE)
    distance = np.linalg.norm(centers[:, None] - centers, axis=-1) + 9 * np.eye(36)
    same = colors[:, None] == colors
    assert distance[same].min() >= 2


@pytest.mark.slow
def test_the_points_are_colored_by_class(tmp_path: Path) -> None:
    points = np.repeat([[0.0, 0.0], [1.0, 1.0]], 5, axis=0)
    plots.plot_tsne_points(points, np.repeat([7, 3], 5), [""] * 9, str(tmp_path / "a.png"))
    image = read(tmp_path / "a.png").astype(int)
    dots = [np.argwhere(np.abs(image - _rgb(color)).sum(axis=-1) < 20).mean(axis=0)
            for color in tsne._PALETTE[:2]]  # fmt: skip
    assert abs(dots[0] - dots[1]).min() > 1500
    sides = [np.sign(dot - np.array(image.shape[:2]) / 2).tolist() for dot in dots]
    # Of equal classes the first has the first color: 3, the second half.
    assert sides == [[1, 1], [-1, -1]]


def test_points_of_no_known_class_are_gray_and_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(canvas, "save", lambda figure, _: figures.append(figure))
    points, path = np.random.default_rng(0).normal(size=(10, 2)), str(tmp_path / "a.png")
    plots.plot_tsne_points(points, np.repeat([-1, 0], 5), ["wren"], path)
    plots.plot_tsne_points(points, np.full(10, -1), [], path)
    written = [[text.get_text() for text in figure.axes[0].texts] for figure in figures]
    title = "t-SNE of the embeddings"
    assert written == [
        ["wren", title, "Images: 10. Classes: 1"],
        [title, "Images: 10. Classes: 0"],
    ]
    for figure, known in zip(figures, (5, 0)):
        (dots,) = figure.axes[0].collections
        is_gray = (np.round(255 * dots.get_facecolors()[:, :3]) == _rgb(canvas.GRAY)).all(axis=1)
        assert is_gray.tolist() == [True] * (10 - known) + [False] * known


def _rgb(color: str) -> np.ndarray:
    return np.round(255 * np.array(matplotlib.colors.to_rgb(color))).astype(int)


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.zeros((3, 3)), np.full((2, 2), np.inf)])
def test_what_are_no_points_is_refused(tmp_path: Path, points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="points"):
        plots.plot_tsne_photographs(points, Thumbnails(), str(tmp_path / "a.png"))


# Queries and their neighbors


def test_average_precision_follows_the_definition() -> None:
    rng = np.random.default_rng(0)
    right, relevant = rng.random((50, 7)) < 0.4, rng.integers(0, 12, 50)
    for found, row, most in zip(plots.average_precision(right, relevant), right, relevant):
        expected = sum(row[:i].mean() for i in range(1, 8) if row[i - 1])
        if most:
            assert found == pytest.approx(expected / min(most, 7))
        else:
            assert np.isnan(found)


def test_average_precision_is_one_if_all_is_right_that_can_be() -> None:
    right = np.array([[True, True, False], [True, True, True], [False, False, True]])
    found = plots.average_precision(right, np.array([2, 9, 1]))
    assert found == pytest.approx([1.0, 1.0, 1 / 3])


def test_the_best_and_the_worst_queries_are_chosen() -> None:
    scores = np.random.default_rng(0).permutation(30) / 30
    scores[[4, 8]] = np.nan
    groups = plots.choose_queries(scores, np.arange(30), 3, seed=1)
    order = [row for row in np.argsort(scores) if not np.isnan(scores[row])]
    assert groups["Best"].tolist() == order[::-1][:3]
    assert groups["Worst"].tolist() == order[:3]
    chosen = np.concatenate(list(groups.values()))
    assert len(set(chosen)) == 9 and not {4, 8} & set(chosen)


def test_queries_of_a_group_are_of_different_classes() -> None:
    scores, labels = np.arange(30) / 30, np.arange(30) // 10
    groups = plots.choose_queries(scores, labels, 3, seed=1)
    assert groups["Best"].tolist() == [29, 19, 9]
    assert groups["Worst"].tolist() == [0, 10, 20]
    assert sorted(labels[groups["Random"]]) == [0, 1, 2]
    one_class = plots.choose_queries(scores, np.zeros(30), 3, seed=1)
    assert one_class["Best"].tolist() == [29, 28, 27]


def test_a_query_of_a_class_of_its_own_is_not_chosen_twice() -> None:
    groups = plots.choose_queries(np.arange(6) / 6, np.array([0, 0, 0, 0, 0, 1]), 2, seed=1)
    assert groups["Best"].tolist() == [5, 4]
    assert groups["Worst"].tolist() == [0, 1]
    assert sorted(groups["Random"]) == [2, 3]


def test_equal_queries_are_drawn_by_the_seed() -> None:
    chosen = [
        plots.choose_queries(np.ones(100), np.arange(100), 2, seed)["Best"].tolist()
        for seed in (1, 1, 2, 3)
    ]
    assert chosen[0] == chosen[1]
    assert len({tuple(rows) for rows in chosen}) == 3


@pytest.mark.parametrize("count, sizes", [(0, []), (1, [1]), (2, [1, 1]), (4, [2, 1, 1])])
def test_few_queries_are_shared_out(count: int, sizes: list[int]) -> None:
    groups = plots.choose_queries(np.arange(count) / 4, np.zeros(count), 3, seed=1)
    assert [len(rows) for rows in groups.values()] == sizes
    assert len(set(np.concatenate([[], *groups.values()]))) == count


def frame(image: np.ndarray, row: int) -> np.ndarray:
    """The commonest color of the pixels just above a photograph."""
    places = where(image, row)
    top, left = places.min(axis=0)
    above = image[top - 3, left : left + 150]
    colors, counts = np.unique(above, axis=0, return_counts=True)
    return colors[counts.argmax()]


def drawn_gallery(path: Path, **given: Any) -> Thumbnails:
    """Query 0 finds 1 (right), 2 and 3 (wrong); query 4 finds 5 (right)..."""
    thumbnails = Thumbnails()
    labels = np.array([0, 0, 1, 1, 2, 2, 0, 1])
    found = np.zeros((8, 3), int)
    found[0], found[4] = [1, 2, 3], [5, 6, 7]
    distances = np.zeros((8, 3))
    distances[0] = [0.25, 0.5, 1.125]
    groups = {"Best": np.array([0]), "Worst": np.array([4])}
    names = ["001.Green_Jay", "Rock Wren", "Mallard"]
    plots.plot_gallery(groups, found, distances, labels, names, thumbnails, str(path), **given)
    return thumbnails


def test_right_neighbors_are_framed_green_and_wrong_ones_red(tmp_path: Path) -> None:
    thumbnails = drawn_gallery(tmp_path / "a.png")
    assert sorted(thumbnails.asked) == list(range(8))
    image = read(tmp_path / "a.png")
    for row, color in ((0, canvas.INK), (1, "#14803c"), (2, "#d7263d"), (3, "#d7263d"),
                        (5, "#14803c"), (6, "#d7263d")):  # fmt: skip
        np.testing.assert_array_equal(frame(image, row), _rgb(color))
        # The photograph is whole: no frame lies over it.
        assert len(where(image, row)) == 168 * 168
    left = [where(image, row)[:, 1].min() for row in (0, 1, 2, 3)]
    assert left == sorted(left)
    assert where(image, 4)[:, 0].min() > where(image, 3)[:, 0].max()


def test_sign_distance_and_name_are_legend_below(tmp_path: Path) -> None:
    drawn_gallery(tmp_path / "a.svg", title="Birds")
    found = texts(tmp_path / "a.svg")
    assert found[0] == "Birds"
    assert [text for text in found if text in ("Best", "Worst")] == ["Best", "Worst"]
    start = found.index("query")
    assert found[start : start + 8] == ["query", "Green Jay", "✓ 0.250", "Green Jay",
                                        "✗ 0.500", "Rock Wren", "✗ 1.125", "Rock Wren"]  # fmt: skip


def test_queries_may_be_searched_in_a_gallery(tmp_path: Path) -> None:
    """The gallery's image 0 is of class 1, and has thumbnails of its own."""
    queries, searched = Thumbnails(), Thumbnails()
    plots.plot_gallery(
        {"All": np.array([1])},
        np.array([[0, 1], [0, 1]]),
        np.zeros((2, 2)),
        np.array([0, 1]),
        ["jay", "wren"],
        queries,
        str(tmp_path / "a.svg"),
        searched=(np.array([1, 0]), searched),
    )
    assert (queries.asked, searched.asked) == ([1], [0, 1])
    assert texts(tmp_path / "a.svg")[-6:] == ["query", "wren", "✓ 0.000", "wren", "✗ 0.000", "jay"]


def search(path: Path, queries: int, k: int, **given: Any) -> tuple[Thumbnails, Thumbnails]:
    own, found = Thumbnails(), Thumbnails()
    neighbors_found = np.arange(queries * k).reshape(queries, k) + 500
    plots.plot_search_results(
        [f"query{query}.jpg" for query in range(queries)],
        own,
        neighbors_found,
        np.full((queries, k), 0.5),
        [f"{row}.jpg" for row in range(500 + queries * k)],
        found,
        str(path),
        **given,
    )
    return own, found


def test_search_results_are_framed_only_if_they_are_judged(tmp_path: Path) -> None:
    search(tmp_path / "a.png", 1, 2)
    image = read(tmp_path / "a.png")
    assert [tuple(frame(image, row)) for row in (500, 501)] == [tuple(_rgb(canvas.FAINT))] * 2
    search(tmp_path / "a.svg", 1, 2)
    assert texts(tmp_path / "a.svg")[-4:] == ["0.500", "500.jpg", "0.500", "501.jpg"]
    search(tmp_path / "a.svg", 1, 2, right=np.array([[False, True]]))
    assert texts(tmp_path / "a.svg")[-4:] == ["✗ 0.500", "500.jpg", "✓ 0.500", "501.jpg"]


@pytest.mark.parametrize("judged", [None, True])
def test_a_single_neighbor_leaves_room_for_the_line_above(
    tmp_path: Path, judged: bool | None
) -> None:
    right = None if judged is None else np.array([[judged]])
    search(tmp_path / "a.svg", 1, 1, right=right)
    heading = texts(tmp_path / "a.svg")[1]
    assert heading.startswith("Left: the query.") and heading.endswith(".")


@pytest.mark.slow
def test_many_neighbors_stand_on_further_lines(tmp_path: Path) -> None:
    search(tmp_path / "a.png", 2, 25)
    image = read(tmp_path / "a.png")
    places = np.array([where(image, row) for row in range(500, 550)])
    assert places.shape[1] == 168 * 168
    _, lengths = np.unique(places[:, :, 0].min(axis=1), return_counts=True)
    assert lengths.tolist() == [10, 10, 5, 10, 10, 5]


def test_a_page_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "_MOST_LINES", 3)
    own, found = search(tmp_path / "a.svg", 5, 2)
    assert (own.asked, len(found.asked)) == ([0, 1, 2], 6)
    assert "2 further queries are not shown." in texts(tmp_path / "a.svg")[1]
    own, found = search(tmp_path / "a.svg", 2, 70)
    assert (own.asked, len(found.asked)) == ([0], 30)


# Curves


def record(kind: str, epoch: Any, **values: Any) -> dict[str, Any]:
    return {"kind": kind, "epoch": epoch, **values}


RUN = [
    record("evaluation", None, **{"recall@1": 0.25, "map@r": 0.125, "seconds": 7.0}),
    record("interval", 0, batch=20, loss=3.0, beta_min=1.0, beta_median=1.2, beta_max=1.5),
    record("interval", 0, batch=40, loss=2.0, beta_min=1.0, beta_median=1.2, beta_max=1.5),
    record("epoch", 0, learning_rate=1e-4, learning_rate_beta=0.1),
    record("evaluation", 0, **{"recall@1": 0.5, "map@r": 0.25}),
]


def lines_of(panel: Any, records: list[Any], batches: float, first: float = 0) -> dict[str, Any]:
    found = curves._lines(panel, records, batches, first)
    return {name: (at.tolist(), values.tolist()) for name, (at, values) in found.items()}


def test_values_stand_at_the_number_that_the_log_gives_their_epoch() -> None:
    """An epoch ends there; it starts at one less."""
    loss, *_ = curves._TRAINING
    assert lines_of(loss, RUN, 40) == {"loss": ([-0.5, 0.0], [3.0, 2.0])}
    evaluations = [r for r in RUN if r["kind"] == "evaluation"]
    recalls, others = curves._metric_panels(evaluations)
    assert lines_of(recalls, evaluations, 40) == {"recall@1": ([-1.0, 0.0], [0.25, 0.5])}
    assert lines_of(others, evaluations, 40) == {"map@r": ([-1.0, 0.0], [0.125, 0.25])}
    later = [RUN[0], record("evaluation", 5, **{"recall@1": 0.5})]
    assert lines_of(recalls, later, 40, 5) == {"recall@1": ([4.0, 5.0], [0.25, 0.5])}
    assert (dict(recalls.values), dict(others.values)) == (
        {"recall@1": "Recall@1"},
        {"map@r": "MAP@R"},
    )


def test_metrics_are_named_in_the_curves_as_papers_write_them() -> None:
    names = ["recall@1", "precision@2", "cmc@4", "map@10", "map@r", "r-precision", "nmi"]
    recalls, others = curves._metric_panels([record("evaluation", 0, **dict.fromkeys(names, 0.5))])
    assert dict(recalls.values) == {"recall@1": "Recall@1", "cmc@4": "CMC@4"}
    expected = ["Precision@2", "MAP@10", "MAP@R", "R-precision", "NMI"]
    assert list(others.values.values()) == expected


@pytest.mark.slow
def test_a_panel_is_drawn_for_what_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    plots.plot_run_curves(RUN, str(path), "Birds")
    titles = ["Recall on the test images", "Other metrics", "Training loss, mean of a batch",
              "Beta over the classes", "Learning rate"]  # fmt: skip
    found = texts(path)
    assert found[0] == "Birds"
    assert [text for text in found if text in titles] == titles
    assert not {"Images a second", "Time spent waiting for data"} & set(found)
    assert {"network", "beta", "median", "range"} <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "epochs, ticks",
    [
        (range(1), ["start", "0"]),
        (range(3), ["start", "0", "1", "2"]),
        (range(5, 8), ["4", "5", "6", "7"]),
        (range(20), ["0", "2", "4", "6", "8", "10", "12", "14", "16", "18"]),
    ],
)
def test_the_axis_counts_epochs_as_the_log_does(
    tmp_path: Path, epochs: range, ticks: list[str]
) -> None:
    path = tmp_path / "a.svg"
    evaluations = [record("evaluation", epoch, **{"recall@1": 0.5}) for epoch in epochs]
    plots.plot_run_curves(
        [record("evaluation", None, **{"recall@1": 0.25}), *evaluations], str(path)
    )
    found = texts(path)
    assert found[1 : found.index("end of epoch, counted from 0")] == ticks


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{}],
        [{"kind": "interval"}],
        [record("interval", 0, batch=20, loss=float("nan"))],
        [record("interval", "x", batch="y", loss="z")],
        [record("evaluation", 0, **{"recall@1": None, "note": "text", "done": True})],
    ],
)
def test_records_without_values_are_not_drawn(tmp_path: Path, records: Any) -> None:
    with pytest.raises(DataError, match=r"^birds\.run: no values are recorded yet, so nothing"):
        plots.plot_run_curves(records, str(tmp_path / "a.svg"), "birds.run")
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"loss": 0.0},
        {"loss": -1.0},
        {"learning_rate": 0.0, "learning_rate_beta": 0.0},
        {"active_share": 1.0, "waiting_share": 0.0},
        {"beta_min": 1.0},
        {"beta_min": 1.0, "beta_max": 2.0, "beta_median": float("inf")},
        {"images_per_second": 1e12, "positive_distance": 1e-30},
    ],
)
def test_odd_values_are_drawn(tmp_path: Path, values: dict[str, float]) -> None:
    plots.plot_run_curves([record("interval", 0, batch=20, **values)], str(tmp_path / "a.png"))
    image = read(tmp_path / "a.png")
    assert (np.ptp(image, axis=-1) > 50).any() or "beta_min" in values


def test_many_metrics_are_shared_among_panels(tmp_path: Path) -> None:
    metrics = {f"recall@{k}": k / 99 for k in range(1, 16)}
    panels = curves._metric_panels([record("evaluation", 0, **metrics)])
    assert [len(panel.values) for panel in panels] == [7, 7, 1]
    plots.plot_run_curves([record("evaluation", 0, **metrics)], str(tmp_path / "a.svg"))
    assert {f"Recall@{k}" for k in range(1, 15)} <= set(texts(tmp_path / "a.svg"))


# Distances


PANELS = ("All negative pairs", "Sampled negatives", "Variance of")


def counted(epoch: Any = 0, **changes: Any) -> dict[str, Any]:
    """A record of pairs: all negatives in one bin, those drawn and the positives in two others."""
    histograms = {
        name: [100 * (bin == place) for bin in range(80)]
        for name, place in (("negatives", 56), ("drawn", 40), ("positives", 20))
    }
    values = {"dimension": 128, "cutoffs": [0.5, 1.4], **histograms, **changes}
    return record("distances", epoch, batch=20, **values)


def legend_below(path: Path, heading: str) -> list[str]:
    """Returns the texts from a panel's title to the next panel, without the axes."""
    of_axes = r"[\d.]+|distance"
    found = [text for text in texts(path) if not re.fullmatch(of_axes, text)]
    starts = [n for n, text in enumerate(found) if text.startswith(PANELS)]
    (start,) = (n for n in starts if found[n].startswith(heading))
    return found[start + 1 : min([n for n in starts if n > start], default=len(found))]


@pytest.mark.slow
def test_distances_of_the_first_and_the_last_epoch_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    found = [counted(1, drawn=None), *RUN, *map(counted, (3, 4, 7, 7)), counted(9, drawn=[])]
    plots.plot_distances(found, str(path), "Birds")
    assert texts(path)[0] == "Birds"
    assert legend_below(path, "All negative") == ["epoch 3", "epoch 7", "q(D), 128 dimensions"]
    drawn = [
        "all, epoch 7",
        "positives, epoch 7",
        "sampled, epoch 3",
        "sampled, epoch 7",
        "cutoffs",
    ]
    assert legend_below(path, "Sampled negatives") == drawn
    noises = [f"noise, σ = {noise}" for noise in ("0.01", "0.02", "0.05", "0.1")]
    assert legend_below(path, "Variance") == [*noises, "sampled, epoch 7"]
    assert "Variance of the gradient's direction, 128 dimensions" in texts(path)
    plots.plot_distances([counted(3, cutoffs=[])], str(path), "Birds")
    assert legend_below(path, "All negative") == ["epoch 3", "q(D), 128 dimensions"]
    drawn = ["all, epoch 3", "positives, epoch 3", "sampled, epoch 3"]
    assert legend_below(path, "Sampled negatives") == drawn


def test_an_epochs_histograms_are_added_up_and_have_an_area_of_1() -> None:
    half = counted(1, drawn=[0] * 79 + [300])
    found = distances._sum_of_epoch([counted(0), half, counted(1)], 1)
    assert found.epoch == 1
    assert (found.negatives[56], found.positives[20]) == (200, 200)
    assert (found.drawn[40], found.drawn[79], found.drawn.sum()) == (100, 300, 400)
    density = distances._density(found.drawn)
    assert density[79] == pytest.approx(0.75 * 40)
    assert density.sum() * 2 / 80 == pytest.approx(1)
    assert distances._density(np.zeros(80)).tolist() == [0] * 80


# What no run records as distances.
INVALID: list[dict[str, Any]] = [
    {"epoch": None},
    {"epoch": True},
    {"epoch": -1},
    {"dimension": 0},
    {"dimension": 1e9},
    {"dimension": 10**40},
    {"cutoffs": None},
    {"cutoffs": ["0.5"]},
    {"cutoffs": [float("nan")]},
    {"cutoffs": [1e300]},
    {"drawn": None},
    {"drawn": [1] * 79},
    {"positives": [1.5] * 80},
    {"negatives": [[1]] * 80},
    {"negatives": [-1] * 80},
    {"negatives": [10**400] * 80},
    {"kind": "interval"},
]


@pytest.mark.parametrize("changes", INVALID)
def test_distances_that_no_run_records_are_not_drawn(tmp_path: Path, changes: Any) -> None:
    with pytest.raises(DataError, match=r"^birds\.run: no distances are recorded, so nothing"):
        plots.plot_distances([{**counted(), **changes}], str(tmp_path / "a.svg"), "birds.run")
    assert os.listdir(tmp_path) == []


def test_distances_that_no_run_records_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    invalid = [{**counted(4), **changes} for changes in INVALID]
    plots.plot_distances([counted(3), *invalid], str(path))
    assert legend_below(path, "All negative") == ["epoch 3", "q(D), 128 dimensions"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"dimension": 1, "drawn": [0] * 80, "negatives": [0] * 80, "positives": [0] * 80},
        {"dimension": 2, "cutoffs": [0.0, 2.0]},
        {"dimension": 2**31 - 1, "cutoffs": [1], "drawn": [2**31 - 1] * 80},
    ],
)
def test_odd_distances_are_drawn(tmp_path: Path, changes: Any) -> None:
    path = tmp_path / "a.svg"
    plots.plot_distances([counted(0, **changes), counted(2**31 - 1, **changes)], str(path))
    has_density = changes["dimension"] != 1
    assert len(legend_below(path, "All negative")) == 2 + has_density


def test_what_is_drawn_lies_at_its_distance(tmp_path: Path) -> None:
    """The second panel's filled bar: all negatives, in the bin from 1.4 to 1.425."""
    plots.plot_distances([counted()], str(tmp_path / "a.png"))
    image = read(tmp_path / "a.png").astype(int)
    # A quarter of the blue on white; nothing else has it.
    y, x = np.nonzero(np.abs(image - (191, 220, 236)).max(axis=-1) <= 4)
    in_panel = (x > 90) & (x < 920) & (y > 590) & (y < 920)
    left, wide = 90, 1250 - 90 - 330
    at = (x[in_panel] - left) / wide * 2
    assert in_panel.sum() > 1000
    assert at.min() > 1.395 and at.max() < 1.43


@pytest.mark.slow
def test_the_curves_of_a_run_do_not_change_by_its_distances(tmp_path: Path) -> None:
    plots.plot_run_curves(RUN, str(tmp_path / "a.svg"))
    among = [RUN[0], RUN[1], counted(0), RUN[2], counted(0), *RUN[3:]]
    plots.plot_run_curves(among, str(tmp_path / "b.svg"))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


# Text and files


@pytest.mark.slow
@pytest.mark.usefixtures("small_map")
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_any_name_can_be_drawn(tmp_path: Path, suffix: str) -> None:
    path, title, count = str(tmp_path / f"a.{suffix}"), "$\\frac{$ \ud800" + "W" * 9999, len(NASTY)
    rows, thumbnails = np.arange(count), Thumbnails()
    found, distances = rows[:, None], np.zeros((count, 1))
    plots.plot_tsne_photographs(scattered(2), thumbnails, path, title)
    plots.plot_tsne_points(scattered(count), rows, NASTY, path, title)
    groups = {name: rows[number : number + 1] for number, name in enumerate(NASTY)}
    plots.plot_gallery(groups, found, distances, rows, NASTY, thumbnails, path, title)
    plots.plot_search_results(
        NASTY, thumbnails, found, distances, NASTY, thumbnails, path, None, title
    )
    plots.plot_run_curves([record("evaluation", 0, **{name: 0.5 for name in NASTY})], path, title)
    plots.plot_distances([counted()], path, title)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "svg", "PNG"])
def test_the_same_picture_is_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in "ab":
        plots.plot_tsne_points(
            scattered(9), np.arange(9), list("abcdefghi"), str(tmp_path / f"{name}.{suffix}")
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{suffix}", f"b.{suffix}"]
    first, second = (path.read_bytes() for path in tmp_path.iterdir())
    assert first == second
    assert first[:4] == (b"\x89PNG" if suffix.lower() == "png" else b"<?xm")


@pytest.mark.parametrize(
    "name", ["a.jpg", "a", "png", "no/a.png", "folder.png", pytest.param("", id="empty")]
)
def test_a_path_that_cannot_be_written_is_reported_before_drawing(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    thumbnails = Thumbnails()
    path = str(tmp_path / name) if name else ""
    match = "^" + re.escape(path)
    with pytest.raises(UsageError, match=match) as caught:
        plots.plot_tsne_photographs(scattered(5), thumbnails, path)
    assert "\n" not in str(caught.value)
    assert thumbnails.asked == []
    for draw_other in (
        lambda: plots.plot_tsne_points(scattered(1), np.zeros(1, int), ["a"], path),
        lambda: plots.plot_gallery({}, *[np.zeros((1, 1))] * 2, np.zeros(1), [], thumbnails, path),
        lambda: plots.plot_search_results(
            [], thumbnails, *[np.zeros((0, 1))] * 2, [], thumbnails, path
        ),
        lambda: plots.plot_run_curves([], path),
        lambda: plots.plot_distances([], path),
    ):
        with pytest.raises(UsageError, match=match):
            draw_other()
    assert os.listdir(tmp_path) == ["folder.png"]


def test_a_full_disk_leaves_the_former_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.svg"
    plots.plot_run_curves(RUN, str(path))
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UsageError, match=r"a\.svg: cannot be written: No space left on device"):
        plots.plot_run_curves(RUN[:1], str(path))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.svg"]


@pytest.mark.slow
def test_a_users_own_settings_change_nothing(tmp_path: Path) -> None:
    plots.plot_run_curves(RUN, str(tmp_path / "a.svg"))
    own = {"axes.facecolor": "black", "font.size": 40, "svg.fonttype": "none", "lines.marker": "x"}
    with matplotlib.rc_context(own):
        plots.plot_run_curves(RUN, str(tmp_path / "b.svg"))
        assert matplotlib.rcParams["font.size"] == 40
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    "name, title",
    [
        ("001.American_Redstart", "American Redstart"),
        ("Rock_Wren", "Rock Wren"),
        ("3.5_inch", "3.5 inch"),
        ("2001.a", "2001.a"),
        ("001.", "001."),
        ("_", "_"),
        ("", ""),
    ],
)
def test_class_names_are_written_as_a_person_would(name: str, title: str) -> None:
    assert canvas.class_title(name) == title


@pytest.mark.parametrize("text", ["Black and white Warbler", "W" * 100, "i" * 5000, "é 日 " * 40])
@pytest.mark.parametrize("width", [30, 150, 400])
def test_text_is_cut_to_its_width_and_not_more(text: str, width: int) -> None:
    found = canvas.fitted(text, 20, width)
    assert canvas.text_width(found, 20) <= width
    if found != canvas.drawable(text):
        assert found.endswith("…")
        longer = canvas.drawable(text)[: len(found) + 1] + "…"
        assert canvas.text_width(longer, 20) > width


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Black and white Warbler", ["Black and white", "Warbler"]),
        ("Mallard", ["Mallard"]),
        ("Horned_Puffin_0055.jpg", ["Horned_Puffin_", "0055.jpg"]),
        ("", [""]),
    ],
)
def test_names_are_broken_at_spaces_or_signs(text: str, expected: list[str]) -> None:
    assert canvas.wrapped(text, 19, 168, 2) == expected


@pytest.mark.parametrize("text", ["a" * 200, "Black and white " * 9, "a_" * 90])
def test_a_broken_name_loses_nothing_but_its_end(text: str) -> None:
    lines = canvas.wrapped(text, 19, 168, 3)
    assert len(lines) == 3
    assert all(canvas.text_width(line, 19) <= 168 for line in lines)
    together = "".join(lines).replace(" ", "")
    assert together.endswith("…")
    assert text.replace(" ", "").startswith(together[:-1])
    assert canvas.wrapped(text, 19, 1, 2) is not None


@pytest.fixture
def typefaces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Returns a function that lets plots use these typefaces alone."""

    def forget() -> None:
        for function in (canvas.font, canvas._characters, canvas._warn_of_script):
            function.cache_clear()

    def set_typefaces(*names: str) -> None:
        monkeypatch.setattr(canvas, "_TYPEFACES", names)
        forget()

    yield set_typefaces
    forget()


def test_scripts_without_a_typeface_cause_one_warning_each(
    typefaces: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    typefaces("DejaVu Sans")
    assert canvas.drawable("紅鹎 Wren Ямал") == "�� Wren Ямал"
    for text in ("紅鹎", "ひ", "한", "ก", "\U0010fffd", "🐦", "紅"):
        canvas.drawable(text)
    scripts = {"CJK": "cjk", "HIRAGANA": "cjk", "HANGUL": "cjk", "THAI": "unifont"}
    packages = {"cjk": "fonts-noto-cjk", "unifont": "fonts-unifont"}
    assert caplog.messages == [
        f"Plots: no installed typeface has {script} characters, which are drawn as �; Debian's "
        f"package {packages[package]} brings one."
        for script, package in scripts.items()
    ]


def write_typeface(path: Path, family: str, character: str) -> None:
    """A typeface with one character, a square as wide as the text is high."""
    pen = TTGlyphPen(None)
    for number, corner in enumerate([(100, 0), (100, 800), (900, 800), (900, 0)]):
        (pen.lineTo if number else pen.moveTo)(corner)
    pen.closePath()
    empty = TTGlyphPen(None).glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(character): "square"})
    builder.setupGlyf({".notdef": empty, "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "square": (1000, 100)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.mark.slow
def test_an_installed_typeface_draws_what_the_first_lacks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    typefaces: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Matplotlib warns, which is an error here, where no typeface of the text has a character."""
    write_typeface(tmp_path / "test.ttf", "Test CJK", "鳥")
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", list(manager.ttflist))
    manager.addfont(tmp_path / "test.ttf")
    manager._findfont_cached.cache_clear()
    typefaces("DejaVu Sans", "Test CJK", "Of Another System")
    assert canvas.families() == ["DejaVu Sans", "Test CJK"]
    assert canvas.drawable("a鳥") == "a鳥"
    assert canvas.text_width("鳥鳥", 100) - canvas.text_width("鳥", 100) == pytest.approx(
        100, abs=1
    )
    plots.plot_tsne_points(np.zeros((1, 2)), np.array([0]), ["鳥"], str(tmp_path / "a.png"))
    assert caplog.messages == []


def test_characters_without_a_typeface_are_marked() -> None:
    assert canvas.drawable("Zoé\n\tΑθηνά\u0300 x\ue123y\U0010fffd") == "Zoé Αθηνά\u0300 x�y�"


PAIRS = [(loss, sampling) for loss in ("margin", "triplet") for sampling in ("hard", "random")]


def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, panels: Any, caption: str = "") -> Any:
    """The figure that is saved."""
    figures = []
    save = canvas.save
    monkeypatch.setattr(canvas, "save", lambda f, path: (figures.append(f), save(f, path)))
    plots.plot_comparison(panels, str(tmp_path / "spreads.png"), caption)
    return figures[0]


def test_error_bars_are_the_sample_deviation_around_the_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    panels = {title: {pair: rng.random(3).tolist() for pair in PAIRS} for title in "ab"}
    figure = drawn(monkeypatch, tmp_path, panels)
    assert [axes.get_title(loc="left") for axes in figure.axes[1:]] == ["a", "b"]
    ends = []
    for axes, values in zip(figure.axes[1:], panels.values()):
        bars = [container.lines for container in axes.containers]
        # A sampling after the other, each over the losses.
        in_order = [values[loss, s] for s in ("hard", "random") for loss in ("margin", "triplet")]
        for (mark, _, (bar,)), some in zip(bars, in_order):
            mean = sum(some) / 3
            deviation = (sum((x - mean) ** 2 for x in some) / 2) ** 0.5
            assert mark.get_ydata() == pytest.approx([mean])
            (bottom, top) = bar.get_segments()[0][:, 1]
            assert (bottom, top) == pytest.approx((mean - deviation, mean + deviation))
            ends += [bottom, top, *some]
        assert len(bars) == len(in_order)
        names = [label.get_text() for label in axes.get_xticklabels()]
        assert names == ["margin", "triplet"]
        # Marks of a loss stand around its name, apart from each other.
        at = [mark.get_xdata()[0] for mark, *_ in bars]
        assert [round(x) for x in at] == [0, 1, 0, 1] and len(set(at)) == 4
    for axes in figure.axes[1:]:
        low, high = axes.get_ylim()
        assert low < min(ends) and max(ends) < high
    legend = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert legend == ["hard", "random"]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [[], [0.5], [0.5, 0.5]])
def test_few_seeds_are_drawn_without_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: list[float]
) -> None:
    panels = {"a": {pair: seeds if pair == PAIRS[0] else [] for pair in PAIRS}}
    figure = drawn(monkeypatch, tmp_path, panels, "x" * 4000 + "\n$\\frac{$")
    bars = [container.has_yerr for container in figure.axes[1].containers]
    assert bars == [len(seeds) > 1][: len(seeds)]
    assert read(tmp_path / "spreads.png").shape[1] == 1080
    figure.canvas.draw()
