"""Images that keep their aspect ratio: by definition, in the pixel cache, and wherever they go."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from embedding_learning import load_model
from embedding_learning.__main__ import main
from embedding_learning.cli.train_flags import parse
from embedding_learning.data import pixel_cache
from embedding_learning.data.build import Data, open_data, read_split
from embedding_learning.data.datasets import ImageSet, Split
from embedding_learning.data.pixel_cache import open_pixel_cache
from embedding_learning.data.preprocessing import (
    AT_MOST,
    SHORTER_SIDE,
    Pixels,
    PixelsFromFiles,
    Preprocessing,
    center_square,
    read_full_image,
    read_image,
    read_square,
    resize_image,
)
from embedding_learning.inference.embedded_split import THUMBNAIL, thumbnail_reader
from embedding_learning.training.tensorboard import TensorBoard
from tests.helpers.saved_models import CROP_SIZE, FLAGS, IMAGE_SIZE, save_model

pytestmark = pytest.mark.usefixtures("tiny_backbones")

SHORTER = Preprocessing(resize_to=SHORTER_SIDE)
KEEPING = [SHORTER, Preprocessing(resize="area", resize_to=SHORTER_SIDE)]
KEEPING += [Preprocessing(resize_to=AT_MOST), Preprocessing(True, "area", AT_MOST)]
PREPROCESSINGS = pytest.mark.parametrize("preprocessing", KEEPING)
SIZE = 24


def draw(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth image, uint8 (height, width, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


# By definition


@pytest.mark.parametrize(
    "height, width, expected",
    # As torchvision's Resize: the longer side is cut to a whole number of pixels.
    [(50, 75, (24, 36)), (75, 50, (36, 24)), (31, 40, (24, 30)), (10, 17, (24, 40)),
     (24, 24, (24, 24)), (1, 3, (24, 72)), (20, 80, (24, 96))],
)  # fmt: skip
@pytest.mark.parametrize("method", ["linear", "area"])
def test_the_shorter_side_gets_the_size(
    height: int, width: int, expected: tuple[int, int], method: str
) -> None:
    assert expected[0] == 24 * height // min(height, width)
    image = draw(height, width)
    found = resize_image(image, 24, Preprocessing(False, method, SHORTER_SIDE))
    assert found.shape == (*expected, 3)
    shrinks = method == "area" and min(height, width) >= 24
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, expected[::-1], interpolation=interpolation)
    np.testing.assert_allclose(found.astype(int), resized, atol=1)


def test_of_an_image_longer_than_four_times_its_other_side_the_middle_is_used() -> None:
    image = draw(10, 101)
    found = resize_image(image, 24, SHORTER)
    np.testing.assert_array_equal(found, resize_image(image[:, 30:70], 24, SHORTER))
    np.testing.assert_array_equal(
        resize_image(image.transpose(1, 0, 2), 24, SHORTER).shape, (96, 24, 3)
    )


def test_a_photograph_shrinks_to_the_pixels_of_the_size_and_never_grows() -> None:
    whole = Preprocessing(resize_to=AT_MOST)
    for height, width in ((24, 24), (10, 57), (1, 576), (5, 7)):
        image = draw(height, width)
        np.testing.assert_array_equal(resize_image(image, 24, whole), image)
    for height, width in ((25, 24), (300, 200), (17, 800), (1, 100000), (100000, 1)):
        found = resize_image(draw(height, width), 24, whole)
        pixels = found.shape[0] * found.shape[1]
        assert pixels <= 24 * 24
        assert whole.is_result(*found.shape[:2], 24)
        if min(found.shape[:2]) > 1:
            # Each side loses less than a pixel.
            assert pixels > 0.75 * 24 * 24
            ratio = (found.shape[1] / found.shape[0]) / (width / height)
            assert abs(np.log(ratio)) < 2 / min(found.shape[:2])


@PREPROCESSINGS
def test_the_box_is_cut_before(tmp_path: Path, preprocessing: Preprocessing) -> None:
    path = str(tmp_path / "image.png")
    cv2.imwrite(path, draw(60, 90)[..., ::-1])
    box = np.array([11, 7, 52, 31])
    part = np.ascontiguousarray(draw(60, 90)[7:38, 11:63])
    expected = resize_image(part, SIZE, preprocessing)
    np.testing.assert_array_equal(read_image(path, box, SIZE, preprocessing), expected)


# The pixel cache


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Four classes of three photographs, each of another size."""
    rng = np.random.default_rng(1)
    paths = []
    for number in range(12):
        path = tmp_path / "photographs" / f"class{number // 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(20, 90, 2)
        cv2.imwrite(str(path), draw(height, width, seed=number))
        paths.append(str(path))
    return ImageSet(paths, np.repeat(np.arange(4), 3).astype(np.int32), list("abcd"))


