"""The distances of a run's pairs, and what the sampling makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from embedding_learning.errors import DataError
from embedding_learning.evaluation import pair_distances
from embedding_learning.plots import canvas, theory

# Distinct also to the color-blind, as in the curves of a run.
_ALL, _DRAWN, _POSITIVE = "#0072b2", "#d55e00", "#008f68"
# From little noise to much: of one color, ever darker.
_NOISES = {0.01: "#c78db0", 0.02: "#b5518f", 0.05: "#863467", 0.1: "#4f1b3c"}
_WIDE, _HIGH, _LEGEND, _TOP = 1250, 460, 330, 80  # pixels of a panel, its legend, the title
_TEXT = 20
_SIGMA = "\N{GREEK SMALL LETTER SIGMA}"


class _Counts(NamedTuple):
    """The histograms of an epoch's records, added up."""

    epoch: int
    negatives: np.ndarray  # (bins,) as all three
    drawn: np.ndarray
    positives: np.ndarray


@canvas.plain_style
def plot_distances(
    records: Iterable[Mapping[str, Any]], path: str, title: str = "Distances at work"
) -> None:
    """Draws the argument of section 4 of Wu et al. (2017) on the pairs of a run.

    Three panels above each other, over the same distances: all negative pairs of the first and the
    last epoch beside q(D), the density between random points (figure 2 of the paper); what the
    sampling drew of them, with its cutoffs (figure 3b); and how far noise decides the direction of
    a negative's gradient (figure 3a), above what was drawn.

    Parameters
    ----------
    records : iterable of mapping
        As `records.read` gives them; those of another `kind` than "distances" are left out, and so
        are those whose values do not fit.
    path : str
        The file, PNG or SVG by its suffix.
    title : str

    Raises
    ------
    UsageError
        If the file cannot be written.
    DataError
        If no record can be drawn.
    """
    canvas.check_plot_path(path)
    fitting = [record for record in records if record.get("kind") == "distances" and _fits(record)]
    if not fitting:
        raise DataError(f"{title}: no distances are recorded, so there is nothing to draw")
    width, height = _WIDE, _TOP + 3 * _HIGH
    figure, page = canvas.page(width, height)
    canvas.write(page, 30, 50, title, 32, width - 60, weight="bold")
    epochs = list(dict.fromkeys(record["epoch"] for record in fitting))
    last = fitting[-1]
    ends = [_of_epoch(fitting, epoch) for epoch in dict.fromkeys((epochs[0], epochs[-1]))]
    _draw_negatives(_axes(figure, 0, height), ends, last["dimension"])
    _draw_sampling(_axes(figure, 1, height), ends, last["cutoffs"])
    _draw_variance(_axes(figure, 2, height), ends[-1], last["dimension"])
    canvas.save(figure, path)


