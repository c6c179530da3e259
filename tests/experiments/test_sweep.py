"""The labels of a comparison's plot."""

from __future__ import annotations

from itertools import product

import pytest

from embedding_learning.experiments.results import Cell
from embedding_learning.experiments.sweep import _label_cells

METHODS = [("margin", "random"), ("triplet", "random")]


@pytest.mark.parametrize(
    "methods, varied, subject, first, last",
    [
        (METHODS, {}, "loss and sampling", ("margin", "random"), ("triplet", "random")),
        (METHODS[:1], {"lr": "12"}, "lr", ("1", "margin, random"), ("2", "margin, random")),
        (METHODS, {"lr": "12"}, "lr, loss", ("1", "margin"), ("2", "triplet")),
        (
            METHODS[:1], {"lr": "12", "pool": ["avg", "max"], "wd": "3"}, "lr, pool",
            ("1", "pool=avg"), ("2", "pool=max"),
        ),
        (
            METHODS, {"data-path": ["/a/b/"], "lr": "12"}, "data-path, lr, loss",
            ("/a/b/", "1, margin"), ("/a/b/", "2, triplet"),
        ),
        (
            METHODS, {"init-from": ["/a/b/c", "/a/b/d/c"], "lr": "12"}, "init-from, lr, loss",
            ("c", "1, margin"), ("d/c", "2, triplet"),
        ),
    ],
)  # fmt: skip
def test_each_cell_has_labels_of_its_own(
    methods: list[tuple[str, str]],
    varied: dict[str, list[str]],
    subject: str,
    first: tuple[str, str],
    last: tuple[str, str],
) -> None:
    values = [tuple(zip(varied, some)) for some in product(*varied.values())]
    cells = [Cell(*method, some) for method in methods for some in values]
    found, labels = _label_cells(cells)
    assert found == subject
    assert (labels[cells[0]], labels[cells[-1]]) == (first, last)
    assert len(set(labels.values())) == len(cells)
