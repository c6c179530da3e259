"""Which images train and which test: by the order of the classes, or as lists say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from embedding_learning.datasets.image_set import DataError, ImageSet, Split
from embedding_learning.datasets.lists import check_each_once

PARTS = ("train", "test", "query", "gallery")


class Entry(NamedTuple):
    """An image as a list names it, and the line where it does."""

    path: str
    label: int | str
    part: str  # one of PARTS
    box: list[int] | None
    file: Path
    line: int


def by_class_order(name: str, folder: Path, images: ImageSet, train_classes: int | None) -> Split:
    """The first classes train and the others test; by default half of them, rounded down.

    Raises DataError if a half would be empty.
    """
    classes = len(images.class_names)
    if train_classes is None:
        train_classes = classes // 2
        if train_classes < 1:
            raise DataError(
                f"{folder}: holds {classes} class; two are needed, to train and to test; name "
                "another folder with --data-path, or its layout with --dataset"
            )
    if not 1 <= train_classes < classes:
        raise DataError(
            f"--train-classes {train_classes}: {folder} holds {classes} classes, of which "
            f"1 to {classes - 1} can train and the rest test"
        )
    train = images.of_classes(0, train_classes)
    return Split(name, train, images.of_classes(train_classes, classes))


def hold_out(split: Split, share: float) -> Split:
    """The last `share` of the training classes tests, among each other; the others train.

    It is rounded to whole classes, two at least. The data set's own test images are in no part of
    the result. A share of 0 leaves all as it is. Raises DataError if nothing is left to train.
    """
    if share == 0:
        return split
    classes = len(split.train.class_names)
    trained = classes - max(2, round(share * classes))
    if trained < 1:
        raise DataError(
            f"--held-out {share}: {classes} classes train in {split.name}, of which none would be "
            "left; lower the share"
        )
    return Split(
        split.name,
        split.train.of_classes(0, trained),
        split.train.of_classes(trained, classes),
        is_held_out=True,
    )


def unmeasurable(split: Split) -> list[str]:
    """Warnings of what Recall@K of the test images cannot show, one line each.

    Images without a partner (another image of their class among those that are searched) can only
    miss; where a single class is searched, all others can only hit.
    """
    searched = split.test if split.gallery is None else split.gallery
    classes = max(part.labels.max(initial=-1) for part in (split.test, searched)) + 1
    of_class = np.bincount(searched.labels, minlength=classes)
    partners = of_class[split.test.labels] - (split.gallery is None)
    alone = int(np.sum(partners == 0))
    lines = []
    if alone:
        where = "other test image" if split.gallery is None else "gallery image"
        lines.append(
            f"{split.name}: {alone} of {len(split.test)} test images have no partner, that is no "
            f"{where} of their class; Recall@K counts them as misses, whatever is learned"
        )
    if alone < len(split.test) and np.count_nonzero(of_class) == 1:
        lines.append(
            f"{split.name}: a single class is searched, so that Recall@K is 1 for every image with "
            "a partner, whatever is learned; test on two classes at least"
        )
    return lines


def by_lists(name: str, source: Path, entries: list[Entry]) -> Split:
    """Each image goes where its line says; queries are searched in the gallery if there is one.

    Classes are numbered in the order of their labels, those that train apart from those that
    test, so a label may stand on both sides. Queries and gallery are numbered together.

    Raises DataError if an image stands twice, or a part that is needed is empty.
    """
    check_each_once(
        [entry.path for entry in entries], lambda row: f"{entries[row].file}:{entries[row].line}"
    )
    parts = {part: [entry for entry in entries if entry.part == part] for part in PARTS}
    train, test, queries, gallery = parts.values()
    retrieval = bool(queries or gallery)
    if retrieval and test:
        raise DataError(
            f"{test[0].file}:{test[0].line}: test stands beside query and gallery; test images "
            "are searched among each other, queries in the gallery: only one of both can be"
        )
    for part in ("train", "query", "gallery") if retrieval else ("train", "test"):
        if not parts[part]:
            raise DataError(
                f"{source}: no image is listed as {part}; add some, or name other data with "
                "--data-path"
            )
    train_labels = sorted({entry.label for entry in train})
    test_labels = sorted({entry.label for entry in test + queries + gallery})
    return Split(
        name,
        train=_image_set(train, train_labels),
        test=_image_set(queries if retrieval else test, test_labels),
        gallery=_image_set(gallery, test_labels) if retrieval else None,
    )


def _image_set(entries: list[Entry], labels: Sequence[int | str]) -> ImageSet:
    """The images, the number of each class being the place of its label among `labels`."""
    numbers = {label: number for number, label in enumerate(labels)}
    boxes = [entry.box for entry in entries]
    return ImageSet(
        paths=[entry.path for entry in entries],
        labels=np.array([numbers[entry.label] for entry in entries], np.int32),
        class_names=[str(label) for label in labels],
        boxes=None if None in boxes else np.array(boxes, np.int32),
    )
