"""One folder for each class: the layout of torchvision's ImageFolder.

The name of a folder is the name of its class. The images of a class are the files in its folder, at
any depth, whose names end with one of EXTENSIONS. Classes and images are sorted by name like
ImageFolder sorts them. Skipped are names that start with a dot, __MACOSX folders, and files next to
the class folders. A warning counts the images that are skipped because of their format.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np

from embedding_learning.data.datasets.text_files import check_folder
from embedding_learning.data.image_set import ImageSet
from embedding_learning.errors import DataError

# In lower or upper case, such as .JPG.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"),
    *(".jfif", ".jpe", ".dib", ".pbm", ".pnm"),  # not read by ImageFolder
)
# Images of formats that are not supported.
# fmt: off
_UNSUPPORTED_EXTENSIONS = frozenset((
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
# macOS adds this folder to a zip file. It has a file of attributes for each image, with its name.
_MACOS_FOLDER = "__MACOSX"


def read(folder: Path) -> ImageSet:
    """Reads all images of the folder; classes are ordered by their names.

    Raises DataError if there is no class, a class has no image, or a link leads to a folder that
    contains the link or, within a class, to the target of another link.
    """
    check_folder(folder)
    names = list_class_folders(folder)
    if not names:
        raise DataError(
            f"{folder}: holds no class folders; name another folder with --data-path, or the data "
            "set with --dataset"
        )
    listings = [find_images(f"{folder}/{name}") for name in names]
    for name, (images, skipped) in zip(names, listings):
        if not images:
            others = f" but {_format_counts(skipped)}" if skipped else ""
            raise DataError(
                f"{folder / name}: holds no image ({' '.join(EXTENSIONS)}){others}; remove it, or "
                "list the images in a CSV file and name that with --data-path"
            )
    warn_of_skipped_files(folder, sum((skipped for _, skipped in listings), Counter()))
    images_of_class = [images for images, _ in listings]
    counts = [len(images) for images in images_of_class]
    return ImageSet(
        paths=[path for images in images_of_class for path in images],
        labels=np.repeat(np.arange(len(names), dtype=np.int32), counts),
        class_names=names,
    )


def list_class_folders(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted."""
    return sorted(entry.name for entry in _list_entries(str(folder)) if _is_folder(entry))


def has_images(folder: Path) -> bool:
    """Returns whether a class folder holds an image, of a supported format or not."""
    return any(any(find_images(f"{folder}/{name}")) for name in list_class_folders(folder))


def find_images(top: str) -> tuple[list[str], Counter[str]]:
    """Returns the image files in a folder, at any depth, and the numbers of skipped images.

    Skipped are images of unsupported formats. They are counted by extension, such as .heic.
    """
    skipped: Counter[str] = Counter()
    images: list[tuple[str, str]] = []
    folders = [top]
    targets: set[str] = set()
    for folder in folders:
        for entry in _list_entries(folder):
            if _is_folder(entry):
                if entry.is_symlink():
                    _check_link(folder, entry, targets)
                folders.append(entry.path)
            elif entry.name.lower().endswith(EXTENSIONS):
                images.append((folder, entry.name))
            else:
                skipped.update(_UNSUPPORTED_EXTENSIONS & {os.path.splitext(entry.name.lower())[1]})
    # By folder and then by file, like ImageFolder. Sorting by path would give another order.
    return [f"{folder}/{name}" for folder, name in sorted(images)], skipped


def warn_of_skipped_files(folder: Path | str, skipped: Counter[str]) -> None:
    """Logs a warning that counts the skipped images, if there are any."""
    count = sum(skipped.values())
    if count:
        files = "1 file was" if count == 1 else f"{count} files were"
        logging.warning(
            "%s: %s skipped: %s; convert them to JPEG or PNG.",
            folder,
            files,
            _format_counts(skipped),
        )


def _format_counts(skipped: Counter[str]) -> str:
    """Returns a text such as "12 .heic, 3 .gif"."""
    return ", ".join(f"{count} {extension}" for extension, count in skipped.most_common())


def _list_entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [
                entry
                for entry in entries
                if not entry.name.startswith(".") and entry.name != _MACOS_FOLDER
            ]
    except OSError as error:
        raise _unreadable(folder, error) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether it is a folder or a link to one.

    A link that leads nowhere or to itself is none: as an image, it is reported as missing. Raises
    DataError if the target of a link cannot be accessed.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise _unreadable(entry.path, error) from None


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be read: {error.strerror}; change its permissions, or name another folder "
        "with --data-path"
    )


def _check_link(folder: str, link: os.DirEntry[str], targets: set[str]) -> None:
    """Adds the target of a link to the `targets` of other links.

    Raises DataError if the target contains the link, or is among `targets`. Two links to each
    other's folders, or a chain of doubled links, would give more paths than can be listed.
    """
    parent, target = os.path.realpath(folder), os.path.realpath(link.path)
    if os.path.commonpath([parent, target]) == target:
        raise DataError(f"{link.path}: links to a folder that contains it; remove the link")
    if target in targets:
        raise DataError(f"{link.path}: links to {target} as another link does; remove one of them")
    targets.add(target)
