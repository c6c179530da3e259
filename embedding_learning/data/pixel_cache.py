"""The pixel cache: decoded images on disk, so that each image is decoded once, not in every epoch.

A pixel cache is a folder of two files. ``pixels`` holds the images one after another, uint8 RGB,
and is mapped into memory: all processes that read it share the system's cached pages. ``index``
begins with a header that identifies the images. For each image it holds the size and modification
time of its file, written only after the pixels have reached the disk. So a build that is
interrupted at any moment resumes where it stopped, and an image that has changed is decoded again.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from embedding_learning.data.datasets import ImageSet
from embedding_learning.data.preprocessing import (
    ORIGINAL_PREPROCESSING,
    PixelsFromFiles,
    Preprocessing,
)
from embedding_learning.errors import DataError
from embedding_learning.runtime.file_locks import locked
from embedding_learning.runtime.progress import progress_bar

# Increase it when the same file, box and size give other pixels, or the file format changes.
_VERSION = 2
_MAGIC = b"embedding_learning image store\n"
_HEADER_BYTES = 128
# State of an image in the index.
_MISSING, _CACHED, _BAD = 0, 1, 2
_RECORD = np.dtype([("file_bytes", "<i8"), ("modified", "<i8"), ("state", "<i8")])
# Images between two syncs. After a power failure at most these are decoded again; a sync is slow.
_IMAGES_PER_SYNC = 512


def open_pixel_cache(
    images: ImageSet,
    size: int,
    folder: Path,
    workers: int,
    skip_bad: bool = False,
    preprocessing: Preprocessing = ORIGINAL_PREPROCESSING,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the decoded images from their pixel cache; first decodes the ones it lacks.

    Blocks while another process decodes the same images.

    Parameters
    ----------
    images : ImageSet
    size : int
        Side of the square that each image is resized to, in pixels.
    folder : Path
        The folder of all pixel caches; each combination of paths, boxes, size and preprocessing has
        its own in it.
    workers : int
        Threads that decode.
    skip_bad : bool
        Whether images that cannot be decoded become black, instead of raising DataError.
    preprocessing : Preprocessing

    Returns
    -------
    (ndarray of uint8 (n, size, size, 3), ndarray of bool (n,)), optional
        The images, mapped read-only, and which of them could be decoded. None, after a warning, if
        the disk is full or the folder cannot be written to.

    Raises
    ------
    DataError
        If a file cannot be decoded and `skip_bad` is not set.
    """
    header = _make_header(images, size, preprocessing)
    cache_folder = folder / hashlib.sha256(header).hexdigest()[:16]
    shape = (len(images), size, size, 3)
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        # A pixel cache from an untrusted source could contain a link to a file of the user.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with locked(cache_folder / "lock", flags, on_wait=_log_waiting):
            if not _is_valid(cache_folder, header, shape):
                _create(cache_folder, header, shape)
            decoder = PixelsFromFiles(images, size, preprocessing)
            is_decodable = _fill(cache_folder, images, decoder, workers, skip_bad)
    except OSError as error:
        logging.warning(
            "Cannot write the pixel cache to %s (%s; it needs %.1f GB): each image is decoded "
            "again every time; name another folder with --cache-dir.",
            cache_folder, error.strerror or error, _pixels_bytes(shape) / 1e9,
        )  # fmt: skip
        return None
    pixels = np.memmap(cache_folder / "pixels", np.uint8, "r", shape=shape)
    # A plain array, since each access to a memmap makes a new memmap and takes ten times as long.
    return pixels.view(np.ndarray), is_decodable


def _make_header(images: ImageSet, size: int, preprocessing: Preprocessing) -> bytes:
    """Returns the header of the index. Equal headers mean the same images in the same order."""
    digest = hashlib.sha256()
    for path in images.paths:
        digest.update(os.fsencode(os.path.abspath(path)) + b"\0")
    if images.boxes is not None:
        digest.update(np.ascontiguousarray(images.boxes, "<i4").tobytes())
    # The default adds nothing: caches from before there was a choice are found again.
    if preprocessing != ORIGINAL_PREPROCESSING:
        digest.update(repr(tuple(preprocessing)).encode())
    text = f"{_VERSION} {len(images)} {size} {digest.hexdigest()}\n".encode()
    return (_MAGIC + text).ljust(_HEADER_BYTES, b"\0")


