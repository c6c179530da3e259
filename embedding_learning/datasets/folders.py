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
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from embedding_learning.datasets.image_set import DataError, ImageSet
from embedding_learning.datasets.lists import check_folder

# In any case, such as .JPG.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Pictures of formats that are not read.
_OTHER_PICTURES = frozenset(
    ".3fr .ai .apng .arw .avif .avifs .bpg .cr2 .cr3 .crw .cur .dcm .dcr .dds .djvu .dng .emf .eps "
    ".erf .exr .fit .fits .flif .gif .hdp .hdr .heic .heics .heif .hif .icns .ico .iiq .j2c .j2k "
    ".jfi .jif .jls .jng .jp2 .jpc .jpf .jph .jpm .jps .jpx .jxl .jxr .jxs .kdc .mef .mng .mos .mpo "
    ".mrw .nef .nrw .orf .pam .pcd .pcx .pdf .pef .pfm .pic .pict .pns .ps .psb .psd .qoi .raf .ras "
    ".raw .rw2 .rwl .sgi .sr .sr2 .srf .srw .sun .svg .svgz .tga .wbmp .wdp .wmf .x3f .xbm .xcf "
    ".xpm".split()
)
# What macOS puts into a zip file: a file of attributes for each image, under the image's name.
_NO_CLASS = "__MACOSX"


def read(folder: Path) -> ImageSet:
    """All images of the folder, the classes in the order of their names.

    Raises DataError if there is no class, a class without an image, or a link that leads back to
    a folder above it or, within a class, to where another link has led.
    """
    check_folder(folder)
    names = class_folders(folder)
    if not names:
        raise DataError(
            f"{folder}: holds no class folders; name another folder with --data-path, or its "
            "layout with --dataset"
        )
    passed_over: Counter[str] = Counter()
    images_of_class = [images_below(f"{folder}/{name}", passed_over) for name in names]
    for name, images in zip(names, images_of_class):
        if not images:
            raise DataError(
                f"{folder / name}: holds no image ({' '.join(EXTENSIONS)}); remove it, or list "
                "the images in a CSV file and name that with --data-path" + _counted(passed_over)
            )
    warn_of_passed_over(folder, passed_over)
    counts = [len(images) for images in images_of_class]
    return ImageSet(
        paths=[path for images in images_of_class for path in images],
        labels=np.repeat(np.arange(len(names), dtype=np.int32), counts),
        class_names=names,
    )


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in it, sorted."""
    return sorted(entry.name for entry in _entries(str(folder)) if entry.is_dir())


def holds_images(folder: Path) -> bool:
    """Whether any of the folders in it holds an image."""
    return any(images_below(f"{folder}/{name}", Counter()) for name in class_folders(folder))


def images_below(top: str, passed_over: Counter[str]) -> list[str]:
    """The image files of a folder and all folders below it.

    Adds to `passed_over` how many pictures of other formats there are, by ending.
    """
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
    return [f"{folder}/{name}" for folder, name in sorted(found)]


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