def open_cache(
    images: ImageSet, folder: Path, preprocessing: Preprocessing, **more: Any
) -> tuple[Pixels, np.ndarray]:
    opened = open_pixel_cache(images, SIZE, folder, 2, preprocessing=preprocessing, **more)
    assert opened is not None
    return opened


def assert_decoded(pixels: Pixels, images: ImageSet, preprocessing: Preprocessing) -> None:
    decoder = PixelsFromFiles(images, SIZE, preprocessing)
    assert pixels.shape == decoder.shape == (len(images),)
    for row in range(len(images)):
        np.testing.assert_array_equal(pixels[row], decoder[row])


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


@PREPROCESSINGS
def test_the_cache_holds_the_decoded_pixels_and_decodes_once(
    images: ImageSet, tmp_path: Path, preprocessing: Preprocessing, decoded: list[int]
) -> None:
    for _ in range(2):
        pixels, good = open_cache(images, tmp_path / "cache", preprocessing)
        assert good.all()
        assert sorted(decoded) == list(range(12))
    assert_decoded(pixels, images, preprocessing)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0][:] = 0


def test_each_preprocessing_has_its_own_cache(images: ImageSet, tmp_path: Path) -> None:
    for number, preprocessing in enumerate([Preprocessing(), *KEEPING], 1):
        open_cache(images, tmp_path / "cache", preprocessing)
        assert len(list((tmp_path / "cache").iterdir())) == number


@PREPROCESSINGS
def test_an_image_that_changes_its_size_is_decoded_again(
    images: ImageSet, tmp_path: Path, preprocessing: Preprocessing, decoded: list[int]
) -> None:
    open_cache(images, tmp_path / "cache", preprocessing)
    cv2.imwrite(images.paths[7], draw(200, 60))
    decoded.clear()
    pixels, _ = open_cache(images, tmp_path / "cache", preprocessing)
    assert decoded == [7]
    assert_decoded(pixels, images, preprocessing)


