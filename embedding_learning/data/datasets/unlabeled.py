"""Reads images named by files, folders or lists; only class folders give them labels."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from embedding_learning.data.datasets.image_folder import (
    EXTENSIONS,
    find_images,
    warn_of_skipped_files,
)
from embedding_learning.data.datasets.text_files import read_lines, unreadable_text
from embedding_learning.data.image_set import ImageSet, number_classes
from embedding_learning.errors import DataError

# The class name of an image whose class is unknown.
UNLABELED = ""
# The input that means a list on the standard input; the first character of a comment in a list.
STANDARD_INPUT, COMMENT = "-", "#"


def read(inputs: Iterable[str | os.PathLike[str]]) -> ImageSet:
    """Returns the images of all inputs, in their order. Repeated images are kept.

    Parameters
    ----------
    inputs : iterable of str or path
        A folder means all images in it, at any depth, sorted as in class folders. A .txt file lists
        images, one per line, relative to its own folder. ``-`` is such a list on the standard
        input, relative to the current folder. A line that starts with ``#`` is a comment; write
        ``./#1.jpg`` for a file whose name starts with it. Any other file is an image.

    Returns
    -------
    ImageSet
        If all images of an input folder are in two or more folders directly inside it, these are
        class folders: the name of an image's folder is its class. All other images have the class
        UNLABELED. The files of a list need not exist.

    Raises
    ------
    ValueError
        If `inputs` is a single text or path.
    DataError
        If an input does not exist, a folder or list cannot be read or holds no image, or ``-`` is
        there twice.
    """
    if isinstance(inputs, (str, bytes, os.PathLike)):
        raise ValueError(f"a list of inputs expected, not {inputs!r} alone")
    paths: list[str] = []
    names: list[str] = []
    sources = [os.fsdecode(name) for name in inputs]
    check_standard_input(sources)
    for name in sources:
        if os.path.isdir(name):
            images = _find_images_of_folder(name)
            paths += images
            names += _find_class_names(name, images)
        else:
            images = _find_images_of_file(name)
            paths += images
            names += [UNLABELED] * len(images)
    return ImageSet(paths, *number_classes(names))


def check_standard_input(inputs: Iterable[str]) -> None:
    """Raises DataError if the standard input is named twice: its list can be read only once."""
    if sum(name == STANDARD_INPUT for name in inputs) > 1:
        raise DataError(
            f"{STANDARD_INPUT}: the standard input can be read only once; write one of the lists "
            "to a .txt file"
        )


def _find_images_of_folder(name: str) -> list[str]:
    images, skipped = find_images(name.rstrip("/") or "/")
    warn_of_skipped_files(name, skipped)
    if not images:
        raise DataError(f"{name}: holds no image ({' '.join(EXTENSIONS)}); name another folder")
    return images


def _find_class_names(top: str, paths: list[str]) -> list[str]:
    """Returns the class name of each image in a folder; UNLABELED if it has no class folders."""
    start = len(top.rstrip("/"))
    folders = [os.path.dirname(path[start:]).strip("/") for path in paths]
    are_class_folders = all(folder and "/" not in folder for folder in folders)
    return folders if are_class_folders and len(set(folders)) >= 2 else [UNLABELED] * len(paths)


def _find_images_of_file(name: str) -> list[str]:
    """Returns the images of a list, or the image itself."""
    if name == STANDARD_INPUT:
        return _parse_list("standard input", "", _read_standard_input())
    if not os.path.exists(name):
        raise DataError(
            f"{name}: no such file or folder; name images, folders or .txt lists, or - for a list "
            "on the standard input"
        )
    if name.lower().endswith(".txt"):
        lines = read_lines(Path(name), "a list holds the path of an image on each line")
        return _parse_list(name, os.path.dirname(name), [line for _, line in lines])
    return [name]


def _read_standard_input() -> list[str]:
    """Reads the lines of the standard input. Blocks until it ends."""
    try:
        # A process can be started without a standard input.
        content = sys.stdin.buffer.read() if sys.stdin else b""
        return [line.strip() for line in content.decode("utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable_text("standard input", error) from None


def _parse_list(source: str, folder: str, lines: list[str]) -> list[str]:
    """Returns the paths in the lines of a list, which are relative to the folder."""
    paths = [line for line in lines if line and not line.startswith(COMMENT)]
    if not paths:
        raise DataError(f"{source}: names no image; write the path of an image on each line")
    return [os.path.join(folder, path) for path in paths]