def _log_waiting() -> None:
    logging.info("Waiting for another run that decodes the same images.")


def _is_valid(cache_folder: Path, header: bytes, shape: tuple[int, ...]) -> bool:
    """Returns whether a complete pixel cache of these images exists; warns if it is damaged."""
    index, pixels = cache_folder / "index", cache_folder / "pixels"
    if not os.path.lexists(index):
        return False
    sizes = _regular_file_bytes(pixels), _regular_file_bytes(index)
    if sizes == (_pixels_bytes(shape), _index_bytes(shape)):
        with open(index, "rb") as file:
            if file.read(_HEADER_BYTES) == header:
                return True
    logging.warning("The pixel cache in %s is damaged: it is built again.", cache_folder)
    return False


def _regular_file_bytes(file: Path) -> int:
    """Returns the size of a regular file; -1 if it is missing or something else, such as a link."""
    try:
        status = file.lstat()
    except FileNotFoundError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _pixels_bytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _index_bytes(shape: tuple[int, ...]) -> int:
    return _HEADER_BYTES + shape[0] * _RECORD.itemsize


def _create(cache_folder: Path, header: bytes, shape: tuple[int, ...]) -> None:
    """Creates an empty pixel cache.

    Old files are replaced, not overwritten, since another run may have them mapped into memory.
    """
    try:
        for name, content, length in (
            ("pixels", b"", _pixels_bytes(shape)),
            ("index", header, _index_bytes(shape)),
        ):
            new = cache_folder / f"{name}.new"
            new.unlink(missing_ok=True)
            with open(new, "xb") as file:
                file.write(content)
                file.flush()
                # Reserves the space now, so that a full disk is noticed before hours of decoding.
                os.posix_fallocate(file.fileno(), 0, length)
            new.replace(cache_folder / name)
    except OSError:
        for name in ("pixels.new", "index.new", "index", "pixels"):
            (cache_folder / name).unlink(missing_ok=True)
        raise


def _fill(
    cache_folder: Path, images: ImageSet, decoder: PixelsFromFiles, workers: int, skip_bad: bool
) -> np.ndarray:
    """Decodes new and changed images into the cache; returns which images are good, bool (n,)."""
    index = np.memmap(
        cache_folder / "index", _RECORD, "r+", offset=_HEADER_BYTES, shape=(len(images),)
    )
    stats = images.read_file_stats(missing_ok=skip_bad)
    is_unchanged = (index["file_bytes"] == stats[:, 0]) & (index["modified"] == stats[:, 1])
    # A known bad file is decoded again to raise its error, unless bad files are skipped.
    done_states = (_CACHED, _BAD) if skip_bad else (_CACHED,)
    rows_to_decode = np.flatnonzero(~(is_unchanged & np.isin(index["state"], done_states)))
    count = len(rows_to_decode)
    if count:
        logging.info("Decoding %d of %d images into %s.", count, len(images), cache_folder)
    image_bytes = math.prod(decoder.shape[1:])

    def decode_row(row: int) -> int:
        """Writes the pixels of an image; returns its state."""
        try:
            pixels = decoder[row].tobytes()
        except DataError as error:
            if not skip_bad:
                raise
            logging.warning("Skipped: %s", error)
            pixels, state = bytes(image_bytes), _BAD
        else:
            state = _CACHED
        os.pwrite(file, pixels, row * image_bytes)
        return state

    file = os.open(cache_folder / "pixels", os.O_RDWR)
    try:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            # Before its pixels change, an image is marked as missing.
            index["state"][rows_to_decode] = _MISSING
            index.flush()
            bar = progress_bar(rows_to_decode, "Decoding images", "image")
            for start in range(0, count, _IMAGES_PER_SYNC):
                rows = rows_to_decode[start : start + _IMAGES_PER_SYNC]
                states = [state for state, _ in zip(pool.map(decode_row, rows), bar)]
                os.fsync(file)
                index["file_bytes"][rows], index["modified"][rows] = stats[rows].T
                index["state"][rows] = states
                index.flush()
    finally:
        os.close(file)
    return np.asarray(index["state"] == _CACHED)
