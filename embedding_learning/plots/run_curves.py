"""Curves of a run's values over its epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Optional

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from embedding_learning.errors import DataError
from embedding_learning.plots import canvas, panels

# Fields of evaluation records that are no metrics.
_NO_METRICS = {"kind", "epoch", "batch", "seconds"}
# Values in one panel, one for each color.
_MOST_LINES = len(panels.COLORS)
_SIZE, _LEGEND = (900, 430), 210  # pixels of a panel, and of the legend in it
_MARKED = 30  # curves with more values have no marks


class _Panel(NamedTuple):
    """A title, and the names of the values it shows with their names in the legend."""

    title: str
    values: Mapping[str, str]
    band: Optional[tuple[str, str]] = None  # values that bound a shaded area
    scale: str = "close"  # or "from 0", "percent" (from 0 too), "log"


_TRAINING = (
    _Panel("Training loss, mean of a batch", {"loss": "loss"}, scale="from 0"),
    _Panel(
        "Mean distance of pairs",
        {"positive_distance": "positives", "negative_distance": "negatives"},
    ),
    _Panel("Pairs with a loss above 0", {"active_share": "active"}, scale="percent"),
    _Panel("Beta over the classes", {"beta_median": "median"}, band=("beta_min", "beta_max")),
    _Panel(
        "Learning rate",
        {
            "learning_rate": "network",
            "learning_rate_beta": "beta",
            "learning_rate_proxies": "proxies",
        },
        scale="log",
    ),
    _Panel("Images a second", {"images_per_second": "images a second"}, scale="from 0"),
    _Panel("Time spent waiting for data", {"waiting_share": "waiting"}, scale="percent"),
)


@canvas.plain_style
def plot_run_curves(
    records: Iterable[Mapping[str, Any]], path: str, title: str = "The run"
) -> None:
    """Draws a run's values over its epochs, in a panel for each topic that has values.

    Parameters
    ----------
    records : iterable of mapping
        In the order of writing. Each has `kind` ("interval", "epoch" or "evaluation"), `epoch`
        (counted from 0; none or below 0 before training), possibly `batch` (batches done in the
        epoch), and values by name. The end of an epoch is drawn at its number, as the log counts; a
        logging interval where its batch ends, all else at the end of its epoch. Values of
        evaluations are metrics and may have any name. Values that are not finite numbers are
        ignored.
    path : str
        The file, PNG or SVG by its suffix.
    title : str

    Raises
    ------
    UsageError
        If the file cannot be written.
    DataError
        If no record has a value to draw.
    """
    canvas.check_plot_path(path)
    records = list(records)
    evaluations = [record for record in records if record.get("kind") == "evaluation"]
    training = [record for record in records if record.get("kind") != "evaluation"]
    batches = max((_number(record, "batch") or 0 for record in training), default=0)
    first = min((e for record in records if (e := _epoch(record)) is not None), default=0)
    drawn = [
        (panel, lines)
        for of_source, source in ((_metric_panels(evaluations), evaluations), (_TRAINING, training))
        for panel in of_source
        if (lines := _lines(panel, source, batches, first))
    ]
    if not drawn:
        raise DataError(f"{title}: no values are recorded yet, so nothing can be drawn")
    page = panels.panel_page(title, len(drawn), columns=2, size=_SIZE, legend=_LEGEND)
    ends = [at[-1] for _, lines in drawn for at, _ in lines.values()]
    epochs = first - 1, max(first, *ends)
    for axes, (panel, lines) in zip(page.panels, drawn):
        _draw(axes, panel, lines, epochs)
    canvas.save(page.figure, path)


Lines = dict[str, tuple[np.ndarray, np.ndarray]]


def _metric_panels(evaluations: list[Mapping[str, Any]]) -> list[_Panel]:
    """Returns panels for recalls and for other metrics, in the order of their first record."""
    names = list(dict.fromkeys(n for record in evaluations for n in record if n not in _NO_METRICS))
    recalls = [name for name in names if name.lower().startswith(("recall@", "cmc@"))]
    others = [name for name in names if name not in recalls]
    metric_panels = []
    for title, group in (("Recall on the test images", recalls), ("Other metrics", others)):
        for start in range(0, len(group), _MOST_LINES):
            names_of_panel = group[start : start + _MOST_LINES]
            values = {name: _metric_title(name) for name in names_of_panel}
            metric_panels.append(_Panel(title, values))
    return metric_panels


def _metric_title(name: str) -> str:
    """Returns Recall@1 for recall@1, MAP@5 for map@5, and other names with a capital letter."""
    title = name[:1].upper() + name[1:]
    if name.lower().startswith(("cmc@", "map@")) or name.lower() in ("nmi", "ami"):
        title = name.upper()
    return canvas.fitted(title, panels.TEXT, _LEGEND - 75)


def _number(record: Mapping[str, Any], name: str) -> float | None:
    """Returns the value if it is a finite number, else None."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return None
    return float(value) if math.isfinite(value) else None


