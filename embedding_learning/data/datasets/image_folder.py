"""One folder for each class: the layout of torchvision's ImageFolder.

A class is a folder, named after it, and its images are the files below it, at any depth, that have
one of EXTENSIONS. Both are sorted by name as ImageFolder sorts them. What begins with a dot is
passed over, and so are __MACOSX folders, and files next to the class folders. A warning counts the
pictures that are passed over for their format.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np

from embedding_learning.data.datasets.text_files import check_folder
from embedding_learning.data.image_set import ImageSet
from embedding_learning.errors import DataError

# In any case, such as .JPG.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"),
    *(".jfif", ".jpe", ".dib", ".pbm", ".pnm"),  # which ImageFolder does not take
)
# Pictures of formats that are not read.
# fmt: off
_OTHER_PICTURES = frozenset((
    ".3fr", ".ai", ".apng", ".arw", ".avif", ".avifs", ".bpg", ".cr2", ".cr3", ".crw", ".cur",
    ".dcm", ".dds", ".dng", ".emf", ".eps", ".erf", ".exr", ".fits", ".flif", ".gif", ".hdr",
    ".heic", ".heics", ".heif", ".hif", ".icns", ".ico", ".iiq", ".j2c", ".j2k", ".jfi", ".jif",
    ".jls", ".jp2", ".jpc", ".jpf", ".jph", ".jpm", ".jpx", ".jxl", ".jxr", ".jxs", ".kdc",
    ".mng", ".mpo", ".mrw", ".nef", ".nrw", ".orf", ".pam", ".pcd", ".pcx", ".pdf", ".pef",
    ".pfm", ".pict", ".ps", ".psb", ".psd", ".qoi", ".raf", ".ras", ".raw", ".rw2", ".sgi",
    ".sr", ".sr2", ".srf", ".srw", ".svg", ".svgz", ".tga", ".wdp", ".wmf", ".x3f", ".xbm",
    ".xcf", ".xpm",
))
# fmt: on
# What macOS puts into a zip file: a file of attributes for each image, under the image's name.
_NO_CLASS = "__MACOSX"


def read(folder: Path) -> ImageSet:
    """All images of the folder, the classes in the order of their names.

    Raises DataError if there is no class, a class without an image, or a link that leads back to
    a folder above it or, within a class, to where another link has led.
    """
    check_folder(folder)
    names = list_class_folders(folder)
    if not names:
        raise DataError(
            f"{folder}: holds no class folders; name another folder with --data-path, or its "
            "layout with --dataset"
        )
    listings = [find_images(f"{folder}/{name}") for name in names]
    for name, (images, passed_over) in zip(names, listings):
        if not images:
            others = f" but {_counted(passed_over)}" if passed_over else ""
            raise DataError(
                f"{folder / name}: holds no image ({' '.join(EXTENSIONS)}){others}; remove it, or "
                "list the images in a CSV file and name that with --data-path"
            )
    warn_of_skipped_files(folder, sum((passed_over for _, passed_over in listings), Counter()))
    images_of_class = [images for images, _ in listings]
    counts = [len(images) for images in images_of_class]
    return ImageSet(
        paths=[path for images in images_of_class for path in images],
        labels=np.repeat(np.arange(len(names), dtype=np.int32), counts),
        class_names=names,
    )


def list_class_folders(folder: Path) -> list[str]:
    """The names of the folders in it, sorted."""
    return sorted(entry.name for entry in _entries(str(folder)) if entry.is_dir())


def has_images(folder: Path) -> bool:
    """Whether any of the folders in it holds an image, or a picture that is passed over."""
    return any(any(find_images(f"{folder}/{name}")) for name in list_class_folders(folder))


def find_images(top: str) -> tuple[list[str], Counter[str]]:
    """The image files of a folder and all folders below it, and how many pictures are passed over.

    The latter are counted by ending, such as .heic.
    """
    passed_over: Counter[str] = Counter()
    found: list[tuple[str, str]] = []
    folders = [top]
    targets: set[str] = set()
    for folder in folders:
        for entry in _entries(folder):
            if entry.is_dir():
                if entry.is_symlink():
                    _check_link(folder, entry, targets)
                folders.append(entry.path)
            elif entry.name.lower().endswith(EXTENSIONS):
                found.append((folder, entry.name))
            else:
                passed_over.update(_OTHER_PICTURES & {os.path.splitext(entry.name.lower())[1]})
    # By folder and then by file, as ImageFolder does: not the same as by path.
    return [f"{folder}/{name}" for folder, name in sorted(found)], passed_over


def warn_of_skipped_files(folder: Path | str, passed_over: Counter[str]) -> None:
    """A line that counts the pictures of formats that are not read, if there are any."""
    count = sum(passed_over.values())
    if count:
        logging.warning(
            "%s: %s passed over: %s; convert them to JPEG or PNG.",
            *(folder, "1 file was" if count == 1 else f"{count} files were", _counted(passed_over)),
        )


def _counted(passed_over: Counter[str]) -> str:
    """Such as "12 .heic, 3 .gif"."""
    return ", ".join(f"{count} {ending}" for ending, count in passed_over.most_common())


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [
                entry
                for entry in entries
                if not entry.name.startswith(".") and entry.name != _NO_CLASS
            ]
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read: {error.strerror}; let it be read, or name another folder "
            "with --data-path"
        ) from None


def _check_link(folder: str, link: os.DirEntry[str], targets: set[str]) -> None:
    """Adds where the link leads to the targets of others.

    Raises DataError if that is the folder where it stands, or one above, or among the targets: two
    links to each other's folders, or a chain of doubled ones, give more paths than can be listed.
    """
    here, target = os.path.realpath(folder), os.path.realpath(link.path)
    if os.path.commonpath([here, target]) == target:
        raise DataError(f"{link.path}: links to a folder that holds it; remove the link")
    if target in targets:
        raise DataError(f"{link.path}: links to {target} as another link does; remove one of them")
    targets.add(target)
