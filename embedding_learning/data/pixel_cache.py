"""The pixel cache: decoded images on disk, so that each image is decoded once, not in every epoch.

A pixel cache is a folder of two files. ``pixels`` holds the images one after another, uint8 RGB,
and is mapped into memory: all processes that read it share the system's cached pages. ``index``
begins with a header that identifies the images. For each image it holds the size and modification
time of its file, written only after the pixels have reached the disk. So a build that is
interrupted at any moment resumes where it stopped, and an image that has changed is decoded again.

Each image has the same room in ``pixels``. If images keep their aspect ratio, a smaller one leaves
the end of its room empty, which takes no space on the disk, and the index holds its size too.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from embedding_learning.data.datasets import ImageSet
from embedding_learning.data.preprocessing import (
    ORIGINAL_PREPROCESSING,
    SQUARE,
    Pixels,
    PixelsFromFiles,
    Preprocessing,
    shape_of,
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
# If the images differ in size.
_RECORD_WITH_SIZE = np.dtype([*_RECORD.descr, ("height", "<i4"), ("width", "<i4")])
# Images between two syncs. After a power failure at most these are decoded again; a sync is slow.
_IMAGES_PER_SYNC = 512


class _Layout(NamedTuple):
    """What a pixel cache holds: the number of images, and how they are resized."""

    images: int
    size: int
    preprocessing: Preprocessing

    @property
    def has_sizes(self) -> bool:
        """Whether the images differ in size."""
        return self.preprocessing.resize_to != SQUARE

    @property
    def record(self) -> np.dtype:
        """The type of an image's entry in the index."""
        return _RECORD_WITH_SIZE if self.has_sizes else _RECORD

    @property
    def image_bytes(self) -> int:
        """The room of an image in ``pixels``."""
        return 3 * self.preprocessing.most_pixels(self.size)

    @property
    def pixels_bytes(self) -> int:
        """The length of ``pixels``."""
        return self.images * self.image_bytes

    @property
    def index_bytes(self) -> int:
        """The length of ``index``."""
        return _HEADER_BYTES + self.images * self.record.itemsize


