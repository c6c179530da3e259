"""The pixel cache: the same pixels as decoding again, also after damage and changes."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embedding_learning.data import pixel_cache
from embedding_learning.data.datasets import ImageSet, cub200
from embedding_learning.data.pixel_cache import open_pixel_cache
from embedding_learning.data.preprocessing import PixelsFromFiles
from embedding_learning.errors import DataError
from tests.helpers.paths import ROOT

SIZE = 24


@pytest.fixture
def images(tmp_path: Path, write_cub) -> ImageSet:
    """Twelve images of their own, to be changed."""
    return cub200.read(write_cub(tmp_path / "data", [4] * 3), True)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that were decoded into a pixel cache, in order."""
    rows: list[int] = []

    class Counted(PixelsFromFiles):
        def __getitem__(self, row: int) -> np.ndarray:
            rows.append(int(row))
            return super().__getitem__(row)

    monkeypatch.setattr(pixel_cache, "PixelsFromFiles", Counted)
    return rows


def decode_all(images: ImageSet, size: int = SIZE) -> np.ndarray:
    decoder = PixelsFromFiles(images, size)
    return np.stack([decoder[row] for row in range(len(images))])


def home_of(folder: Path) -> Path:
    (home,) = folder.iterdir()
    return home


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_cache_holds_the_decoded_pixels(images: ImageSet, tmp_path: Path, workers: int) -> None:
    pixels, good = open_pixel_cache(images, SIZE, tmp_path / "cache", workers)
    np.testing.assert_array_equal(pixels, decode_all(images))
    assert pixels.dtype == np.uint8
    assert not pixels.flags.writeable
    assert good.all()


def test_a_warm_cache_decodes_nothing(images: ImageSet, tmp_path: Path, decoded: list[int]) -> None:
    open_pixel_cache(images, SIZE, tmp_path, 2)
    assert sorted(decoded) == list(range(12))
    pixels, _ = open_pixel_cache(images, SIZE, tmp_path, 2)
    assert len(decoded) == 12
    np.testing.assert_array_equal(pixels, decode_all(images))


def test_a_changed_image_is_decoded_again_and_no_other(
    images: ImageSet, tmp_path: Path, decoded: list[int]
) -> None:
    folder = tmp_path / "cache"
    open_pixel_cache(images, SIZE, folder, 2)
    Path(images.paths[7]).write_bytes(Path(images.paths[0]).read_bytes())
    decoded.clear()
    pixels, _ = open_pixel_cache(images, SIZE, folder, 2)
    assert decoded == [7]
    np.testing.assert_array_equal(pixels, decode_all(images))


def test_a_change_of_the_same_length_shows_by_its_time(
    images: ImageSet, tmp_path: Path, decoded: list[int]
) -> None:
    open_pixel_cache(images, SIZE, tmp_path / "cache", 2)
    os.utime(images.paths[3], ns=(0, 0))
    decoded.clear()
    open_pixel_cache(images, SIZE, tmp_path / "cache", 2)
    assert decoded == [3]


def test_other_sizes_boxes_and_lists_have_their_own_caches(
    images: ImageSet, tmp_path: Path
) -> None:
    whole = ImageSet(images.paths, images.labels, images.class_names)
    some = images.take(np.arange(3))
    for number, (kept, size) in enumerate(((images, 24), (images, 20), (whole, 24), (some, 24)), 1):
        pixels, _ = open_pixel_cache(kept, size, tmp_path / "cache", 2)
        np.testing.assert_array_equal(pixels, decode_all(kept, size))
        assert len(list((tmp_path / "cache").iterdir())) == number


