"""Which images train and which test: by the order of the classes, or as lists say."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from embedding_learning.data.datasets.text_files import check_no_duplicates
from embedding_learning.data.image_set import ImageSet, Split
from embedding_learning.errors import DataError

PARTS = ("train", "test", "query", "gallery")


class ListedImage(NamedTuple):
    """An image as a list names it, and the line where it does."""

    path: str
    label: int | str
    part: str  # one of PARTS
    box: list[int] | None
    file: Path
    line: int


def split_by_class_order(
    name: str,
    folder: Path,
    images: ImageSet,
    train_classes: int | None,
    default_train_classes: int | None = None,
) -> Split:
    """The first classes train and the others test; by default half of them, rounded down.

    Of a single class none trains by default. `default_train_classes` takes the place of the half:
    the number that a model was trained with.

    Raises DataError if nothing would test, or `train_classes` is below 1.
    """
    classes = len(images.class_names)
    if train_classes is None and default_train_classes is not None:
        if default_train_classes >= classes:
            raise DataError(
                f"{folder}: holds {classes} classes, but the model was trained on the first "
                f"{default_train_classes} of its data; --train-classes says how many train here, "
                "and --test all tests every class"
            )
        train_classes = default_train_classes
    elif train_classes is None:
        train_classes = classes // 2
    elif not 1 <= train_classes < classes:
        can_train = f"1 to {classes - 1} can train and the rest test"
        too_few = "one has to test, and two to train a network; add classes"
        raise DataError(
            f"--train-classes {train_classes}: {folder} holds {classes} classes, of which "
            f"{can_train if classes > 2 else too_few}"
        )
    train = images.select_classes(0, train_classes)
    return Split(name, train, images.select_classes(train_classes, classes))


def hold_out_validation_classes(split: Split, share: float) -> Split:
    """The last `share` of the training classes tests, among each other; the others train.

    It is rounded to whole classes, two at least. The data set's own test images are in no part of
    the result. A share of 0 leaves all as it is. Raises DataError if nothing is left to train.
    """
    if share == 0:
        return split
    classes = len(split.train.class_names)
    trained = classes - max(2, round(share * classes))
    if trained < 1:
        way_out = "but two at least are held out and two have to train; leave the flag out"
        if classes >= 4:
            most = math.floor(100 - 200 / classes) / 100
            way_out = f"of which none would be left; {most} is the most"
        raise DataError(f"--held-out {share}: {classes} classes train in {split.name}, {way_out}")
    return Split(
        split.name,
        split.train.select_classes(0, trained),
        split.train.select_classes(trained, classes),
        is_tested_on_validation_classes=True,
        recall_at=split.recall_at,
    )


def make_test_only_split(name: str, found: ImageSet | Split) -> Split:
    """All images test, among each other, and none trains.

    Where lists split the data, a class that is named in several parts is one class.
    """
    images = found if isinstance(found, ImageSet) else _united(found.parts)
    return Split(name, images.select_classes(0, 0), images, is_tested_on_all_classes=True)


def _united(parts: Sequence[ImageSet]) -> ImageSet:
    """The images of all parts; classes of one name are one class."""
    names = list(dict.fromkeys(name for part in parts for name in part.class_names))
    numbers = {name: number for number, name in enumerate(names)}
    labels = [
        np.array([numbers[name] for name in part.class_names], np.int32)[part.labels]
        for part in parts
    ]
    boxes = [part.boxes for part in parts if part.boxes is not None]
    return ImageSet(
        [path for part in parts for path in part.paths],
        np.concatenate(labels),
        names,
        np.concatenate(boxes) if boxes else None,
    )


def list_recall_warnings(split: Split) -> list[str]:
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
            f"{where} of their class; Recall@K counts them as misses, whatever is learned, and "
            "MAP@R and R-precision leave them out"
        )
    if alone < len(split.test) and np.count_nonzero(of_class) == 1:
        lines.append(
            f"{split.name}: a single class is searched, so that Recall@K is 1 for every image with "
            "a partner, whatever is learned; test on two classes at least"
        )
    return lines


def split_by_lists(name: str, source: Path, entries: list[ListedImage]) -> Split:
    """Each image goes where its line says; queries are searched in the gallery if there is one.

    Classes are numbered in the order of their labels, those that train apart from those that
    test, so a label may stand on both sides. Queries and gallery are numbered together.

    What trains may be empty, and so may what tests: it is up to the caller whether that will do.

    Raises DataError if an image stands twice, or there are queries without a gallery or the other
    way about.
    """
    check_no_duplicates(
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
    for part in ("query", "gallery"):
        if retrieval and not parts[part]:
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


def _image_set(entries: list[ListedImage], labels: Sequence[int | str]) -> ImageSet:
    """The images, the number of each class being the place of its label among `labels`."""
    numbers = {label: number for number, label in enumerate(labels)}
    boxes = [entry.box for entry in entries]
    return ImageSet(
        paths=[entry.path for entry in entries],
        labels=np.array([numbers[entry.label] for entry in entries], np.int32),
        class_names=[str(label) for label in labels],
        boxes=None if not boxes or None in boxes else np.array(boxes, np.int32),
    )


def log_split(split: Split) -> None:
    """What the recalls of the run are about, and warnings of what they cannot show."""
    logging.info(
        "%s: %d images of %d classes train, %d of %d test%s.",
        split.title,
        len(split.train),
        len(split.train.class_names),
        len(split.test),
        len(np.unique(split.test.labels)),
        f" against a gallery of {len(split.gallery)}" if split.gallery else "",
    )
    for line in list_recall_warnings(split):
        logging.warning(line)
