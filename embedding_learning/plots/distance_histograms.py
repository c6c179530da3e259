"""Histograms of the distances of a run's pairs, before and after sampling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from embedding_learning.errors import DataError
from embedding_learning.evaluation import pair_distances
from embedding_learning.plots import canvas, panels, theory

_ALL, _SAMPLED, _POSITIVE, *_ = panels.COLORS
# Shades of one color: the more noise, the darker.
_NOISES = {0.01: "#c78db0", 0.02: "#b5518f", 0.05: "#863467", 0.1: "#4f1b3c"}
_SIZE, _LEGEND = (1250, 460), 330  # pixels of a panel, and of the legend in it
_SIGMA = "\N{GREEK SMALL LETTER SIGMA}"


class _Counts(NamedTuple):
    """The histograms of an epoch's records, summed. The names are those of the records."""

    epoch: int
    negatives: np.ndarray  # (bins,) like the other two
    drawn: np.ndarray  # the sampled negatives
    positives: np.ndarray


@canvas.plain_style
def plot_distances(
    records: Iterable[Mapping[str, Any]], path: str, title: str = "Distances of pairs"
) -> None:
    """Draws the argument of section 4 of Wu et al. (2017) on the pairs of a run.

    Three panels show, over the same distances: all negative pairs of the first and the last epoch
    with q(D), the density for random points (figure 2 of the paper); the sampled negatives, with
    the cutoffs of the sampling (figure 3b); and the variance that noise gives the direction of a
    negative's gradient (figure 3a), with the sampled negatives below.

    Parameters
    ----------
    records : iterable of mapping
        The records of a run. Those of another `kind` than "distances" are ignored, and so are
        those with invalid values.
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
    valid = [record for record in records if _is_valid(record)]
    if not valid:
        raise DataError(f"{title}: no distances are recorded, so nothing can be drawn")
    epochs = list(dict.fromkeys(record["epoch"] for record in valid))
    last = valid[-1]
    ends = [_sum_of_epoch(valid, epoch) for epoch in dict.fromkeys((epochs[0], epochs[-1]))]
    page = panels.panel_page(title, count=3, columns=1, size=_SIZE, legend=_LEGEND)
    negatives, sampling, variance = page.panels
    _draw_negatives(negatives, ends, last["dimension"])
    _draw_sampling(sampling, ends, last["cutoffs"])
    _draw_variance(variance, ends[-1], last["dimension"])
    canvas.save(page.figure, path)


def _is_valid(record: Mapping[str, Any]) -> bool:
    """Returns whether these are distances that can be drawn. The file may have been edited."""
    cutoffs, *histograms = (record.get(name) for name in ("cutoffs", *_Counts._fields[1:]))
    return (
        record.get("kind") == "distances"
        and _is_count(record.get("epoch"))
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


def _sum_of_epoch(records: Sequence[Mapping[str, Any]], epoch: int) -> _Counts:
    of_epoch = [record for record in records if record["epoch"] == epoch]
    return _Counts(
        epoch,
        *(np.sum([r[name] for r in of_epoch], axis=0) for name in _Counts._fields[1:]),
    )


def _density(counts: np.ndarray) -> np.ndarray:
    """Scales a histogram to an area of 1; an empty one stays empty."""
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
        _stairs(axes, counts.drawn, _SAMPLED, f"sampled, epoch {counts.epoch}", **style)
    for cutoff in cutoffs:
        line = _line("cutoffs" if cutoff == cutoffs[0] else "")
        axes.axvline(cutoff, color=canvas.GRAY, linestyle=":", **line)
    _finish(axes, "Sampled negatives, density")


def _draw_variance(axes: Axes, last: _Counts, dimension: int) -> None:
    at = np.linspace(0, pair_distances.MAX_DISTANCE, 401)
    for noise, color in _NOISES.items():
        variance = theory.direction_variance(at, noise, dimension)
        axes.plot(at, variance, color=color, **_line(f"noise, {_SIGMA} = {noise:g}"))
    density = _density(last.drawn)
    # Only the shape is shown, half as high as the panel; the densities are in the panel above.
    shape = density / (2 * density.max() or 1.0)
    axes.stairs(
        shape,
        pair_distances.HISTOGRAM_EDGES,
        fill=True,
        color=_SAMPLED,
        alpha=0.25,
        label=f"sampled, epoch {last.epoch}",
    )
    _finish(axes, f"Variance of the gradient's direction, {dimension} dimensions", high=1.05)


def _styles(ends: Sequence[_Counts]) -> list[dict[str, Any]]:
    """Returns line styles: dashed for the first epoch, solid for the last."""
    return [{"linestyle": "-" if counts is ends[-1] else (0, (3, 1.5))} for counts in ends]


def _line(label: str) -> dict[str, Any]:
    return {"label": label, "linewidth": canvas.points(3)}


def _stairs(axes: Axes, counts: np.ndarray, color: str, label: str, **style: Any) -> None:
    style = style if style.get("fill") else {"linewidth": canvas.points(3), **style}
    axes.stairs(_density(counts), pair_distances.HISTOGRAM_EDGES, color=color, label=label, **style)


def _finish(axes: Axes, title: str, high: float | None = None) -> None:
    axes.set_xlim(0, pair_distances.MAX_DISTANCE)
    axes.set_ylim(0, high)
    panels.set_ticks(axes.xaxis, most=10)
    panels.set_ticks(axes.yaxis)
    panels.finish_panel(axes, title, "distance")
    axes.set_axisbelow(True)
    panels.add_legend(axes)
