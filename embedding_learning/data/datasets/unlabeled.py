"""Images named one by one, by a folder that holds them, or by a list; class folders give labels."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from embedding_learning.data.datasets.image_folder import (
    EXTENSIONS,
    find_images,
    warn_of_skipped_files,
)
from embedding_learning.data.datasets.text_files import read_lines
from embedding_learning.data.image_set import ImageSet, number_classes
from embedding_learning.errors import DataError

# The name of the class of an image whose class is not known.
UNLABELED = ""
# The input that stands for a list on the standard input, and the first character of a comment.
STANDARD_INPUT, COMMENT = "-", "#"


def read(inputs: Sequence[str]) -> ImageSet:
    """The images of each input in turn; one that several inputs name is there as often.

    Parameters
    ----------
    inputs : sequence of str
        A folder stands for the images below it, at any depth, sorted as in class folders. A .txt
        file lists images, one a line, relative to its own folder, and ``-`` is such a list on the
        standard input, relative to the current folder. A line that begins with ``#`` is a comment;
        ``./#1.jpg`` names a file that begins so. Any other file is an image.

    Returns
    -------
    ImageSet
        The class of an image is the name of its folder in a folder of class folders: one whose
        images all lie in folders directly in it, two or more. All other images are of the class
        UNLABELED. Files of a list need not be there.

    Raises
    ------
    DataError
        If an input is not there, or a folder or list cannot be read or holds no image.
    """
    paths: list[str] = []
    names: list[str] = []
    for name in inputs:
        if os.path.isdir(name):
            found = _images_of_folder(name)
            paths += found
            names += _class_names(name, found)
        else:
            found = _images_of_file(name)
            paths += found
            names += [UNLABELED] * len(found)
    return ImageSet(paths, *number_classes(names))


def _images_of_folder(name: str) -> list[str]:
    found, passed_over = find_images(name.rstrip("/") or "/")
    warn_of_skipped_files(name, passed_over)
    if not found:
        raise DataError(f"{name}: holds no image ({' '.join(EXTENSIONS)}); name another folder")
    return found


def _class_names(top: str, paths: list[str]) -> list[str]:
    """The class of each of a folder's images; UNLABELED unless these are class folders."""
    begin = len(top.rstrip("/"))
    folders = [os.path.dirname(path[begin:]).strip("/") for path in paths]
    is_flat = any(not folder or "/" in folder for folder in folders)
    return [UNLABELED] * len(paths) if is_flat or len(set(folders)) < 2 else folders


def _images_of_file(name: str) -> list[str]:
    """The images of a list, or the image itself."""
    if name == STANDARD_INPUT:
        return _listed("standard input", "", _standard_input())
    if not os.path.exists(name):
        raise DataError(
            f"{name}: no such file or folder; name images, folders or .txt lists, or - for a list "
            "on the standard input"
        )
    if name.lower().endswith(".txt"):
        lines = read_lines(Path(name), "a list holds the path of an image on each line")
        return _listed(name, os.path.dirname(name), [line for _, line in lines])
    return [name]


def _standard_input() -> list[str]:
    """The lines of the standard input."""
    try:
        # A process may have been started without one.
        content = sys.stdin.buffer.read() if sys.stdin else b""
        return [line.strip() for line in content.decode("utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"standard input: cannot be read as UTF-8 text: {error}") from None


def _listed(source: str, folder: str, lines: list[str]) -> list[str]:
    """The images that the lines of a list name, relative to the folder."""
    named = [line for line in lines if line and not line.startswith(COMMENT)]
    if not named:
        raise DataError(f"{source}: names no image; write the path of one on each line")
    return [os.path.join(folder, line) for line in named]
