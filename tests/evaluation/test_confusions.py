"""Classes that are taken for others, against counting them one by one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from embedding_learning.evaluation.confusions import find_confusions


@pytest.mark.parametrize("classes, seed", [(2, 0), (5, 1), (40, 2)])
def test_confusions_are_those_that_are_counted_one_by_one(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 200)
    nearest = np.where(rng.uniform(size=200) < 0.5, labels, rng.integers(-1, classes, 200))
    expected = Counter(
        (label, found) for label, found in zip(labels, nearest) if found not in (-1, label)
    )
    found = find_confusions(labels, nearest)
    assert {(one.label, one.taken_for): len(one.queries) for one in found} == expected
    for label, taken_for, queries, images in found:
        assert [*queries] == [
            row for row in range(200) if labels[row] == label and nearest[row] == taken_for
        ]
        assert images == (labels == label).sum()
    order = [(-len(one.queries), one.images, one.label, one.taken_for) for one in found]
    assert order == sorted(order)


def test_nothing_is_confused_where_every_nearest_image_is_right_or_missing() -> None:
    assert find_confusions(np.array([0, 1, 1]), np.array([0, 1, -1])) == []
    assert find_confusions(np.empty(0, int), np.empty(0, int)) == []
