"""t-SNE maps, drawn with the photographs themselves or with points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patheffects import withStroke

from embedding_learning.plots import canvas
from embedding_learning.plots.canvas import Thumbnail

# Pixels of a map's longer side, and of the text above it.
_PHOTOGRAPHS, _POINTS = 3000, 2000
_PHOTOGRAPHS_TEXT, _POINTS_TEXT = 60, 40
_HEADING = 2.75  # height of the heading, in heights of the text
_BORDER = 30
# Photographs along the longer side: from few large ones to so many that birds can just be
# distinguished when the whole map is on a screen.
_GRIDS = (8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32)
# The share of photographs that the grid should show.
_ENOUGH = 0.9
# Cells that a photograph may be moved if the cell of its point is taken.
_REACH = 2
# If there are more classes, none is named: the names would cover the points.
_MOST_NAMES = 100
_NAME = 26  # pixels
# The name of a class with fewer points is written below them, not on them.
_FEW = 10
# Dark enough for small points on white; the first ones differ most.
_PALETTE = (
    "#1f5fb4", "#e4572e", "#1a9850", "#8e44ad", "#b8860b", "#00a6b4", "#c51b7d", "#7f4f24",
    "#66a61e", "#d7263d", "#3d348b", "#f08c00", "#2f6b4f", "#e07ab0", "#5b6c8f", "#6ba4e7",
    "#a3a300", "#8c1c13",
)  # fmt: skip
# The number of points of a class that are used to find where most are.
_EXAMINED = 500


@canvas.plain_style
def plot_tsne_photographs(
    points: np.ndarray, thumbnail: Thumbnail, path: str, title: str = "t-SNE of the embeddings"
) -> None:
    """Draws the photographs at their points, none over another.

    Each is in the grid cell of its point, or in a free one at most two cells away. If there is no
    free cell, it is left out, and the heading says how many are. The grid is the coarsest that
    shows nine in ten photographs.

    Parameters
    ----------
    points : array (n, 2)
    thumbnail : function
        From a row to RGB pixels (height, width, 3); called only for images that are shown.
    path : str
        The file, 3,000 pixels wide; PNG or SVG by its suffix.
    title : str
        The heading; it should name the images.

    Raises
    ------
    UsageError
        If the file cannot be written.
    """
    canvas.check_plot_path(path)
    rows, cells, grid = _lay_out(_unit_square(points))
    side = _PHOTOGRAPHS // grid
    cells = cells - cells.min(axis=0)
    columns, lines = cells.max(axis=0) + 1
    # Room for the heading even above a single photograph.
    width = max(columns * side, _PHOTOGRAPHS // 2) + 2 * _BORDER
    left = (width - columns * side) // 2
    above = int(_HEADING * _PHOTOGRAPHS_TEXT)
    sheet = canvas.blank(width, lines * side + above + _BORDER)
    for row, (column, line) in zip(rows, cells):
        # A white line keeps neighbors apart.
        canvas.paste(
            sheet, thumbnail(row), left + column * side + 1, above + line * side + 1, side - 2
        )
    figure, axes = canvas.page(width, len(sheet))
    canvas.show(axes, sheet)
    shown = f"Photographs: {len(points):,}"
    if len(rows) < len(points):
        shown = (
            f"Photographs: {len(rows):,} of {len(points):,}; the others would lie on top of them"
        )
    _heading(axes, width, title, shown, _PHOTOGRAPHS_TEXT)
    canvas.save(figure, path)


@canvas.plain_style
def plot_tsne_points(
    points: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    path: str,
    title: str = "t-SNE of the embeddings",
) -> None:
    """Draws a point for each image, colored by class, and each class's name where most points are.

    There are eighteen colors; classes of the same color are far from each other. A name that would
    cover another is moved, with a line to its class, or left out. If there are more than a hundred
    classes, none is named.

    Parameters
    ----------
    points : array (n, 2)
    labels : array (n,)
        The class of each point, an index into the names; -1 is unknown and drawn in gray.
    class_names : sequence of str
    path : str
        The file, 2,000 pixels wide; PNG or SVG by its suffix.
    title : str
        The heading; it should name the images.

    Raises
    ------
    UsageError
        If the file cannot be written.
    """
    canvas.check_plot_path(path)
    margin = 3 * _BORDER
    places = margin + _unit_square(points) * (_POINTS - 2 * margin)
    above = int(_HEADING * _POINTS_TEXT)
    height = int(np.ptp(places[:, 1])) + 2 * margin + above
    places[:, 1] += margin + above - places[:, 1].min()
    classes, members = np.unique(labels, return_inverse=True)
    sizes = np.bincount(members)
    by_class = np.split(np.argsort(members, kind="stable"), np.cumsum(sizes)[:-1])
    centers = np.array([_densest(places[rows]) for rows in by_class])
    is_known = classes >= 0
    colors = np.where(is_known, np.array(_PALETTE)[_far_apart(centers, sizes)], canvas.GRAY)

    figure, axes = canvas.page(_POINTS, height)
    # Many points take fewer bytes as pixels, even in an SVG.
    axes.scatter(
        places[:, 0],
        places[:, 1],
        s=canvas.points(np.clip(420 / np.sqrt(len(points)), 5, 20)) ** 2,
        c=colors[members],
        alpha=0.85,
        linewidths=0,
        rasterized=len(points) > 2000,
    )
    summary = f"Images: {len(points):,}. Classes: {is_known.sum():,}"
    if is_known.sum() > _MOST_NAMES:
        summary += ", too many to be named"
    else:
        names = [canvas.class_title(class_names[c]) for c in classes[is_known]]
        left_out = _write_names(
            axes,
            names,
            colors=list(colors[is_known]),
            centers=centers[is_known],
            sizes=sizes[is_known],
            room=(_POINTS, height),
        )
        summary += f", {left_out} of them without room for the name" if left_out else ""
    _heading(axes, _POINTS, title, summary, _POINTS_TEXT)
    canvas.save(figure, path)


def _heading(axes: Axes, width: int, title: str, below: str, text: int) -> None:
    room = width - 2 * _BORDER
    canvas.write(axes, _BORDER, 1.25 * text, title, text, room, weight="bold")
    canvas.write(axes, _BORDER, 2.25 * text, below, 0.7 * text, room, color=canvas.GRAY)


def _unit_square(points: np.ndarray) -> np.ndarray:
    """Returns the points centered and scaled to fill [0, 1] along the longer side, (n, 2)."""
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"points (n, 2) expected, not {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("the points contain values that are not finite")
    least, most = points.min(axis=0), points.max(axis=0)
    return 0.5 + (points - (least + most) / 2) / (max(most - least) or 1)


def _lay_out(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the shown rows (m,), their cells (column, line) (m, 2), and the cells of a side."""
    for grid in _GRIDS:
        if grid == _GRIDS[-1] or grid * grid >= _ENOUGH * len(points):
            rows, cells = _assign_cells(points, grid)
            if len(rows) >= _ENOUGH * len(points):
                break
    return rows, cells, grid


