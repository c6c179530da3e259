"""The plot of a ROC: its curve, its marks, its edges."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_learning import plots
from embedding_learning.evaluation import verification
from embedding_learning.plots import canvas


def draw(monkeypatch: pytest.MonkeyPatch, path: Path, is_same: list[bool]) -> list[Any]:
    """Draws pairs whose distances are 0, 1, 2 and so on; returns the lines of the panel."""
    save, figures = canvas.save, []
    monkeypatch.setattr(
        canvas, "save", lambda figure, to: (figures.append(figure), save(figure, to))
    )
    roc = verification.compute_roc(np.arange(len(is_same)), np.array(is_same))
    points = [verification.find_operating_point(roc, rate) for rate in (0.5, 0.1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        plots.plot_roc(roc, points, str(path))
    assert path.stat().st_size > 0
    return figures[0].axes[1].get_lines()


def test_the_curve_and_the_marks_are_the_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve, marks = draw(monkeypatch, tmp_path / "a.png", [True, False, True, True, False, False])
    # Before the first false accept the curve is left of the axis, which begins at a third.
    assert curve.get_xdata()[:2].tolist() == pytest.approx([1 / 30] * 2)
    assert curve.get_xdata()[2:].tolist() == pytest.approx([1 / 3] * 3 + [2 / 3, 1])
    assert curve.get_ydata().tolist() == pytest.approx([0, *[1 / 3] * 2, 2 / 3, 1, 1, 1])
    # Of three pairs a rate of 0.5 accepts one, and a rate of 0.1 none: that has no place here.
    assert (marks.get_xdata(), marks.get_ydata()) == ([pytest.approx(1 / 3)], [1.0])


@pytest.mark.parametrize("is_same", [[True, False], [False, True], [False] * 3 + [True]])
def test_few_pairs_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_same: list[bool]
) -> None:
    assert len(draw(monkeypatch, tmp_path / "a.svg", is_same)) == 2
