"""The ROC of a verification: how many pairs of one class and of different ones are accepted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter

from embedding_learning.evaluation.verification import OperatingPoint, Roc
from embedding_learning.plots import canvas, panels

_SIZE, _LEGEND = (1000, 620), 330  # pixels of the panel, and of the legend in it
_LINE, _MARK = panels.COLORS[:2]


@canvas.plain_style
def plot_roc(roc: Roc, points: Sequence[OperatingPoint], path: str, title: str = "ROC") -> None:
    """Draws the true accept rate over the false accept rate, which has a logarithmic axis.

    The axis begins at one pair of different classes. The rates below it are not measured.

    Parameters
    ----------
    roc : Roc
    points : sequence of OperatingPoint
        Marked on the curve, if they accept any pair of different classes.
    path : str
        The file, PNG or SVG by its suffix.
    title : str

    Raises
    ------
    UsageError
        If the file cannot be written.
    """
    canvas.check_plot_path(path)
    page = panels.panel_page(title, count=1, columns=1, size=_SIZE, legend=_LEGEND)
    (axes,) = page.panels
    least = 1 / int(roc.different[-1])
    # A curve of steps, from just below the first false accept.
    axes.plot(
        np.maximum(roc.false_accept_rates, least / 10),
        roc.true_accept_rates,
        color=_LINE,
        linewidth=canvas.points(3),
        drawstyle="steps-post",
        label=f"{int(roc.same[-1]):,} pairs same,\n{int(roc.different[-1]):,} different",
    )
    marked = [point for point in points if point.different]
    axes.plot(
        [point.different * least for point in marked],
        [point.true_accept_rate for point in marked],
        "o",
        color=_MARK,
        markersize=canvas.points(12),
        label="reported TAR",
    )
    # A curve needs some room, even if there is a single pair.
    axes.set(xscale="log", xlim=(min(least, 0.1), 1.0), ylim=(0.0, 1.02))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    panels.set_ticks(axes.yaxis)
    panels.finish_panel(axes, "True accept rate", "false accept rate")
    panels.add_legend(axes)
    canvas.save(page.figure, path)