def _assign_cells(points: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Assigns free cells to points of the unit square, those nearest to a cell's center first.

    Returns the rows that have a cell, (m,), and their cells (column, line), (m, 2).
    """
    at = points * grid - 0.5  # cell (column, line) has its center there
    home = np.clip(np.rint(at), 0, grid - 1).astype(int)
    reach = np.arange(-_REACH, _REACH + 1)
    steps = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2)
    near = home[:, None] + steps
    distance = np.square(near - at[:, None]).sum(axis=-1)
    distance[((near < 0) | (near >= grid)).any(axis=-1)] = np.inf
    choices = np.argsort(distance, axis=1, kind="stable")
    taken = np.zeros((grid, grid), bool)
    rows, cells = [], []
    for row in np.argsort(distance.min(axis=1), kind="stable"):
        for choice in choices[row]:
            column, line = near[row, choice]
            if np.isinf(distance[row, choice]):
                break
            if not taken[column, line]:
                taken[column, line] = True
                rows.append(row)
                cells.append((column, line))
                break
    return np.array(rows), np.array(cells)


def _densest(points: np.ndarray) -> np.ndarray:
    """Returns the point nearest to a quarter of the others; unlike a median it is in a cluster."""
    points = points[:: len(points) // _EXAMINED + 1]
    distance = np.square(points[:, None] - points).sum(axis=-1)
    return points[np.sort(distance, axis=1)[:, len(points) // 4].argmin()]


def _far_apart(centers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns a color for each center, far from others of that color; large classes come first."""
    colors = np.zeros(len(centers), int)
    nearest = np.full((len(centers), len(_PALETTE)), np.inf)
    for center in np.argsort(-sizes, kind="stable"):
        color = colors[center] = nearest[center].argmax()
        distance = np.square(centers - centers[center]).sum(axis=1)
        nearest[:, color] = np.minimum(nearest[:, color], distance)
    return colors


def _write_names(
    axes: Axes,
    names: Sequence[str],
    colors: Sequence[str],
    centers: np.ndarray,
    sizes: np.ndarray,
    room: tuple[int, int],
) -> int:
    """Writes names near their centers, none over another; returns how many had no room."""
    angles = np.arange(0, 2 * np.pi, np.pi / 8)
    ring = np.stack([2 * np.cos(angles), np.sin(angles)], axis=1)  # text is wide
    steps = np.concatenate([np.zeros((1, 2)), *(radius * ring for radius in range(15, 121, 15))])
    boxes = np.zeros((0, 4))  # left, top, right, bottom
    halo = [withStroke(linewidth=canvas.points(7), foreground=canvas.PAPER)]
    for row in np.argsort(-sizes, kind="stable"):
        text = canvas.fitted(names[row], _NAME, room[0] / 4, "bold")
        half = np.array([canvas.text_width(text, _NAME, "bold") / 2 + 6, 0.65 * _NAME])
        most = np.array(room) - half - 10
        # A name may cover some of a cluster's points, but not a few points.
        start = centers[row] + ([0, 1.2 * _NAME] if sizes[row] < _FEW else [0, 0])
        for place in np.clip(
            start + steps, [half[0] + 10, _HEADING * _POINTS_TEXT + half[1]], most
        ):
            box = np.concatenate([place - half, place + half])
            is_clear = (boxes[:, :2] >= box[2:]) | (boxes[:, 2:] <= box[:2])
            if is_clear.any(axis=1).all():
                break
        else:
            continue
        boxes = np.vstack([boxes, box])
        if np.abs(place - start)[1] > _NAME:
            axes.plot(
                *np.stack([centers[row], place]).T, color=canvas.INK, linewidth=canvas.points(1.5)
            )
        dark = 0.6 * np.array(to_rgb(colors[row]))
        style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "path_effects": halo}
        canvas.write(axes, place[0], place[1], text, _NAME, weight="bold", color=dark, **style)
    return len(names) - len(boxes)
