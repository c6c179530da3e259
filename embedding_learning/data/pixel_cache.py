"""The store of decoded images: crop to the box and resize happen once, not in every epoch.

A store is a folder of two files. ``pixels`` holds the images one after another, uint8 RGB, and is
mapped into memory: what is read are pages of the system's cache, shared by all who read them.
``index`` begins with a header that names the images, and holds for each the size and modification
time of the file it was decoded from, written only after the pixels have reached the disk. So a
build that is interrupted at any moment goes on where it stopped, and an image that has changed is
decoded again.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from embedding_learning.data.datasets import ImageSet
from embedding_learning.data.preprocessing import (
    ORIGINAL_PREPROCESSING,
    PixelsFromFiles,
    Preprocessing,
)
from embedding_learning.errors import DataError
from embedding_learning.runtime.progress import progress_bar

# Goes up when the same file, box and size would give other pixels, or the layout changes.
_VERSION = 2
_MAGIC = b"embedding_learning image store\n"
_HEADER_BYTES = 128
# State of an image in the index.
_MISSING, _STORED, _BAD = 0, 1, 2
_RECORD = np.dtype([("file_bytes", "<i8"), ("modified", "<i8"), ("state", "<i8")])
# Images between two syncs: what a loss of power costs, against the time of a sync.
_IMAGES_PER_SYNC = 512


def open_pixel_cache(
    images: ImageSet,
    size: int,
    folder: Path,
    workers: int,
    skip_bad: bool = False,
    preprocessing: Preprocessing = ORIGINAL_PREPROCESSING,
) -> tuple[np.ndarray, np.ndarray] | None:
    """The decoded images, from the store in `folder`; what it lacks is decoded first.

    Parameters
    ----------
    images : ImageSet
    size : int
        Side of the square that each image is resized to, in pixels.
    folder : Path
        Where stores are kept; each set of paths, boxes, size and preprocessing has one of its own.
    workers : int
        Threads that decode.
    skip_bad : bool
        Leave files that cannot be decoded black instead of raising DataError.
    preprocessing : Preprocessing

    Returns
    -------
    (ndarray of uint8 (n, size, size, 3), ndarray of bool (n,)), optional
        The images, mapped for reading, and which of them could be decoded. None, after a warning,
        if the folder has no room or cannot be written to.

    Raises
    ------
    DataError
        If a file cannot be decoded, and bad ones are not to be skipped.
    """
    header = _header(images, size, preprocessing)
    home = folder / hashlib.sha256(header).hexdigest()[:16]
    shape = (len(images), size, size, 3)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home / "lock"):
            if not _is_sound(home, header, shape):
                _create(home, header, shape)
            decoder = PixelsFromFiles(images, size, preprocessing)
            good = _fill(home, images, decoder, workers, skip_bad)
    except OSError as error:
        logging.warning(
            "Cannot keep decoded images in %s (%s; %.1f GB are needed): each image is decoded "
            "anew every time; name another folder with --cache-dir.",
            home, error.strerror or error, _pixels_bytes(shape) / 1e9,
        )  # fmt: skip
        return None
    pixels = np.memmap(home / "pixels", np.uint8, "r", shape=shape)
    # A plain array: each access to a memmap would make a memmap, in ten times the time.
    return pixels.view(np.ndarray), good


def _header(images: ImageSet, size: int, preprocessing: Preprocessing) -> bytes:
    """Names what is stored; equal headers mean equal images in equal places."""
    names = hashlib.sha256()
    for path in images.paths:
        names.update(os.fsencode(os.path.abspath(path)) + b"\0")
    if images.boxes is not None:
        names.update(np.ascontiguousarray(images.boxes, "<i4").tobytes())
    # Stores of the default keep the names they had before there was a choice.
    if preprocessing != ORIGINAL_PREPROCESSING:
        names.update(repr(tuple(preprocessing)).encode())
    text = f"{_VERSION} {len(images)} {size} {names.hexdigest()}\n".encode()
    return (_MAGIC + text).ljust(_HEADER_BYTES, b"\0")


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process at a time; the lock of one that was killed is gone with it."""
    # Whoever hands over a store could have put a link to a file of ours in the lock's place.
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.info("Waiting for another run that decodes the same images.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_sound(home: Path, header: bytes, shape: tuple[int, ...]) -> bool:
    """Whether there is a store of these images with nothing cut off; says so if it is damaged."""
    index, pixels = home / "index", home / "pixels"
    if not os.path.lexists(index):
        return False
    if (_plain_bytes(pixels), _plain_bytes(index)) == (_pixels_bytes(shape), _index_bytes(shape)):
        with open(index, "rb") as file:
            if file.read(_HEADER_BYTES) == header:
                return True
    logging.warning("The store of decoded images in %s is damaged: it is built anew.", home)
    return False


def _plain_bytes(file: Path) -> int:
    """The size of a plain file; -1 if it is none, such as a link to a file that is not ours."""
    try:
        found = file.lstat()
    except FileNotFoundError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _pixels_bytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _index_bytes(shape: tuple[int, ...]) -> int:
    return _HEADER_BYTES + shape[0] * _RECORD.itemsize


def _create(home: Path, header: bytes, shape: tuple[int, ...]) -> None:
    """An empty store. Files are replaced, not cut: another run may have the old ones mapped."""
    try:
        for name, content, length in (
            ("pixels", b"", _pixels_bytes(shape)),
            ("index", header, _index_bytes(shape)),
        ):
            new = home / f"{name}.new"
            new.unlink(missing_ok=True)
            with open(new, "xb") as file:
                file.write(content)
                file.flush()
                # Takes the room now, so that a full disk shows before hours of decoding.
                os.posix_fallocate(file.fileno(), 0, length)
            new.replace(home / name)
    except OSError:
        for name in ("pixels.new", "index.new", "index", "pixels"):
            (home / name).unlink(missing_ok=True)
        raise


def _fill(
    home: Path, images: ImageSet, decoder: PixelsFromFiles, workers: int, skip_bad: bool
) -> np.ndarray:
    """Decodes what the store lacks or holds of an older file; which images are good, (n,)."""
    index = np.memmap(home / "index", _RECORD, "r+", offset=_HEADER_BYTES, shape=(len(images),))
    stats = images.read_file_stats(missing_ok=skip_bad)
    fresh = (index["file_bytes"] == stats[:, 0]) & (index["modified"] == stats[:, 1])
    # Decoding a known bad file again is what names its fault, unless it is to be skipped.
    known = (_STORED, _BAD) if skip_bad else (_STORED,)
    todo = np.flatnonzero(~(fresh & np.isin(index["state"], known)))
    if len(todo):
        logging.info("Decoding %d of %d images into %s.", len(todo), len(images), home)
    image_bytes = math.prod(decoder.shape[1:])

    def store(row: int) -> int:
        try:
            pixels = decoder[row].tobytes()
        except DataError as error:
            if not skip_bad:
                raise
            logging.warning("Skipped: %s", error)
            pixels, state = bytes(image_bytes), _BAD
        else:
            state = _STORED
        os.pwrite(file, pixels, row * image_bytes)
        return state

    file = os.open(home / "pixels", os.O_RDWR)
    try:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            # Before its pixels change, an image is no longer vouched for.
            index["state"][todo] = _MISSING
            index.flush()
            bar = progress_bar(todo, "Decoding images", "image")
            for start in range(0, len(todo), _IMAGES_PER_SYNC):
                rows = todo[start : start + _IMAGES_PER_SYNC]
                states = [state for state, _ in zip(pool.map(store, rows), bar)]
                os.fsync(file)
                index["file_bytes"][rows], index["modified"][rows] = stats[rows].T
                index["state"][rows] = states
                index.flush()
    finally:
        os.close(file)
    return np.asarray(index["state"] == _STORED)
