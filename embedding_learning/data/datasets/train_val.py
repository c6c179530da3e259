"""Folders ``train/`` and ``val/``, or ``test/``, of class folders: as the PyTorch port of the
example (suruoxi/DistanceWeightedSampling) and many programs for classification keep them.

Both are read as torchvision's ImageFolder reads them (see folders.py), their classes apart: one
that stands in both trains, and is searched as well. With ``val/`` and ``test/`` there, ``val/`` is
taken, and the name of the split says so.
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
    """Images below train/, and below val/ or test/; the classes in the order of their names.

    Raises DataError if one of the folders is missing, or has no class or a class without images.
    """
    check_folder(folder)
    test = next((name for name in TESTS if (folder / name).is_dir()), TESTS[0])
    for name in (TRAIN, test):
        if not (folder / name).is_dir():
            raise DataError(
                f"{folder / name}: no such folder; {TRAIN}/ and {' or '.join(TESTS)}/ hold a "
                "folder for each class; --dataset folders takes classes that are not split"
            )
    name = os.path.basename(os.path.abspath(folder))
    return Split(
        f"{name} ({TRAIN}/ and {test}/)",
        train=image_folder.read(folder / TRAIN),
        test=image_folder.read(folder / test),
    )
