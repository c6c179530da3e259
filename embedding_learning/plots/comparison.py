"""The Recall@1 of a comparison: mean and deviation over the seeds, and each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from embedding_learning.plots import canvas, panels

# Recall@1 of each finished seed, by column and color: the loss and the sampling, or other labels.
Values = Mapping[tuple[str, str], Sequence[float]]

_MARKS = "osD^vPX"
_SIZE, _LEGEND = (800, 560), 280  # pixels of a panel, and of the legend next to the last
_MARK = 60  # pixels of the legend that are not text
_CAPTION, _LINE = 17, 26  # pixels of the caption's text, and of its lines
_MOST_LINES = 4  # that one line of the caption is wrapped to
_SPREAD = 0.7  # share of the room between two columns that their colors take


@canvas.plain_style
def plot_comparison(
    values_by_title: Mapping[str, Values],
    path: str,
    caption: str = "",
    subject: str = "loss and sampling",
) -> None:
    """Draws a panel for each title, with the losses side by side and a color for each sampling.

    Any other pair of labels can replace a loss and a sampling.

    A mark is the mean over the seeds. Its bar is the sample standard deviation to both sides, if
    there are at least two seeds. The faint marks next to it are the seeds.

    Parameters
    ----------
    values_by_title : mapping
        By title, the values of all seeds by loss and sampling; an empty sequence if there are none
        yet. All titles have the same keys; not every loss needs every sampling.
    path : str
        The file, PNG or SVG by its suffix.
    caption : str
        Lines below the panels; long ones are wrapped.
    subject : str
        What is compared, for the heading.

    Raises
    ------
    UsageError
        If the file cannot be written.
    """
    canvas.check_plot_path(path)
    wide = _SIZE[0] * len(values_by_title) + _LEGEND - 2 * panels.BORDER
    caption_lines = [
        part
        for line in caption.splitlines()
        for part in canvas.wrapped(line, _CAPTION, wide, _MOST_LINES)
    ]
    figure, page, all_axes = panels.panel_page(
        f"Recall@1 by {subject}",
        len(values_by_title),
        columns=len(values_by_title),
        size=_SIZE,
        legend=panels.BORDER,
        left=100,
        right=_LEGEND,
        below=_LINE * len(caption_lines) + panels.BORDER,
    )
    for number, line in enumerate(caption_lines):
        top = panels.HEADING + _SIZE[1] + _LINE * (number + 0.5)
        canvas.write(page, panels.BORDER, top, line, _CAPTION, wide, color=canvas.GRAY)
    limits = _limits(values_by_title)
    for axes, (title, values) in zip(all_axes, values_by_title.items()):
        _draw(axes, title, values, limits)
    panels.add_legend(axes, gap=0.02)
    canvas.save(figure, path)


def _limits(values_by_title: Mapping[str, Values]) -> tuple[float, float]:
    """Returns limits for all panels that include every seed and every bar, with some room."""
    ends: list[float] = []
    for values in values_by_title.values():
        for seeds in values.values():
            if seeds:
                mean, deviation = float(np.mean(seeds)), _deviation(seeds)
                ends += [*seeds, mean - deviation, mean + deviation]
    if not ends:
        return 0.0, 1.0
    room = 0.06 * (max(ends) - min(ends)) or 0.01
    return min(ends) - room, max(ends) + room


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _draw(axes: Axes, title: str, values: Values, limits: tuple[float, float]) -> None:
    columns, colors = (list(dict.fromkeys(labels)) for labels in zip(*values))
    step = _SPREAD / len(colors)
    for number, label in enumerate(colors):
        color, mark = panels.COLORS[number % len(panels.COLORS)], _MARKS[number % len(_MARKS)]
        at = [(number - (len(colors) - 1) / 2) * step + place for place in range(len(columns))]
        for x, column in zip(at, columns):
            seeds = values.get((column, label))
            if not seeds:
                continue
            axes.plot(
                [x + step / 3] * len(seeds),
                seeds,
                mark,
                color=color,
                alpha=0.35,
                markersize=canvas.points(8),
                markeredgewidth=0,
            )
            axes.errorbar(
                [x],
                [np.mean(seeds)],
                yerr=[_deviation(seeds)] if len(seeds) > 1 else None,
                fmt=mark,
                color=color,
                markersize=canvas.points(12),
                linewidth=canvas.points(3),
                capsize=canvas.points(9),
                capthick=canvas.points(3),
            )
        # For the legend, even if no seed is finished yet.
        lines = canvas.wrapped(label, panels.TEXT, _LEGEND - _MARK, 2)
        axes.plot([], [], mark, color=color, label="\n".join(lines), markersize=canvas.points(12))
    width = _SIZE[0] / len(columns)
    names = [canvas.fitted(column, panels.TEXT, width) for column in columns]
    axes.set_xticks(range(len(columns)), names, parse_math=False)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=limits)
    panels.set_ticks(axes.yaxis)
    panels.finish_panel(axes, title, grid="y")
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=0, pad=canvas.points(10))
