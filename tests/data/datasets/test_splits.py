"""Splits by lists, and the warnings about recalls that a split cannot show."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import numpy as np
import pytest

from embedding_learning.data.datasets import ImageSet, Split, hold_out_validation_classes
from embedding_learning.data.datasets.splits import (
    ListedImage,
    list_recall_warnings,
    split_by_lists,
)
from embedding_learning.errors import DataError

ALONE = (
    "Birds: {} of {} test images have no partner, that is no {} of their class; Recall@K counts "
)
SINGLE = "Birds: a single class is searched, so that Recall@K is 1 for every image with a partner, "


def image_set(labels: list[int], classes: int = 5) -> ImageSet:
    names = [f"class {number}" for number in range(classes)]
    return ImageSet([f"{n}.jpg" for n in range(len(labels))], np.int32(labels), names)


@pytest.mark.parametrize(
    "test, gallery, messages",
    [
        ([0, 0, 1, 1, 1], None, []),
        ([0, 1, 2], None, [ALONE.format(3, 3, "other test image")]),
        ([0, 1, 1, 4], None, [ALONE.format(2, 4, "other test image")]),
        ([3], None, [ALONE.format(1, 1, "other test image")]),
        ([2, 2, 2], None, [SINGLE]),
        ([0, 1], [0, 1, 2], []),
        ([0, 1, 3, 3], [0, 1, 2], [ALONE.format(2, 4, "gallery image")]),
        ([0, 0], [0], [SINGLE]),
        ([0, 0, 4], [0], [ALONE.format(1, 3, "gallery image"), SINGLE]),
        ([4], [0, 1], [ALONE.format(1, 1, "gallery image")]),
    ],
)
def test_images_that_cannot_be_found_or_missed_are_counted(
    test: list[int], gallery: Optional[list[int]], messages: list[str]
) -> None:
    found = gallery if gallery is None else image_set(gallery)
    lines = list_recall_warnings(Split("Birds", image_set([0, 1]), image_set(test), found))
    assert len(lines) == len(messages)
    for line, start in zip(lines, messages):
        assert line.startswith(start)
        assert "whatever is learned, and MAP@R" in line or "two classes" in line


def test_held_out_classes_are_looked_at_as_any() -> None:
    split = Split("Birds", image_set([0, 0, 1, 1, 2, 3, 3, 4]), image_set([0, 0, 1, 1]))
    assert list_recall_warnings(split) == []
    (line,) = list_recall_warnings(hold_out_validation_classes(split, 0.4))
    assert line.startswith(ALONE.format(1, 3, "other test image"))


def test_boxes_of_some_images_are_refused(tmp_path: Path) -> None:
    """They would all be ignored, and nobody would know."""
    images = [
        ListedImage(f"{number}.jpg", "a", "train", box, tmp_path / "list.txt", number)
        for number, box in enumerate([[0, 0, 5, 5], None], 1)
    ]
    with pytest.raises(DataError, match=r"list\.txt:2: has no box, but other train images have"):
        split_by_lists("birds", tmp_path, images)
