"""A comparison's Recall@1: the mean over the seeds with its deviation, and each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from embedding_learning.plots import canvas

# Recall@1 of each finished seed, by loss and sampling.
Values = Mapping[tuple[str, str], Sequence[float]]

# Distinct also to the color-blind (Okabe and Ito's), and by their marks.
_COLORS = ("#0072b2", "#d55e00", "#008f68", "#b5518f", "#8a6d00", "#3f9bd1", "#1b1f24")
_MARKS = "osD^vPX"
_WIDE, _HIGH = 800, 560  # pixels of a panel
_LEGEND, _HEAD, _MARGIN = 280, 80, 30
_TEXT, _CAPTION, _LINE = 20, 17, 26
_MOST_LINES = 4  # that one line of the caption takes
_SPREAD = 0.7  # of the room between two losses that their samplings take


@canvas.plain_style
def plot_comparison(panels: Mapping[str, Values], path: str, caption: str = "") -> None:
    """Draws a panel for each kind of values, over the losses and in a color for each sampling.

    A mark is the mean over the seeds, its bar the sample standard deviation to both sides, where
    there are two seeds at least; the faint marks beside it are the seeds.

    Parameters
    ----------
    panels : mapping
        By title; in each, the values of every seed by loss and sampling, or an empty sequence. All
        have the same keys.
    path : str
        The file, PNG or SVG by its suffix.
    caption : str
        Lines below, wrapped as need be.

    Raises
    ------
    UsageError
        If the file cannot be written.
    """
    canvas.check_plot_path(path)
    width = _WIDE * len(panels) + _LEGEND
    wide = width - 2 * _MARGIN
    told = [
        part
        for line in caption.splitlines()
        for part in canvas.wrapped(line, _CAPTION, wide, _MOST_LINES)
    ]
    height = _HEAD + _HIGH + _LINE * len(told) + _MARGIN
    figure, page = canvas.page(width, height)
    canvas.write(page, _MARGIN, 50, "Recall@1 by loss and sampling", 32, wide, weight="bold")
    for number, line in enumerate(told):
        top = _HEAD + _HIGH + _LINE * (number + 0.5)
        canvas.write(page, _MARGIN, top, line, _CAPTION, wide, color=canvas.GRAY)
    limits = _limits(panels)
    for number, (title, values) in enumerate(panels.items()):
        left, top, across, high = number * _WIDE + 100, _HEAD + 50, _WIDE - 130, _HIGH - 130
        axes = figure.add_axes(
            (left / width, 1 - (top + high) / height, across / width, high / height)
        )
        _draw(axes, title, values, limits)
    axes.legend(
        prop=canvas.font(_TEXT),
        labelcolor=canvas.INK,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        handlelength=1.2,
    )
    canvas.save(figure, path)


def _limits(panels: Mapping[str, Values]) -> tuple[float, float]:
    """The same for all panels: every seed and every bar, with some room."""
    ends: list[float] = []
    for values in panels.values():
        for some in values.values():
            if some:
                mean, deviation = float(np.mean(some)), _deviation(some)
                ends += [*some, mean - deviation, mean + deviation]
    if not ends:
        return 0.0, 1.0
    room = 0.06 * (max(ends) - min(ends)) or 0.01
    return min(ends) - room, max(ends) + room


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _draw(axes: Axes, title: str, values: Values, limits: tuple[float, float]) -> None:
    losses, samplings = (list(dict.fromkeys(names)) for names in zip(*values))
    small = canvas.font(_TEXT)
    step = _SPREAD / len(samplings)
    for column, sampling in enumerate(samplings):
        color, mark = _COLORS[column % len(_COLORS)], _MARKS[column % len(_MARKS)]
        at = [(column - (len(samplings) - 1) / 2) * step + row for row in range(len(losses))]
        for x, loss in zip(at, losses):
            some = values[loss, sampling]
            if not some:
                continue
            axes.plot(
                [x + step / 3] * len(some),
                some,
                mark,
                color=color,
                alpha=0.35,
                markersize=canvas.points(8),
                markeredgewidth=0,
            )
            axes.errorbar(
                [x],
                [np.mean(some)],
                yerr=[_deviation(some)] if len(some) > 1 else None,
                fmt=mark,
                color=color,
                markersize=canvas.points(12),
                linewidth=canvas.points(3),
                capsize=canvas.points(9),
                capthick=canvas.points(3),
            )
        # Also where nothing of it is finished yet.
        axes.plot([], [], mark, color=color, label=sampling, markersize=canvas.points(12))
    axes.set_title(
        title,
        font=canvas.font(1.25 * _TEXT),
        color=canvas.INK,
        loc="left",
        pad=canvas.points(12),
    )
    axes.set_xticks(range(len(losses)), losses)
    axes.set(xlim=(-0.5, len(losses) - 0.5), ylim=limits)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set(font=small, color=canvas.GRAY)
    axes.grid(axis="y", color=canvas.FAINT, linewidth=canvas.points(1))
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=0, pad=canvas.points(10))
    axes.spines[["top", "right"]].set_visible(False)
