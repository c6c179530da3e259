"""The curves of a run, from its records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Optional

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from embedding_learning.errors import DataError
from embedding_learning.plots import canvas

# Distinct also to the color-blind (Okabe and Ito's), and dark enough on white.
_COLORS = ("#0072b2", "#d55e00", "#008f68", "#b5518f", "#8a6d00", "#3f9bd1", "#1b1f24")
# What is no measurement, in records of evaluations.
_WHEN = {"kind", "epoch", "batch", "seconds"}
# Values of one panel: with more, lines cannot be told apart.
_MOST_LINES = len(_COLORS)
_WIDE, _HIGH, _LEGEND = 900, 430, 210  # pixels of a panel, and of the legend in it
_TEXT = 20
_MARKED = 30  # values up to which each has a mark


class _Panel(NamedTuple):
    """A title and the values it shows, with their names in the legend."""

    title: str
    values: Mapping[str, str]
    band: Optional[tuple[str, str]] = None  # the values at the edges of a shaded area
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
        "Learning rate", {"learning_rate": "network", "learning_rate_beta": "beta"}, scale="log"
    ),
    _Panel("Images a second", {"images_per_second": "images a second"}, scale="from 0"),
    _Panel("Time spent waiting for data", {"waiting_share": "waiting"}, scale="percent"),
)


@canvas.plain_style
def plot_run_curves(
    records: Iterable[Mapping[str, Any]], path: str, title: str = "The run"
) -> None:
    """Draws a run's values over its epochs, a panel for each kind; none for what no record has.

    Parameters
    ----------
    records : iterable of mapping
        In the order of writing. Each has `kind` ("interval", "epoch" or "evaluation") and `epoch`
        (counted from 0; none or below 0: before training), may have `batch` (batches done in the
        epoch), and then values by name. The end of an epoch stands at its number, as the log
        counts; an interval stands where its batch ends, all else at the end of its epoch. Values
        of evaluations are metrics and may have any name. What is not a finite number is left out.
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
        for panels, source in ((_metric_panels(evaluations), evaluations), (_TRAINING, training))
        for panel in panels
        if (lines := _lines(panel, source, batches, first))
    ]
    if not drawn:
        raise DataError(f"{title}: no values are recorded yet, so there is nothing to draw")
    lines_of_panels = -(-len(drawn) // 2)
    width, height = 2 * _WIDE, lines_of_panels * _HIGH + 80
    figure, page = canvas.page(width, height)
    canvas.write(page, 30, 50, title, 32, width - 60, weight="bold")
    ends = [at[-1] for _, lines in drawn for at, _ in lines.values()]
    epochs = first - 1, max(first, *ends)
    for number, (panel, lines) in enumerate(drawn):
        line, column = divmod(number, 2)
        _draw(_axes(figure, column, line, width, height), panel, lines, epochs)
    canvas.save(figure, path)


Lines = dict[str, tuple[np.ndarray, np.ndarray]]


def _metric_panels(evaluations: list[Mapping[str, Any]]) -> list[_Panel]:
    """Recalls in one panel, other metrics in further ones, in the order they are found in."""
    names = list(dict.fromkeys(n for record in evaluations for n in record if n not in _WHEN))
    recalls = [name for name in names if name.lower().startswith(("recall@", "cmc@"))]
    others = [name for name in names if name not in recalls]
    panels = []
    for title, group in (("Recall on the test images", recalls), ("Other metrics", others)):
        for start in range(0, len(group), _MOST_LINES):
            some = group[start : start + _MOST_LINES]
            panels.append(_Panel(title, {name: _metric_title(name) for name in some}))
    return panels


def _metric_title(name: str) -> str:
    """recall@1 is Recall@1, map@5 MAP@5; a name that is not known stays."""
    title = name[:1].upper() + name[1:]
    if name.lower().startswith(("cmc@", "map@")) or name.lower() in ("nmi", "ami"):
        title = name.upper()
    return canvas.fitted(title, _TEXT, _LEGEND - 75)


def _number(record: Mapping[str, Any], name: str) -> float | None:
    """The value if it is a finite number."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return None
    return float(value) if math.isfinite(value) else None


def _epoch(record: Mapping[str, Any]) -> float | None:
    """The number of the record's epoch; None before training."""
    epoch = _number(record, "epoch")
    return None if epoch is None or epoch < 0 else epoch


def _at(record: Mapping[str, Any], batches: float, first: float) -> float:
    """Where the record stands: the end of an epoch at its number, its start at one less.

    `batches` are in an epoch, and `first` is the run's first one.
    """
    epoch, batch = _epoch(record), _number(record, "batch")
    if epoch is None:
        return first - 1
    inside = record.get("kind") == "interval" and batch is not None and batches > 0
    return epoch + (batch / batches - 1 if inside and batch is not None else 0.0)


def _lines(panel: _Panel, records: list[Mapping[str, Any]], batches: float, first: float) -> Lines:
    """Where in epochs it stands and value, of every value of the panel that a record has."""
    found = {}
    for name in (*panel.values, *(panel.band or ())):
        points = [
            (_at(r, batches, first), v) for r in records if (v := _number(r, name)) is not None
        ]
        if points:
            points.sort(key=lambda point: point[0])
            at, values = np.array(points).T
            found[name] = (at, values)
    return found


def _axes(figure: Figure, column: int, line: int, width: int, height: int) -> Axes:
    left, top = column * _WIDE + 90, 80 + line * _HIGH + 50
    wide, high = _WIDE - 90 - _LEGEND, _HIGH - 130
    return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))


def _draw(axes: Axes, panel: _Panel, lines: Lines, epochs: tuple[float, float]) -> None:
    """Draws the panel from the start of the first epoch to the end of the last."""
    small = canvas.font(_TEXT)
    _scale(axes, panel, lines)
    for name, color in zip(panel.values, _COLORS):
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
                # A rate holds for the epoch at whose end it is recorded.
                drawstyle="steps-pre" if panel.scale == "log" else "default",
            )
    if panel.band and all(edge in lines for edge in panel.band):
        (at, low), (at_high, high) = (lines[edge] for edge in panel.band)
        if np.array_equal(at, at_high):
            axes.fill_between(
                at,
                low,
                high,
                color=_COLORS[0],
                alpha=0.2,
                linewidth=0,
                label="range",
            )
    axes.set_title(
        panel.title,
        font=canvas.font(1.25 * _TEXT),
        color=canvas.INK,
        loc="left",
        pad=canvas.points(12),
    )
    axes.set_xlabel("end of epoch, counted from 0", font=small, color=canvas.GRAY)
    axes.set_xlim(*epochs)
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}" if at >= 0 else "start"))
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set(font=small, color=canvas.GRAY)
    axes.grid(color=canvas.FAINT, linewidth=canvas.points(1))
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        # Beside the axes: within them it would hide lines.
        legend = axes.legend(
            prop=small,
            labelcolor=canvas.INK,
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            handlelength=1.2,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _scale(axes: Axes, panel: _Panel, lines: Lines) -> None:
    """What the vertical axis shows: `close`, the values and no more."""
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
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if panel.scale == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