@pytest.mark.parametrize("file", ["pixels", "index"])
@pytest.mark.parametrize("damage", ["cut", "grown", "gone", "foreign"])
def test_a_damaged_cache_is_built_again_with_a_warning(
    images: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    if (file, damage) == ("pixels", "foreign"):
        pytest.skip("pixels carry no name of their own")
    folder = tmp_path / "cache"
    before, _ = open_pixel_cache(images, SIZE, folder, 2)
    victim = home_of(folder) / file
    content = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        new = {"cut": content[:-5], "grown": content + b"x", "foreign": b"x" * 40 + content[40:]}
        replacement = victim.with_name("replacement")
        replacement.write_bytes(new[damage])
        replacement.replace(victim)
    pixels, _ = open_pixel_cache(images, SIZE, folder, 2)
    np.testing.assert_array_equal(pixels, decode_all(images))
    assert ("is damaged: it is built again" in caplog.text) == ((file, damage) != ("index", "gone"))
    # A run that has mapped the old cache still reads it.
    np.testing.assert_array_equal(before, decode_all(images))


@pytest.mark.parametrize("name", ["lock", "index", "pixels", "index.new", "pixels.new"])
@pytest.mark.parametrize("other_is_damaged", [False, True])
def test_a_link_in_a_cache_changes_no_other_file(
    images: ImageSet, tmp_path: Path, name: str, other_is_damaged: bool
) -> None:
    """The link's target has the size and the beginning of the cache's own file."""
    folder = tmp_path / "cache"
    open_pixel_cache(images, SIZE, folder, 2)
    home, precious = home_of(folder), tmp_path / "precious"
    content = (home / name.replace(".new", "")).read_bytes() or b"not to be changed"
    precious.write_bytes(content)
    (home / name).unlink(missing_ok=True)
    (home / name).symlink_to(precious)
    if other_is_damaged:
        (home / ("pixels" if name.startswith("index") else "index")).unlink()
    os.utime(images.paths[4], ns=(0, 0))
    Path(images.paths[5]).write_bytes(Path(images.paths[0]).read_bytes())
    opened = open_pixel_cache(images, SIZE, folder, 2)
    assert precious.read_bytes() == content
    if name != "lock":
        assert opened is not None
        np.testing.assert_array_equal(opened[0], decode_all(images))


def test_a_full_disk_falls_back_with_a_warning(
    images: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert open_pixel_cache(images, SIZE, tmp_path / "cache", 2) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "No space left on device" in record.message
    assert "--cache-dir" in record.message
    assert [path.name for path in home_of(tmp_path / "cache").iterdir()] == ["lock"]


def test_a_folder_that_cannot_be_made_falls_back_with_a_warning(
    images: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert open_pixel_cache(images, SIZE, tmp_path / "file" / "cache", 2) is None
    assert "--cache-dir" in caplog.text


def test_a_bad_image_is_named_and_what_was_decoded_is_kept(
    images: ImageSet, tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_cache, "_IMAGES_PER_SYNC", 4)
    good = Path(images.paths[9]).read_bytes()
    Path(images.paths[9]).write_bytes(b"no image")
    with pytest.raises(DataError, match=os.path.basename(images.paths[9])):
        open_pixel_cache(images, SIZE, tmp_path / "cache", 1)
    Path(images.paths[9]).write_bytes(good)
    decoded.clear()
    pixels, _ = open_pixel_cache(images, SIZE, tmp_path / "cache", 1)
    assert sorted(decoded) == [8, 9, 10, 11]
    np.testing.assert_array_equal(pixels, decode_all(images))


def test_bad_images_can_be_skipped_and_are_remembered_until_they_change(
    images: ImageSet, tmp_path: Path, decoded: list[int]
) -> None:
    healthy = Path(images.paths[5]).read_bytes()
    Path(images.paths[5]).write_bytes(b"no image")
    for _ in range(2):
        _, good = open_pixel_cache(images, SIZE, tmp_path / "cache", 2, skip_bad=True)
        assert np.flatnonzero(~good).tolist() == [5]
    assert len(decoded) == 12
    with pytest.raises(DataError):
        open_pixel_cache(images, SIZE, tmp_path / "cache", 2)
    Path(images.paths[5]).write_bytes(healthy)
    pixels, good = open_pixel_cache(images, SIZE, tmp_path / "cache", 2, skip_bad=True)
    assert good.all()
    np.testing.assert_array_equal(pixels, decode_all(images))


BUILD = """
import os, sys, time
from pathlib import Path
from embedding_learning.data import pixel_cache
from embedding_learning.data.datasets import cub200
from embedding_learning.data.preprocessing import PixelsFromFiles

class Slow(PixelsFromFiles):
    def __getitem__(self, row):
        os.write(1, b"decoding\\n")  # whole, though two threads write
        time.sleep(0.01)
        return super().__getitem__(row)

pixel_cache.PixelsFromFiles, pixel_cache._IMAGES_PER_SYNC = Slow, 3
print("ready", flush=True)
pixel_cache.open_pixel_cache(cub200.read(Path(sys.argv[1]), True), 24, Path(sys.argv[2]), 2)
"""


def start_build(data: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(data), str(folder)]
    root = ROOT
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_build_killed_at_any_moment_resumes(
    images: ImageSet, tmp_path: Path, decoded: list[int]
) -> None:
    for begun in (0, 2, 5, 4):
        build = start_build(tmp_path / "data", tmp_path / "cache")
        assert build.stdout is not None
        assert build.stdout.readline() == "ready\n"
        # The fourth image is decoded only after the first three have reached the disk.
        for _ in range(begun):
            assert build.stdout.readline() == "decoding\n"
        build.kill()
        build.communicate()
    pixels, good = open_pixel_cache(images, SIZE, tmp_path / "cache", 2)
    np.testing.assert_array_equal(pixels, decode_all(images))
    assert good.all()
    assert len(decoded) < 12


@pytest.mark.slow
def test_two_builds_at_once_do_no_harm(images: ImageSet, tmp_path: Path) -> None:
    builds = [start_build(tmp_path / "data", tmp_path / "cache") for _ in range(2)]
    assert [build.wait() for build in builds] == [0, 0]
    for build in builds:
        assert build.stdout is not None
        build.stdout.close()
    pixels, _ = open_pixel_cache(images, SIZE, tmp_path / "cache", 2)
    np.testing.assert_array_equal(pixels, decode_all(images))


def test_a_missing_file_is_skipped_as_a_bad_one_until_it_is_back(
    images: ImageSet, tmp_path: Path
) -> None:
    content = Path(images.paths[2]).read_bytes()
    Path(images.paths[2]).unlink()
    with pytest.raises(DataError, match=r"listed, but missing"):
        open_pixel_cache(images, SIZE, tmp_path / "cache", 2)
    _, good = open_pixel_cache(images, SIZE, tmp_path / "cache", 2, skip_bad=True)
    assert np.flatnonzero(~good).tolist() == [2]
    Path(images.paths[2]).write_bytes(content)
    pixels, good = open_pixel_cache(images, SIZE, tmp_path / "cache", 2)
    assert good.all()
    np.testing.assert_array_equal(pixels, decode_all(images))