class _CachedPhotographs:
    """Images of unequal sizes, mapped read-only from a pixel cache.

    Parameters
    ----------
    rooms : ndarray of uint8 (n, image_bytes)
        Each row begins with the pixels of an image.
    heights, widths : ndarray of int (n,)
    """

    def __init__(self, rooms: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> None:
        self._rooms = rooms
        self._sizes = np.stack([heights, widths], axis=1).astype(np.int64)
        self.shape = (len(rooms),)

    def __getitem__(self, row: int) -> np.ndarray:
        height, width = self._sizes[row]
        return self._rooms[row, : 3 * height * width].reshape(height, width, 3)


def open_pixel_cache(
    images: ImageSet,
    size: int,
    folder: Path,
    workers: int,
    skip_bad: bool = False,
    preprocessing: Preprocessing = ORIGINAL_PREPROCESSING,
) -> tuple[Pixels, np.ndarray] | None:
    """Returns the decoded images from their pixel cache; first decodes the ones it lacks.

    Blocks while another process decodes the same images.

    Parameters
    ----------
    images : ImageSet
    size : int
        The size that each image is resized to, in pixels.
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
    (Pixels, ndarray of bool (n,)), optional
        The images, mapped read-only, and which of them could be decoded. Squares are an ndarray of
        uint8 (n, size, size, 3). None, after a warning, if the disk is full or the folder cannot be
        written to.

    Raises
    ------
    DataError
        If a file cannot be decoded and `skip_bad` is not set.
    """
    header = _make_header(images, size, preprocessing)
    cache_folder = folder / hashlib.sha256(header).hexdigest()[:16]
    layout = _Layout(len(images), size, preprocessing)
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        # A pixel cache from an untrusted source could contain a link to a file of the user.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with locked(cache_folder / "lock", flags, on_wait=_log_waiting):
            if not _is_valid(cache_folder, header, layout):
                _create(cache_folder, header, layout)
            decoder = PixelsFromFiles(images, size, preprocessing)
            index = _fill(cache_folder, images, decoder, layout, workers, skip_bad)
    except OSError as error:
        logging.warning(
            "Cannot write the pixel cache to %s (%s; it needs %s%.1f GB): each image is decoded "
            "again every time; name another folder with --cache-dir.",
            cache_folder, error.strerror or error, "up to " if layout.has_sizes else "",
            layout.pixels_bytes / 1e9,
        )  # fmt: skip
        return None
    shape = shape_of(len(images), size, preprocessing)
    if layout.has_sizes:
        shape = (layout.images, layout.image_bytes)
    # A plain array, since each access to a memmap makes a new memmap and takes ten times as long.
    pixels = np.memmap(cache_folder / "pixels", np.uint8, "r", shape=shape).view(np.ndarray)
    is_decodable = index["state"] == _CACHED
    if layout.has_sizes:
        return _CachedPhotographs(pixels, index["height"], index["width"]), is_decodable
    return pixels, is_decodable


def _make_header(images: ImageSet, size: int, preprocessing: Preprocessing) -> bytes:
    """Returns the header of the index. Equal headers mean the same images in the same order."""
    digest = hashlib.sha256()
    for path in images.paths:
        digest.update(os.fsencode(os.path.abspath(path)) + b"\0")
    if images.boxes is not None:
        digest.update(np.ascontiguousarray(images.boxes, "<i4").tobytes())
    # Defaults add nothing: caches from before there was a choice are found again.
    if preprocessing != ORIGINAL_PREPROCESSING:
        is_square = preprocessing.resize_to == SQUARE
        digest.update(repr(tuple(preprocessing[:2] if is_square else preprocessing)).encode())
    text = f"{_VERSION} {len(images)} {size} {digest.hexdigest()}\n".encode()
    return (_MAGIC + text).ljust(_HEADER_BYTES, b"\0")


def _log_waiting() -> None:
    logging.info("Waiting for another run that decodes the same images.")


def _is_valid(cache_folder: Path, header: bytes, layout: _Layout) -> bool:
    """Returns whether a complete pixel cache of these images exists; warns if it is damaged."""
    index, pixels = cache_folder / "index", cache_folder / "pixels"
    if not os.path.lexists(index):
        return False
    sizes = _regular_file_bytes(pixels), _regular_file_bytes(index)
    if sizes == (layout.pixels_bytes, layout.index_bytes):
        with open(index, "rb") as file:
            if file.read(_HEADER_BYTES) == header and _has_valid_sizes(file.read(), layout):
                return True
    logging.warning("The pixel cache in %s is damaged: it is built again.", cache_folder)
    return False


def _has_valid_sizes(records: bytes, layout: _Layout) -> bool:
    """Returns whether each decoded image has a size that it can have."""
    if not layout.has_sizes:
        return True
    index = np.frombuffer(records, layout.record)
    cached = index[index["state"] == _CACHED]
    is_result, size = layout.preprocessing.is_result, layout.size
    return all(is_result(int(h), int(w), size) for h, w in cached[["height", "width"]])


def _regular_file_bytes(file: Path) -> int:
    """Returns the size of a regular file; -1 if it is missing or something else, such as a link."""
    try:
        status = file.lstat()
    except FileNotFoundError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _create(cache_folder: Path, header: bytes, layout: _Layout) -> None:
    """Creates an empty pixel cache.

    Old files are replaced, not overwritten, since another run may have them mapped into memory.
    """
    try:
        for name, content, length in (
            ("pixels", b"", layout.pixels_bytes),
            ("index", header, layout.index_bytes),
        ):
            new = cache_folder / f"{name}.new"
            new.unlink(missing_ok=True)
            with open(new, "xb") as file:
                file.write(content)
                file.flush()
                if name == "pixels" and layout.has_sizes:
                    # How much of it is needed is not known yet.
                    os.ftruncate(file.fileno(), length)
                else:
                    # Reserves the space now, so that a full disk is noticed before hours of
                    # decoding.
                    os.posix_fallocate(file.fileno(), 0, length)
            new.replace(cache_folder / name)
    except OSError:
        _remove(cache_folder)
        raise


def _remove(cache_folder: Path) -> None:
    """Removes the files of a pixel cache that the disk has no room for."""
    for name in ("pixels.new", "index.new", "index", "pixels"):
        (cache_folder / name).unlink(missing_ok=True)


def _fill(
    cache_folder: Path,
    images: ImageSet,
    decoder: PixelsFromFiles,
    layout: _Layout,
    workers: int,
    skip_bad: bool,
) -> np.ndarray:
    """Decodes new and changed images into the cache; returns a copy of the index, (n,)."""
    index = np.memmap(
        cache_folder / "index", layout.record, "r+", offset=_HEADER_BYTES, shape=(len(images),)
    )
    stats = images.read_file_stats(missing_ok=skip_bad)
    is_unchanged = (index["file_bytes"] == stats[:, 0]) & (index["modified"] == stats[:, 1])
    # A known bad file is decoded again to raise its error, unless bad files are skipped.
    done_states = (_CACHED, _BAD) if skip_bad else (_CACHED,)
    rows_to_decode = np.flatnonzero(~(is_unchanged & np.isin(index["state"], done_states)))
    count = len(rows_to_decode)
    if count:
        logging.info("Decoding %d of %d images into %s.", count, len(images), cache_folder)

    def decode_row(row: int) -> tuple[int, int, int]:
        """Writes the pixels of an image; returns its state, its height and its width."""
        try:
            pixels, state = decoder[row], _CACHED
        except DataError as error:
            if not skip_bad:
                raise
            logging.warning("Skipped: %s", error)
            pixels, state = np.zeros((layout.size, layout.size, 3), np.uint8), _BAD
        if os.pwrite(file, pixels.tobytes(), row * layout.image_bytes) < pixels.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return state, pixels.shape[0], pixels.shape[1]

    file = os.open(cache_folder / "pixels", os.O_RDWR)
    try:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            # Before its pixels change, an image is marked as missing.
            index["state"][rows_to_decode] = _MISSING
            index.flush()
            bar = progress_bar(rows_to_decode, "Decoding images", "image")
            for start in range(0, count, _IMAGES_PER_SYNC):
                rows = rows_to_decode[start : start + _IMAGES_PER_SYNC]
                decoded = np.array([of_row for of_row, _ in zip(pool.map(decode_row, rows), bar)])
                states, heights, widths = decoded.T
                os.fsync(file)
                index["file_bytes"][rows], index["modified"][rows] = stats[rows].T
                if layout.has_sizes:
                    index["height"][rows], index["width"][rows] = heights, widths
                    left = count - start - len(rows)
                    _check_room(file, left * 3 * int(np.mean(heights * widths)))
                index["state"][rows] = states
                index.flush()
    except OSError as error:
        if layout.has_sizes and error.errno == errno.ENOSPC:
            _remove(cache_folder)
        raise
    finally:
        os.close(file)
    return np.array(index)


def _check_room(file: int, needed: int) -> None:
    """Raises OSError if the file's disk has less room than so many bytes."""
    disk = os.fstatvfs(file)
    if disk.f_bavail * disk.f_frsize < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
