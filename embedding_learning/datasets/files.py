"""Images named one by one, by a folder that holds them, or by a list; none has a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedding_learning.datasets.folders import EXTENSIONS, images_below, warn_of_passed_over
from embedding_learning.datasets.image_set import DataError, ImageSet
from embedding_learning.datasets.lists import read_lines

# What an image of no class has for its name.
UNLABELLED = ""


def read(inputs: Sequence[str]) -> ImageSet:
    """The images of each input in turn; one that several inputs name is there as often.

    Parameters
    ----------
    inputs : sequence of str
        A folder stands for the images below it, at any depth, sorted as in class folders. A .txt
        file lists images, one a line, relative to its own folder. Any other file is an image.

    Returns
    -------
    ImageSet
        Of the one class UNLABELLED. Files of a list need not be there.

    Raises
    ------
    DataError
        If an input is not there, or a folder or list cannot be read or holds no image.
    """
    paths = [path for name in inputs for path in _paths(name)]
    return ImageSet(paths, np.zeros(len(paths), np.int32), [UNLABELLED])


def _paths(name: str) -> list[str]:
    if os.path.isdir(name):
        found, passed_over = images_below(name.rstrip("/") or "/")
        warn_of_passed_over(name, passed_over)
        if not found:
            raise DataError(f"{name}: holds no image ({' '.join(EXTENSIONS)}); name another folder")
        return found
    if not os.path.exists(name):
        raise DataError(f"{name}: no such file or folder; name images, folders or .txt lists")
    if name.lower().endswith(".txt"):
        lines = read_lines(Path(name), "a list holds the path of an image on each line")
        return [os.path.join(os.path.dirname(name), line) for _, line in lines]
    return [name]