def _epoch(record: Mapping[str, Any]) -> float | None:
    """Returns the record's epoch, or None before training."""
    epoch = _number(record, "epoch")
    return None if epoch is None or epoch < 0 else epoch


def _at(record: Mapping[str, Any], batches: float, first: float) -> float:
    """Returns the record's position: the end of an epoch is its number, its start one less.

    `batches` is the number of batches in an epoch, `first` the run's first epoch.
    """
    epoch, batch = _epoch(record), _number(record, "batch")
    if epoch is None:
        return first - 1
    inside = record.get("kind") == "interval" and batch is not None and batches > 0
    return epoch + (batch / batches - 1 if inside and batch is not None else 0.0)


def _lines(panel: _Panel, records: list[Mapping[str, Any]], batches: float, first: float) -> Lines:
    """Returns positions and values for each name of the panel that a record has."""
    lines = {}
    for name in (*panel.values, *(panel.band or ())):
        points = [
            (_at(r, batches, first), v) for r in records if (v := _number(r, name)) is not None
        ]
        if points:
            points.sort(key=lambda point: point[0])
            at, values = np.array(points).T
            lines[name] = (at, values)
    return lines


def _draw(axes: Axes, panel: _Panel, lines: Lines, epochs: tuple[float, float]) -> None:
    """Draws the panel from the start of the first epoch to the end of the last."""
    _scale(axes, panel, lines)
    for name, color in zip(panel.values, panels.COLORS):
        if name in lines:
            at, values = lines[name]
            axes.plot(
                at,
                values,
                "o-" if len(at) <= _MARKED else "-",
                color=color,
                label=panel.values[name],
                linewidth=canvas.points(3),
                clip_on=False,
                # A learning rate holds for the epoch at whose end it is recorded.
                drawstyle="steps-pre" if panel.scale == "log" else "default",
            )
    if panel.band and all(edge in lines for edge in panel.band):
        (at, low), (at_high, high) = (lines[edge] for edge in panel.band)
        if np.array_equal(at, at_high):
            axes.fill_between(
                at,
                low,
                high,
                color=panels.COLORS[0],
                alpha=0.2,
                linewidth=0,
                label="range",
            )
    axes.set_xlim(*epochs)
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}" if at >= 0 else "start"))
    panels.finish_panel(axes, panel.title, "end of epoch, counted from 0")
    if len(axes.get_legend_handles_labels()[0]) > 1:
        panels.add_legend(axes)


def _scale(axes: Axes, panel: _Panel, lines: Lines) -> None:
    """Sets the vertical axis by the panel's `scale`; "close" shows only the range of values."""
    values = np.concatenate([values for _, values in lines.values()])
    low, high = values.min(), values.max()
    if panel.scale == "log" and low > 0:
        axes.set_yscale("log")
        axes.set_ylim(low / 2, high * 2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    if panel.scale != "close":
        low = min(low, 0.0)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(low if low == 0 else low - room, high + room)
    panels.set_ticks(axes.yaxis)
    if panel.scale == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