@PREPROCESSINGS
def test_a_build_that_was_interrupted_resumes(
    images: ImageSet, tmp_path: Path, preprocessing: Preprocessing, decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(pixel_cache, "_IMAGES_PER_SYNC", 5)
    with monkeypatch.context() as patched:
        syncs = iter([None, OSError(errno.EIO, "the power failed")])

        def fsync(file: int) -> None:
            error = next(syncs)
            if error:
                raise error

        patched.setattr(os, "fsync", fsync)
        assert open_pixel_cache(
            images, SIZE, tmp_path / "cache", 1, preprocessing=preprocessing
        ) is None  # fmt: skip
    decoded.clear()
    pixels, _ = open_cache(images, tmp_path / "cache", preprocessing)
    assert sorted(decoded) == list(range(5, 12))
    assert_decoded(pixels, images, preprocessing)


@PREPROCESSINGS
def test_bad_images_can_be_skipped(
    images: ImageSet, tmp_path: Path, preprocessing: Preprocessing
) -> None:
    Path(images.paths[5]).write_bytes(b"no image")
    for _ in range(2):
        pixels, good = open_cache(images, tmp_path / "cache", preprocessing, skip_bad=True)
        assert np.flatnonzero(~good).tolist() == [5]
    cv2.imwrite(images.paths[5], draw(33, 44))
    pixels, good = open_cache(images, tmp_path / "cache", preprocessing, skip_bad=True)
    assert good.all()
    assert_decoded(pixels, images, preprocessing)


@pytest.mark.slow
@PREPROCESSINGS
@pytest.mark.parametrize("height, width", [(0, 30), (30, -1), (2**30, 2**30), (24, 97), (1, 600)])
def test_a_size_that_no_image_can_have_is_damage(
    images: ImageSet, tmp_path: Path, preprocessing: Preprocessing, height: int, width: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    open_cache(images, tmp_path / "cache", preprocessing)
    (index,) = (tmp_path / "cache").glob("*/index")
    content = index.read_bytes()
    size = np.array([height, width], "<i4").tobytes()
    index.write_bytes(content[:-8] + size)
    pixels, _ = open_cache(images, tmp_path / "cache", preprocessing)
    assert "is damaged: it is built again" in caplog.text
    assert_decoded(pixels, images, preprocessing)


def has_holes(folder: Path) -> bool:
    """Whether a file's part that was never written takes no space here."""
    probe = folder / "probe"
    with open(probe, "wb") as file:
        file.truncate(2**24)
    return probe.stat().st_blocks * 512 < 2**20


def test_room_that_no_image_needs_takes_no_space(images: ImageSet, tmp_path: Path) -> None:
    if not has_holes(tmp_path):
        pytest.skip("the file system has no sparse files")
    size = 200
    opened = open_pixel_cache(images, size, tmp_path / "cache", 2, preprocessing=SHORTER)
    assert opened is not None
    (pixels,) = (tmp_path / "cache").glob("*/pixels")
    needed = sum(opened[0][row].nbytes for row in range(12))
    assert pixels.stat().st_size == 12 * 4 * 3 * size * size
    # Both ends of an image may share a page or a block with nothing else.
    assert pixels.stat().st_blocks * 512 <= needed + 12 * 2**16
    assert needed + 12 * 2**16 < pixels.stat().st_size


@pytest.mark.parametrize("where", ["pwrite", "free"])
def test_a_disk_that_becomes_full_falls_back_and_gets_its_space_back(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, where: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(pixel_cache, "_IMAGES_PER_SYNC", 4)
    if where == "pwrite":
        # Near the end of its space a disk takes only a part of what is written.
        monkeypatch.setattr(os, "pwrite", lambda file, content, _: len(content) - 1)
    else:

        class Full:
            f_bavail, f_frsize = 8 * 24 * 24 * 3 - 1, 1

        monkeypatch.setattr(os, "fstatvfs", lambda file: Full)
    opened = open_pixel_cache(images, SIZE, tmp_path / "cache", 2, preprocessing=SHORTER)
    assert opened is None
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "No space left on device; it needs up to 0.0 GB" in record.message
    (folder,) = (tmp_path / "cache").iterdir()
    assert [path.name for path in folder.iterdir()] == ["lock"]


# Wherever the flags have to reach

SHORTER_FLAG = "--resize-to=shorter-side"
TINY = "--model=tiny"


def open_run(images: ImageSet, tmp_path: Path, *flags: str) -> tuple[Split, Data]:
    config = parse(
        [f"--data-path={Path(images.paths[0]).parents[1]}", f"--cache-dir={tmp_path}",
         "--batch-size=4", "--batch-k=2", "--workers=0", *FLAGS, *flags]
    )  # fmt: skip
    split = read_split(config)
    return split, open_data(split, config)


@pytest.mark.parametrize("cache", ["pixels", "none"])
@pytest.mark.parametrize(
    "flags, resize_to",
    [([], "square"), ([SHORTER_FLAG], "shorter-side"), (["--resize=area"], "square")],
)
@pytest.mark.parametrize("train_crop", ["original", "random-resized"])
def test_a_run_sees_what_its_flags_say(
    images: ImageSet, tmp_path: Path, cache: str, flags: list[str], resize_to: str, train_crop: str
) -> None:
    split, data = open_run(
        images, tmp_path, f"--cache={cache}", f"--train-crop={train_crop}", *flags
    )
    try:
        method = "area" if "--resize=area" in flags else "linear"
        as_tested = Preprocessing(False, method, resize_to)
        test = PixelsFromFiles(split.test, IMAGE_SIZE, as_tested)
        for row in range(len(split.test)):
            np.testing.assert_array_equal(data.test.pixels[row], test[row])
        for row, path in enumerate(split.train.paths):
            expected = read_image(path, None, IMAGE_SIZE, as_tested)
            if train_crop == "random-resized":
                # To a crop of 32 pixels, photographs of more than 80 times 80 are of no use.
                assert CROP_SIZE == 32
                expected = read_full_image(path, False)[..., ::-1]
                expected = resize_image(expected, 80, Preprocessing(False, method, AT_MOST))
            np.testing.assert_array_equal(data.train.pixels[row], expected)
        batch = data.train.next().data[0]
        assert batch.shape == (4, 3, CROP_SIZE, CROP_SIZE)
    finally:
        data.close()


@pytest.mark.parametrize("train_crop", ["original", "random-resized"])
def test_with_and_without_the_cache_a_run_trains_on_the_same_bytes(
    images: ImageSet, tmp_path: Path, train_crop: str
) -> None:
    Path(images.paths[0]).write_bytes(b"no image")
    found = []
    for more in (["--workers=0"], ["--cache=none", "--workers=3"]):
        flags = [f"--train-crop={train_crop}", SHORTER_FLAG, "--skip-bad-images", *more]
        _, data = open_run(images, tmp_path, *flags)
        found.append([data.train.next().data[0].asnumpy() for _ in range(4)])
        data.close()
    np.testing.assert_array_equal(*found)
    assert len(np.unique(np.array(found[0]), axis=0)) == 4


def test_a_saved_model_sees_the_middle_of_the_photograph(images: ImageSet, tmp_path: Path) -> None:
    file = tmp_path / "model.params"
    save_model(file, TINY, SHORTER_FLAG, "--train-crop=random-resized")
    model = load_model(file)
    assert model.preprocessing == SHORTER
    middle = []
    for path in images.paths:
        image = read_image(path, None, IMAGE_SIZE, SHORTER)
        top, left = ((side - CROP_SIZE) // 2 for side in image.shape[:2])
        middle.append(image[top : top + CROP_SIZE, left : left + CROP_SIZE])
    # To another model, these are squares that need no resizing, but for its margin.
    margin = (IMAGE_SIZE - CROP_SIZE) // 2
    framed = [cv2.copyMakeBorder(m, *4 * [margin], cv2.BORDER_CONSTANT) for m in middle]
    square = load_model(file, resize_to="square")
    expected = square.embed(framed)
    np.testing.assert_allclose(model.embed(images.paths), expected, atol=1e-5)
    pixels = [cv2.imread(path)[..., ::-1] for path in images.paths]
    np.testing.assert_allclose(model.embed(pixels), expected, atol=1e-5)
    assert np.abs(square.embed(images.paths) - expected).max() > 1e-3
    assert model.digest != square.digest


def test_the_commands_follow_the_model_unless_asked_for_another(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model.params", TINY, SHORTER_FLAG)
    Path(images.paths[3]).write_bytes(b"no image")
    good = [path for path in images.paths if path != images.paths[3]]
    for flags, resize_to in (([], None), (["--resize-to=square"], "square")):
        expected = load_model("model.params", resize_to=resize_to).embed(good)
        command = ["embed", "model.params", *images.paths, "--output=a.npy", "--overwrite"]
        assert main([*command, "--skip-bad-images", *flags]) == 0
        np.testing.assert_allclose(np.load("a.npy"), expected, atol=1e-5)


def test_a_file_from_before_the_flag_resizes_to_squares(tmp_path: Path) -> None:
    from embedding_learning.model import description
    from embedding_learning.model.weights.params_file import save_parameters

    file = tmp_path / "model.params"
    net = save_model(file, TINY)
    digest = load_model(file).digest
    described = description.read(str(file), None, {})
    del described["resize_to"]
    save_parameters(net, str(file), described)
    model = load_model(file)
    assert model.preprocessing == Preprocessing()
    assert model.digest == digest


def test_a_word_that_is_no_way_to_resize_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resize_to 'longer': choose from square, shorter-side"):
        load_model(tmp_path / "any.params", resize_to="longer")


def test_pictures_show_the_square_in_the_middle(images: ImageSet, tmp_path: Path) -> None:
    show = thumbnail_reader(images, SHORTER)
    for row, path in enumerate(images.paths):
        expected = center_square(read_image(path, None, THUMBNAIL, SHORTER))
        assert expected.shape == (THUMBNAIL, THUMBNAIL, 3)
        np.testing.assert_array_equal(show(row), expected)
        np.testing.assert_array_equal(read_square(path, None, THUMBNAIL, SHORTER), expected)
    pytest.importorskip("tensorboardX")
    board = TensorBoard(str(tmp_path / "board"), 0)
    shown: dict[str, Any] = {}
    board._writer.add_embedding = lambda *_, label_img, **__: shown.update(images=label_img)
    pixels = PixelsFromFiles(images, IMAGE_SIZE, SHORTER)
    board.project(1, np.zeros((12, 4)), images.labels, list("abcd"), pixels)
    board.close()
    size = shown["images"].shape[-1]
    for place, row in enumerate(np.random.default_rng(0).permutation(12)):
        square = center_square(pixels[row])
        small = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(shown["images"][place] * 255, small.transpose(2, 0, 1), atol=1)


def test_export_says_how_images_are_to_be_resized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, said in (([], False), ([SHORTER_FLAG], True)):
        save_model(tmp_path / "model.params", TINY, *flags)
        assert main(["export", str(tmp_path / "model.params"), str(tmp_path / "net")]) == 0
        line = "--resize-to shorter-side: the shorter side of an image becomes 40 pixels"
        assert (line in capsys.readouterr().out) == said
