"""Rows of a query and its nearest neighbors, for a gallery of queries or for search results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Optional, Union

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from embedding_learning.plots import canvas
from embedding_learning.plots.canvas import Thumbnail

# Color, line style and sign say the same, for readers who cannot tell green from red. The two
# colors also differ in lightness.
_Look = tuple[str, Union[str, tuple[int, tuple[float, float]]], str]
_QUERY: _Look = (canvas.INK, "solid", "")
_RIGHT: _Look = ("#14803c", "solid", "\N{CHECK MARK}")
_WRONG: _Look = ("#d7263d", (0, (3.0, 1.5)), "\N{BALLOT X}")

# Pixels.
_SIDE, _GAP, _BORDER = 168, 20, 30
_LINE, _NAME, _SMALL, _HEADING, _TEXT = 25, 19, 24, 34, 40
_TOP = 110
_NAME_LINES = 2
_ROW = _SIDE + (_NAME_LINES + 1) * _LINE + 24
# Neighbors on the line of the query; more are on further lines.
_PER_LINE = 10
# Lines on a page. Queries beyond are not drawn, and the heading says how many.
_MOST_LINES = 40


class _Tile(NamedTuple):
    """An image of a row, and the text below it."""

    thumbnail: Thumbnail
    image: int
    name: str
    distance: Optional[float] = None  # None: the query
    right: Optional[bool] = None  # None: not known


@canvas.plain_style
def plot_gallery(
    groups: Mapping[str, np.ndarray],
    neighbors: np.ndarray,
    distances: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    thumbnail: Thumbnail,
    path: str,
    title: str = "Queries and their nearest neighbors",
    searched: tuple[np.ndarray, Thumbnail] | None = None,
) -> None:
    """Draws a row for each query: the query, then its neighbors, marked as right or wrong.

    A neighbor is right if it is of the query's class.

    Parameters
    ----------
    groups : mapping of str to array
        The queries (rows) below each heading, such as `choose_queries` returns.
    neighbors, distances : arrays (n, k)
        The nearest images of each query, nearest first; only the rows of queries are used. -1
        where there is no image.
    labels : array (n,)
        The index of each image's class in the class names.
    class_names : sequence of str
    thumbnail : function
        From a row to RGB pixels (height, width, 3); called only for drawn images.
    path : str
        The file, PNG or SVG by its suffix.
    title : str
    searched : tuple, optional
        Labels and thumbnails of the images that `neighbors` refers to, if not the queries.

    Raises
    ------
    UsageError
        If the file cannot be written.
    """
    gallery_labels, gallery_thumbnail = searched or (labels, thumbnail)
    names = [canvas.class_title(name) for name in class_names]
    sections = {}
    for heading, queries in groups.items():
        sections[heading] = [
            [
                _Tile(thumbnail, query, names[labels[query]]),
                *(
                    _Tile(
                        gallery_thumbnail,
                        image,
                        names[gallery_labels[image]],
                        distance,
                        bool(gallery_labels[image] == labels[query]),
                    )
                    for image, distance in zip(neighbors[query], distances[query])
                    if image >= 0
                ),
            ]
            for query in queries
        ]
    _draw(sections, path, title)


@canvas.plain_style
def plot_search_results(
    query_names: Sequence[str],
    query_thumbnail: Thumbnail,
    neighbors: np.ndarray,
    distances: np.ndarray,
    names: Sequence[str],
    thumbnail: Thumbnail,
    path: str,
    right: np.ndarray | None = None,
    title: str = "Nearest images",
) -> None:
    """Draws a row for each query: the query, then the images found.

    A page has room for 40 lines of ten neighbors. It says how many queries are not shown.

    Parameters
    ----------
    query_names : sequence of str (q,)
        The text below each query: its class or its file's name.
    query_thumbnail : function
        From a query's number to RGB pixels (height, width, 3).
    neighbors, distances : arrays (q, k)
        The images found, nearest first; -1 where there is no image.
    names : sequence of str
        The text below an image found, by its row.
    thumbnail : function
        From a row of the searched images to RGB pixels.
    path : str
        The file, PNG or SVG by its suffix.
    right : bool array (q, k), optional
        Which images found are right, if that is known.
    title : str

    Raises
    ------
    UsageError
        If the file cannot be written.
    """
    rows = []
    for query, name in enumerate(query_names):
        judged = [None] * len(neighbors[query]) if right is None else right[query].tolist()
        images = zip(neighbors[query], distances[query], judged)
        tiles = [
            _Tile(thumbnail, image, names[image], *how) for image, *how in images if image >= 0
        ]
        rows.append([_Tile(query_thumbnail, query, name), *tiles])
    _draw({"": rows}, path, title)


def _draw(sections: Mapping[str, Sequence[Sequence[_Tile]]], path: str, title: str) -> None:
    """Draws sections of rows of tiles; the first tile of a row is the query."""
    canvas.check_plot_path(path)
    placed, headings, height, left_out = _place_tiles(sections)
    most = max((column for _, column, _ in placed), default=0)
    caption = "Left: the query. Below each neighbor: its distance and its name."
    if any(tile.right is not None for tile, _, _ in placed):
        caption = f"Left: the query. {_RIGHT[2]} right, {_WRONG[2]} wrong, and the distance."
    if left_out:
        caption = f"{left_out:,} further queries are not shown. {caption}"
    # The line above the tiles may be wider than they are.
    line = canvas.text_width(caption, _SMALL)
    width = max(_left(most) + _SIDE + _BORDER, 5 * _SIDE, math.ceil(line) + 2 * _BORDER + 1)
    sheet = canvas.blank(width, height + _BORDER)
    for tile, column, top in placed:
        canvas.paste(sheet, tile.thumbnail(tile.image), _left(column), top, _SIDE)

    figure, axes = canvas.page(width, len(sheet))
    canvas.show(axes, sheet)
    room = width - 2 * _BORDER
    canvas.write(axes, _BORDER, 50, title, _TEXT, room, weight="bold")
    canvas.write(axes, _BORDER, 88, caption, _SMALL, room, color=canvas.GRAY)
    for heading, bottom in headings:
        canvas.write(axes, _BORDER, bottom, heading, _HEADING, room, weight="bold")
    for tile, column, top in placed:
        _caption(axes, tile, _left(column), top)
    canvas.save(figure, path)


def _place_tiles(
    sections: Mapping[str, Sequence[Sequence[_Tile]]],
) -> tuple[list[tuple[_Tile, int, int]], list[tuple[str, int]], int, int]:
    """Returns tiles with column and top, headings with bottom, the height, and omitted rows."""
    placed, headings, left_out = [], [], 0
    top, lines = _TOP, 0
    for heading, rows in sections.items():
        if heading and lines < _MOST_LINES:
            top += 2 * _LINE
            headings.append((heading, top))
            top += _LINE
        for query, *neighbors in rows:
            neighbors = neighbors[: _PER_LINE * _MOST_LINES]
            needed = max(1, -(-len(neighbors) // _PER_LINE))
            if lines and lines + needed > _MOST_LINES:
                left_out += 1
                continue
            placed.append((query, 0, top))
            for rank, tile in enumerate(neighbors):
                line, column = divmod(rank, _PER_LINE)
                placed.append((tile, column + 1, top + line * _ROW))
            top += needed * _ROW
            lines += needed
    return placed, headings, top, left_out


def _left(column: int) -> int:
    """Returns the left side of a column in pixels; the query has a wider gap."""
    return _BORDER + column * (_SIDE + _GAP) + (_GAP if column else 0)


def _caption(axes: Axes, tile: _Tile, left: int, top: int) -> None:
    """Draws the frame of a tile and the text below it."""
    color, line, sign = _QUERY
    if tile.right is not None:
        color, line, sign = _RIGHT if tile.right else _WRONG
    elif tile.distance is not None:
        color = canvas.FAINT
    # The frame is around the photograph, not over it.
    frame = Rectangle((left - 3, top - 3), _SIDE + 6, _SIDE + 6, fill=False)
    frame.set(edgecolor=color, linewidth=canvas.points(6), linestyle=line)
    axes.add_patch(frame)
    below = top + _SIDE + _LINE + 3
    if tile.distance is not None:
        ink = color if tile.right is not None else canvas.GRAY
        text = f"{sign} {tile.distance:.3f}".strip()
        canvas.write(axes, left, below, text, _NAME, weight="bold", color=ink)
    else:
        canvas.write(axes, left, below, "query", _NAME, weight="bold")
    for number, text in enumerate(canvas.wrapped(tile.name, _NAME, _SIDE, _NAME_LINES), 1):
        canvas.write(axes, left, below + number * _LINE, text, _NAME, _SIDE)


def average_precision(right: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Computes average precision at k, (q,): how early right neighbors are among the k nearest.

    It is the precision at the rank of each right neighbor, summed and divided by min(k, relevant):
    1 if as many as possible are right. NaN where nothing is relevant.

    Parameters
    ----------
    right : bool array (q, k)
        Whether each neighbor is of the query's class, nearest first.
    relevant : array (q,)
        The number of images of the query's class that can be found.
    """
    right = np.asarray(right, bool)
    most = np.minimum(relevant, right.shape[1])
    precision = right.cumsum(axis=1) / np.arange(1, right.shape[1] + 1)
    total = (precision * right).sum(axis=1)
    return np.where(most > 0, total / np.maximum(most, 1), np.nan)