def _fits(record: Mapping[str, Any]) -> bool:
    """Whether it is one that can be drawn: a file can be changed."""
    cutoffs, *histograms = (record.get(name) for name in ("cutoffs", *_Counts._fields[1:]))
    return (
        _is_count(record.get("epoch"))
        and _is_count(record.get("dimension"))
        and record["dimension"] > 0
        and isinstance(cutoffs, list)
        and all(
            type(value) in (int, float) and 0 <= value <= pair_distances.MAX_DISTANCE
            for value in cutoffs
        )
        and all(
            isinstance(counts, list) and len(counts) == pair_distances.HISTOGRAM_BINS
            for counts in histograms
        )
        and all(_is_count(count) for counts in histograms for count in counts or ())
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _of_epoch(records: Sequence[Mapping[str, Any]], epoch: int) -> _Counts:
    of_epoch = [record for record in records if record["epoch"] == epoch]
    return _Counts(
        epoch,
        *(np.sum([r[name] for r in of_epoch], axis=0) for name in _Counts._fields[1:]),
    )


def _density(counts: np.ndarray) -> np.ndarray:
    """Of a histogram: its area is 1, or 0 if it is empty."""
    share: np.ndarray = counts / max(1, counts.sum())
    return share * pair_distances.HISTOGRAM_BINS / pair_distances.MAX_DISTANCE


def _draw_negatives(axes: Axes, ends: Sequence[_Counts], dimension: int) -> None:
    for counts, style in zip(ends, _styles(ends)):
        _stairs(axes, counts.negatives, _ALL, f"epoch {counts.epoch}", **style)
    if dimension >= 2:
        # In the middle of narrow bins, since the density may be infinite at 2.
        at = (np.arange(1000) + 0.5) * pair_distances.MAX_DISTANCE / 1000
        label = f"q(D), {dimension} dimensions"
        axes.plot(at, theory.density(at, dimension), color=canvas.INK, **_line(label))
    _finish(axes, "All negative pairs against random points, density")


def _draw_sampling(axes: Axes, ends: Sequence[_Counts], cutoffs: Sequence[float]) -> None:
    last = ends[-1]
    _stairs(axes, last.negatives, _ALL, f"all, epoch {last.epoch}", fill=True, alpha=0.25)
    _stairs(axes, last.positives, _POSITIVE, f"positives, epoch {last.epoch}")
    for counts, style in zip(ends, _styles(ends)):
        _stairs(axes, counts.drawn, _DRAWN, f"drawn, epoch {counts.epoch}", **style)
    for cutoff in cutoffs:
        line = _line("cutoffs" if cutoff == cutoffs[0] else "")
        axes.axvline(cutoff, color=canvas.GRAY, linestyle=":", **line)
    _finish(axes, "What the sampling drew, density")


def _draw_variance(axes: Axes, last: _Counts, dimension: int) -> None:
    at = np.linspace(0, pair_distances.MAX_DISTANCE, 401)
    for noise, color in _NOISES.items():
        variance = theory.direction_variance(at, noise, dimension)
        axes.plot(at, variance, color=color, **_line(f"noise, {_SIGMA} = {noise:g}"))
    drawn = _density(last.drawn)
    # Its shape alone, for its measure is above: half as high as the panel.
    shape = drawn / (2 * drawn.max() or 1.0)
    axes.stairs(
        shape,
        pair_distances.HISTOGRAM_EDGES,
        fill=True,
        color=_DRAWN,
        alpha=0.25,
        label=f"drawn, epoch {last.epoch}",
    )
    _finish(axes, f"Variance of the gradient's direction, {dimension} dimensions", high=1.05)


def _styles(ends: Sequence[_Counts]) -> list[dict[str, Any]]:
    """The first epoch is dashed, the last is not."""
    return [{"linestyle": "-" if counts is ends[-1] else (0, (3, 1.5))} for counts in ends]


def _line(label: str) -> dict[str, Any]:
    return {"label": label, "linewidth": canvas.points(3)}


def _stairs(axes: Axes, counts: np.ndarray, color: str, label: str, **style: Any) -> None:
    style = style if style.get("fill") else {"linewidth": canvas.points(3), **style}
    axes.stairs(_density(counts), pair_distances.HISTOGRAM_EDGES, color=color, label=label, **style)


def _axes(figure: Figure, line: int, height: int) -> Axes:
    left, top = 90, _TOP + line * _HIGH + 50
    wide, high = _WIDE - left - _LEGEND, _HIGH - 130
    return figure.add_axes((left / _WIDE, 1 - (top + high) / height, wide / _WIDE, high / height))


def _finish(axes: Axes, title: str, high: float | None = None) -> None:
    small = canvas.font(_TEXT)
    axes.set_title(
        title, font=canvas.font(1.25 * _TEXT), color=canvas.INK, loc="left", pad=canvas.points(12)
    )
    axes.set_xlim(0, pair_distances.MAX_DISTANCE)
    axes.set_ylim(0, high)
    axes.set_xlabel("distance", font=small, color=canvas.GRAY)
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set(font=small, color=canvas.GRAY)
    axes.grid(color=canvas.FAINT, linewidth=canvas.points(1))
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    # Beside the axes: within them it would hide lines.
    axes.legend(
        prop=small,
        labelcolor=canvas.INK,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        handlelength=1.2,
    )
