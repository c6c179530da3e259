"""The data sets: paths, labels, boxes and the split into training and test classes.

A file per data set; no pixels, no MXNet.
"""

from __future__ import annotations

from pathlib import Path

from embedding_learning.datasets import cub200, glyphs
from embedding_learning.datasets.image_set import DataError, ImageSet

__all__ = ["DataError", "ImageSet", "load"]


def load(
    data_path: str, cache_dir: str, train_classes: int | None = None
) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a data set; their classes do not overlap.

    Parameters
    ----------
    data_path : str
        A folder in the layout of CUB-200-2011, or ``glyphs`` for the set that is drawn on first
        use.
    cache_dir : str
        Where drawn images are kept.
    train_classes : int, optional
        How many of the classes train, the first ones; by default half of them, rounded down.

    Raises
    ------
    DataError
        If a file is missing or wrong, a half of the split would be empty, or the drawn set cannot
        be drawn.
    """
    folder = glyphs.cached(Path(cache_dir)) if data_path == glyphs.NAME else Path(data_path)
    images = cub200.read(folder)
    classes = len(images.class_names)
    if train_classes is None:
        train_classes = classes // 2
        if train_classes < 1:
            raise DataError(
                f"{folder}: holds {classes} class; two are needed, to train and to test"
            )
    if not 1 <= train_classes < classes:
        raise DataError(
            f"--train-classes {train_classes}: {folder} holds {classes} classes, of which "
            f"1 to {classes - 1} can train and the rest test"
        )
    images.check_files()
    return images.of_classes(0, train_classes), images.of_classes(train_classes, classes)