def choose_queries(
    scores: np.ndarray, labels: np.ndarray, count: int, seed: int
) -> dict[str, np.ndarray]:
    """Chooses the best, the worst and some random queries, up to `count` of each, none twice.

    Of equal scores a random one is chosen. Each group takes queries of different classes while it
    can; otherwise the best queries might all be of one class.

    Parameters
    ----------
    scores : array (n,)
        The score of each query, such as `average_precision`; queries with NaN are left out.
    labels : array (n,)
        The class of each query.
    count : int
    seed : int

    Returns
    -------
    dict
        Rows by "Best", "Worst" and "Random"; empty groups are left out.
    """
    order = np.random.default_rng(seed).permutation(len(scores))
    order = order[~np.isnan(scores[order])]
    rising = order[np.argsort(scores[order], kind="stable")]
    share = [min(count, (len(order) + 2 - group) // 3) for group in range(3)]
    best = _of_many_classes(rising[::-1], labels, share[0])
    worst = _of_many_classes(rising[~np.isin(rising, best)], labels, share[1])
    rest = order[~np.isin(order, np.concatenate([best, worst]))]
    random = _of_many_classes(rest, labels, share[2])
    groups = {"Best": best, "Worst": worst, "Random": random}
    return {name: rows for name, rows in groups.items() if len(rows)}


def _of_many_classes(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Returns the first row of each class, then others until there are `count`, in order."""
    _, firsts = np.unique(labels[rows], return_index=True)
    chosen = np.sort(firsts)[:count]
    others = np.setdiff1d(np.arange(len(rows)), firsts)[: count - len(chosen)]
    return rows[np.sort(np.concatenate([chosen, others]))]
