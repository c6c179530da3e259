"""Pages of panels: axes with a title above, a grid, and their legend to the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from embedding_learning.plots import canvas

# Okabe and Ito's colors: distinct for color-blind readers too, and dark enough on white.
COLORS = ("#0072b2", "#d55e00", "#008f68", "#b5518f", "#8a6d00", "#3f9bd1", "#1b1f24")
# Pixels: the text of a panel, the height of a page's heading, the border of a page.
TEXT, HEADING, BORDER = 20, 80, 30


class PanelPage(NamedTuple):
    """A figure, the axes of the page that count its pixels, and the axes of each panel."""

    figure: Figure
    page: Axes
    panels: Sequence[Axes]


def panel_page(
    title: str,
    count: int,
    columns: int,
    size: tuple[int, int],
    legend: int,
    left: int = 90,
    right: int = 0,
    below: int = 0,
) -> PanelPage:
    """Returns a page with a heading and empty panels, line by line.

    Parameters
    ----------
    title : str
        The heading.
    count, columns : int
        The number of panels, and of panels next to each other.
    size : (int, int)
        Width and height of a panel in pixels, with its title, labels and legend.
    legend, left : int
        Pixels of each panel to the right and to the left of its axes.
    right, below : int
        Pixels of the page to the right of all panels and below them.
    """
    wide, high = size
    width = columns * wide + right
    height = HEADING + -(-count // columns) * high + below
    figure, page = canvas.page(width, height)
    canvas.write(page, BORDER, 50, title, 32, width - 2 * BORDER, weight="bold")
    panels = []
    for number in range(count):
        line, column = divmod(number, columns)
        x, top = column * wide + left, HEADING + line * high + 50
        across, down = wide - left - legend, high - 130
        panels.append(
            figure.add_axes((x / width, 1 - (top + down) / height, across / width, down / height))
        )
    return PanelPage(figure, page, panels)


def finish_panel(
    axes: Axes, title: str, x_label: str = "", grid: Literal["both", "x", "y"] = "both"
) -> None:
    """Writes the title and labels and draws the grid. Call it last, when all ticks are set."""
    small = canvas.font(TEXT)
    axes.set_title(
        title, font=canvas.font(1.25 * TEXT), color=canvas.INK, loc="left", pad=canvas.points(12)
    )
    if x_label:
        axes.set_xlabel(x_label, font=small, color=canvas.GRAY)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set(font=small, color=canvas.GRAY)
    axes.grid(axis=grid, color=canvas.FAINT, linewidth=canvas.points(1))
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(axes: Axes, gap: float = 0.0) -> None:
    """Adds the legend to the right of the axes: within them it would hide lines."""
    legend = axes.legend(
        prop=canvas.font(TEXT),
        labelcolor=canvas.INK,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.0 + gap, 1.0),
        handlelength=1.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def set_ticks(axis: Axis, most: int = 6) -> None:
    """Sets at most so many intervals between ticks at round numbers."""
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
