"""Folders ``train/`` and ``val/`` (or ``test/``) of class folders: the layout of the PyTorch port
of the example (suruoxi/DistanceWeightedSampling) and of many programs for classification.

Both are read like torchvision's ImageFolder (see image_folder.py), and their classes are separate:
a class in both is trained and tested. If both ``val/`` and ``test/`` exist, ``val/`` is used, and
the name of the split says so.
"""

from __future__ import annotations

import os
from pathlib import Path

from embedding_learning.data.datasets import image_folder
from embedding_learning.data.datasets.text_files import check_folder
from embedding_learning.data.image_set import Split
from embedding_learning.errors import DataError

TRAIN, TESTS = "train", ("val", "test")


def read(folder: Path) -> Split:
    """Reads the images in train/, and in val/ or test/; classes are ordered by their names.

    Raises DataError if one of the folders is missing, has no class, or has a class without images.
    """
    check_folder(folder)
    test = next((name for name in TESTS if (folder / name).is_dir()), TESTS[0])
    for name in (TRAIN, test):
        if not (folder / name).is_dir():
            raise DataError(
                f"{folder / name}: no such folder; {TRAIN}/ and {' or '.join(TESTS)}/ hold a "
                "folder for each class; use --dataset folders for classes without a split"
            )
    name = os.path.basename(os.path.abspath(folder))
    return Split(
        f"{name} ({TRAIN}/ and {test}/)",
        train=image_folder.read(folder / TRAIN),
        test=image_folder.read(folder / test),
    )
