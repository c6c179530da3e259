"""Splits images into training and test images: by the order of the classes, or as lists say."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from embedding_learning.data.datasets.text_files import check_no_duplicates
from embedding_learning.data.image_set import ImageSet, Split
from embedding_learning.errors import DataError
from embedding_learning.evaluation.groups import count_matches

PARTS = ("train", "test", "query", "gallery")


class ListedImage(NamedTuple):
    """An image in a list, and the file and line that list it."""

    path: str
    label: int | str
    part: str  # one of PARTS
    box: list[int] | None
    file: Path
    line: int
    group: str = ""  # empty: none


def split_by_class_order(
    name: str,
    folder: Path,
    images: ImageSet,
    train_classes: int | None,
    default_train_classes: int | None = None,
) -> Split:
    """Makes the first `train_classes` classes train and the others test.

    By default half of the classes train, rounded down: none of a single class.
    `default_train_classes` replaces the half; it is the number that a model was trained with.

    Raises DataError if no class is left to test, or `train_classes` is below 1.
    """
    classes = len(images.class_names)
    if train_classes is None and default_train_classes is not None:
        if default_train_classes >= classes:
            raise DataError(
                f"{folder}: holds {classes} classes, but the model was trained on the first "
                f"{default_train_classes} of its data; set how many train here with "
                "--train-classes, or test every class with --test all"
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


def hold_out_validation_classes(split: Split, fraction: float, fold: int = 1) -> Split:
    """Uses a `fraction` of the training classes as test classes; the others train.

    The number is rounded to whole classes, at least two. Fold 1 is the last classes, fold 2 those
    before, and so on: with a fraction of 1/K, K folds contain each class once. The result does not
    contain the data set's own test images. A fraction of 0 changes nothing.

    Raises DataError if no class is left to train, or there are not so many folds.
    """
    if fraction == 0:
        return split
    classes = len(split.train.class_names)
    last = classes - round((fold - 1) * fraction * classes)
    first = classes - round(fold * fraction * classes)
    if fold == 1:
        first = min(first, last - 2)
    elif first < 0 or last - first < 2 or round(fraction * classes) < 2:
        raise DataError(
            f"--held-out-fold {fold}: {classes} classes train in {split.name}, which are too few "
            f"for so many folds of --held-out {fraction} with two classes each; take fewer folds"
        )
    if first < 1 and fold == 1:
        way_out = "but at least two are held out and two have to train; leave the flag out"
        if classes >= 4:
            most = math.floor(100 - 200 / classes) / 100
            way_out = f"and none would be left; {most} is the most"
        raise DataError(
            f"--held-out {fraction}: {classes} classes train in {split.name}, {way_out}"
        )
    return Split(
        split.name,
        split.train.leave_out_classes(first, last),
        split.train.select_classes(first, last),
        is_tested_on_validation_classes=True,
        recall_at=split.recall_at,
    )


def make_test_only_split(name: str, data: ImageSet | Split) -> Split:
    """Returns a split in which all images test, among each other, and none trains.

    If `data` is a Split, classes with the same name in several parts become one class.
    """
    images = data if isinstance(data, ImageSet) else _merge(data.parts)
    return Split(name, images.select_classes(0, 0), images, is_tested_on_all_classes=True)


def _merge(parts: Sequence[ImageSet]) -> ImageSet:
    """Returns the images of all parts. Classes with the same name become one class."""
    names = list(dict.fromkeys(name for part in parts for name in part.class_names))
    numbers = {name: number for number, name in enumerate(names)}
    labels = [
        np.array([numbers[name] for name in part.class_names], np.int32)[part.labels]
        for part in parts
    ]
    boxes = [part.boxes for part in parts if part.boxes is not None]
    groups = [np.full(len(p), -1, np.int32) if p.groups is None else p.groups for p in parts]
    return ImageSet(
        [path for part in parts for path in part.paths],
        np.concatenate(labels),
        names,
        np.concatenate(boxes) if boxes else None,
        np.concatenate(groups) if any(part.groups is not None for part in parts) else None,
        parts[0].group_names,
    )


def keep_decodable(split: Split, rows: Sequence[np.ndarray]) -> Split:
    """Returns the split with only the images that can be decoded: these rows of each of its parts.

    Raises DataError if a part has images, and none of them is left.
    """
    kept = []
    for images, good, role in zip(split.parts, rows, ("that train", "that test", "of the gallery")):
        if len(images) and not len(good):
            raise DataError(
                f"{split.name}: none of the {len(images)} images {role} can be decoded; "
                "unpack the images again, or name another folder with --data-path"
            )
        kept.append(images.take(good))
    train, test, *gallery = kept
    return replace(split, train=train, test=test, gallery=gallery[0] if gallery else None)


def list_recall_warnings(split: Split) -> list[str]:
    """Returns warnings about test images whose Recall@K does not depend on the model.

    An image without a partner (another image of its class, and not of its group, among the searched
    images) always counts as a miss. If only one class is searched, all other images always count as
    hits.
    """
    searched = split.searched
    without_partner = int(np.sum(count_partners(split) == 0))
    class_sizes = np.bincount(searched.labels)
    warnings = []
    if without_partner:
        partner = "other test image" if split.gallery is None else "gallery image"
        outside = " outside their group" if split.groups else ""
        warnings.append(
            f"{split.name}: {without_partner} of {len(split.test)} test images have no partner, "
            f"that is no {partner} of their class{outside}; Recall@K counts them as misses, "
            "whatever is learned, and MAP@R and R-precision leave them out"
        )
    if without_partner < len(split.test) and np.count_nonzero(class_sizes) == 1:
        warnings.append(
            f"{split.name}: a single class is searched, so that Recall@K is 1 for every image with "
            "a partner, whatever is learned; test at least two classes"
        )
    return warnings


def count_partners(split: Split) -> np.ndarray:
    """Counts the images that are a match of each test image, int (n,)."""
    return count_matches(
        split.test.labels, split.searched.labels, split.gallery is None, split.groups
    )


def split_by_lists(name: str, source: Path, images: list[ListedImage]) -> Split:
    """Puts each image into the part that its line names. Queries are searched in the gallery.

    Classes are numbered in the order of their labels. Training classes and test classes are
    numbered separately, so a label may occur in both. Queries and gallery share their numbers.

    The training images and the test images may be empty; the caller checks that.

    Raises DataError if an image is listed twice, only some images of a part have boxes, or there
    are queries without a gallery or a gallery without queries.
    """
    check_no_duplicates(
        [image.path for image in images], lambda row: f"{images[row].file}:{images[row].line}"
    )
    parts = {part: [image for image in images if image.part == part] for part in PARTS}
    train, test, queries, gallery = parts.values()
    has_gallery = bool(queries or gallery)
    if has_gallery and test:
        raise DataError(
            f"{test[0].file}:{test[0].line}: test is mixed with query and gallery; test images are "
            "searched among each other, and queries in the gallery: use only one of the two ways"
        )
    for part in ("query", "gallery"):
        if has_gallery and not parts[part]:
            raise DataError(
                f"{source}: no image is listed as {part}; add some, or name other data with "
                "--data-path"
            )
    train_labels = sorted({image.label for image in train})
    test_labels = sorted({image.label for image in test + queries + gallery})
    groups = sorted({image.group for image in images if image.group})
    return Split(
        name,
        train=_make_image_set(train, train_labels, groups),
        test=_make_image_set(queries if has_gallery else test, test_labels, groups),
        gallery=_make_image_set(gallery, test_labels, groups) if has_gallery else None,
    )


def _make_image_set(
    images: list[ListedImage], labels: Sequence[int | str], group_names: list[str]
) -> ImageSet:
    """Returns the images; the number of a class is the index of its label in `labels`."""
    numbers = {label: number for number, label in enumerate(labels)}
    boxes = [image.box for image in images]
    if None in boxes and any(boxes):
        image = images[boxes.index(None)]
        raise DataError(
            f"{image.file}:{image.line}: has no box, but other {image.part} images have one; give "
            "boxes for all images, or ignore them with --no-bbox"
        )
    return ImageSet(
        paths=[image.path for image in images],
        labels=np.array([numbers[image.label] for image in images], np.int32),
        class_names=[str(label) for label in labels],
        boxes=None if not boxes or None in boxes else np.array(boxes, np.int32),
        groups=_number_groups(images, group_names),
        group_names=group_names,
    )


def _number_groups(images: list[ListedImage], group_names: list[str]) -> np.ndarray | None:
    """Returns the index of each image's group, -1 without one; None if no image has one."""
    if not any(image.group for image in images):
        return None
    numbers = {"": -1, **{name: number for number, name in enumerate(group_names)}}
    return np.array([numbers[image.group] for image in images], np.int32)


def log_split(split: Split) -> None:
    """Logs the numbers of images and classes, and the warnings of `list_recall_warnings`."""
    logging.info(
        "%s: %d images of %d classes train, %d of %d test%s.",
        split.title,
        len(split.train),
        len(split.train.class_names),
        len(split.test),
        len(np.unique(split.test.labels)),
        f" against a gallery of {len(split.gallery)}" if split.gallery else "",
    )
    if split.is_tested_on_validation_classes:
        logging.info(
            "Recall among these %d held-out classes cannot be compared with recall among the test "
            "classes of the data set: it depends on how many images are searched.",
            len(split.test.class_names),
        )
    for warning in list_recall_warnings(split):
        logging.warning(warning)
