"""EXIF orientation and resizing: by their definitions, and in everything the flags apply to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from embedding_learning import load_model, plots
from embedding_learning.__main__ import main
from embedding_learning.cli import model_flags, plot
from embedding_learning.cli.train_flags import parse
from embedding_learning.config import TestImages
from embedding_learning.data.build import open_data, read_split
from embedding_learning.data.datasets import ImageSet, Split
from embedding_learning.data.pixel_cache import open_pixel_cache
from embedding_learning.data.preprocessing import (
    ORIGINAL_PREPROCESSING,
    PixelsFromFiles,
    Preprocessing,
    read_square,
    resize_to_square,
)
from embedding_learning.errors import DataError
from embedding_learning.inference import embedded_split, search
from embedding_learning.inference.embedding_model import EmbeddingModel
from embedding_learning.plots import projection
from embedding_learning.training.tensorboard import TensorBoard
from tests.helpers.saved_models import FLAGS, save_model

pytestmark = pytest.mark.usefixtures("tiny_backbones")

UPRIGHT = Preprocessing(exif_orientation=True)
# Where the first stored row and the first stored column lie in the upright image, as the EXIF
# standard lists them.
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
WIDTH, HEIGHT = 48, 32
TINY = "--model=tiny"


def photograph(seed: int = 0) -> np.ndarray:
    """RGB, uint8 (HEIGHT, WIDTH, 3), smooth and without any symmetry."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Pixel by pixel, from where the standard says that the first row and column lie."""
    first_row, first_column = ORIENTATIONS[orientation]
    height, width = stored.shape[:2]
    is_transposed = first_row in ("left", "right")
    found = np.empty((width, height, 3) if is_transposed else stored.shape, stored.dtype)
    for row in range(height):
        for column in range(width):
            # The distance of the pixel from each side that is named.
            y, x = (column, row) if is_transposed else (row, column)
            if "bottom" in (first_row, first_column):
                y = found.shape[0] - 1 - y
            if "right" in (first_row, first_column):
                x = found.shape[1] - 1 - x
            found[y, x] = stored[row, column]
    return found


def save(path: Path, orientation: int | None, seed: int = 0) -> np.ndarray:
    """Writes a photograph with that note; returns the stored pixels as they are decoded."""
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    plain = path.with_name(f"plain{path.suffix}")
    Image.fromarray(photograph(seed)).save(plain, **options)
    stored = cv2.imread(str(plain))[:, :, ::-1]
    plain.unlink()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(photograph(seed)).save(path, exif=exif, **options)
    return stored


# What a file becomes


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_are_turned_upright_only_if_asked_to(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    path = tmp_path / f"image.{suffix}"
    stored = save(path, orientation)
    expected = upright(stored, orientation)
    np.testing.assert_array_equal(read_square(str(path), None, 24), linear(stored, 24))
    np.testing.assert_array_equal(read_square(str(path), None, 24, UPRIGHT), linear(expected, 24))
    if orientation > 1:
        assert np.abs(linear(expected, 24).astype(int) - linear(stored, 24)).mean() > 5


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_boxes_count_on_the_upright_image_if_it_is_turned(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "image.png"
    stored = save(path, orientation)
    turned = upright(stored, orientation)
    box = np.array([5, 3, 17, 11])
    for image, preprocessing in ((stored, ORIGINAL_PREPROCESSING), (turned, UPRIGHT)):
        found = read_square(str(path), box, 24, preprocessing)
        np.testing.assert_array_equal(found, linear(image[3:14, 5:22], 24))


def test_a_box_can_lie_outside_of_one_of_the_two(tmp_path: Path) -> None:
    save(tmp_path / "image.jpg", 6)  # stored 48 x 32, upright 32 x 48
    for box, inside, outside in (
        (np.array([0, 33, 9, 9]), UPRIGHT, ORIGINAL_PREPROCESSING),
        (np.array([33, 0, 9, 9]), ORIGINAL_PREPROCESSING, UPRIGHT),
    ):
        read_square(str(tmp_path / "image.jpg"), box, 8, inside)
        with pytest.raises(DataError, match="lies outside of the image"):
            read_square(str(tmp_path / "image.jpg"), box, 8, outside)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", [None, 0, 9, 65535])
def test_without_a_note_that_makes_sense_nothing_is_turned(
    tmp_path: Path, suffix: str, orientation: int | None
) -> None:
    path = tmp_path / f"image.{suffix}"
    stored = save(path, orientation)
    np.testing.assert_array_equal(read_square(str(path), None, 24, UPRIGHT), linear(stored, 24))


def test_a_damaged_note_in_a_webp_file_turns_nothing(tmp_path: Path) -> None:
    stored = save(tmp_path / "image.webp", 6)
    content = (tmp_path / "image.webp").read_bytes()
    at = content.index(b"EXIF") + 8
    (tmp_path / "image.webp").write_bytes(content[:at] + b"\xff" * 12 + content[at + 12 :])
    found = read_square(str(tmp_path / "image.webp"), None, 24, UPRIGHT)
    np.testing.assert_array_equal(found, linear(stored, 24))


def linear(image: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=cv2.INTER_LINEAR)


def side_as_area(values: np.ndarray, size: int) -> np.ndarray:
    """The first axis by the definition: the mean of all that falls into each new pixel."""
    count = len(values)
    edges = np.linspace(0, count, size + 1)
    rows = []
    for start, end in zip(edges, edges[1:]):
        pixel = np.arange(count)
        covered = np.clip(np.minimum(pixel + 1, end) - np.maximum(pixel, start), 0, None)
        rows.append(np.tensordot(covered / covered.sum(), values, 1))
    return np.array(rows)


@pytest.mark.parametrize("height, width", [(100, 100), (97, 250), (24, 60)])
def test_area_is_the_mean_of_what_falls_into_a_pixel(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    columns = side_as_area(image.astype(np.float64), 24)
    expected = side_as_area(columns.transpose(1, 0, 2), 24).transpose(1, 0, 2)
    np.testing.assert_allclose(resize_to_square(image, 24, "area"), expected, atol=1)
    assert np.abs(linear(image, 24) - expected).mean() > 10


def test_a_side_that_grows_is_interpolated_with_area_too() -> None:
    image = np.random.default_rng(0).integers(0, 256, (10, 120, 3), dtype=np.uint8)
    shrunk = side_as_area(image.transpose(1, 0, 2).astype(np.float64), 24).transpose(1, 0, 2)
    expected = cv2.resize(shrunk, (24, 24), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(resize_to_square(image, 24, "area"), expected, atol=1.5)
    small = image[:, :20]
    np.testing.assert_array_equal(resize_to_square(small, 24, "area"), linear(small, 24))


# Wherever the flags have to reach


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four classes of three photographs in files that are to be turned, of all eight kinds."""
    for number in range(12):
        place = tmp_path / "photographs" / f"class{number // 3}"
        place.mkdir(parents=True, exist_ok=True)
        save(place / f"{number}.jpg", 1 + number % 8, seed=number)
    return tmp_path / "photographs"


@pytest.fixture
def images(folder: Path) -> ImageSet:
    paths = [str(path) for path in sorted(folder.rglob("*.jpg"))]
    return ImageSet(paths, np.repeat(np.arange(4), 3).astype(np.int32), list("abcd"))


PREPROCESSINGS = [
    ORIGINAL_PREPROCESSING,
    UPRIGHT,
    Preprocessing(resize="area"),
    Preprocessing(True, "area"),
]


def flags_of(preprocessing: Preprocessing) -> list[str]:
    flags = ["--exif-orientation"] if preprocessing.exif_orientation else []
    return [*flags, f"--resize={preprocessing.resize}"]


def test_each_has_its_own_pixel_cache(images: ImageSet, tmp_path: Path) -> None:
    for number, preprocessing in enumerate(PREPROCESSINGS, 1):
        decoder = PixelsFromFiles(images, 24, preprocessing)
        for _ in range(2):
            opened = open_pixel_cache(
                images, 24, tmp_path / "cache", 2, preprocessing=preprocessing
            )
            assert opened is not None
            np.testing.assert_array_equal(opened[0], [decoder[row] for row in range(12)])
        assert len(list((tmp_path / "cache").iterdir())) == number


@pytest.mark.parametrize("cache", ["pixels", "none"])
@pytest.mark.parametrize("preprocessing", PREPROCESSINGS)
def test_a_run_sees_what_its_flags_say(
    folder: Path, tmp_path: Path, cache: str, preprocessing: Preprocessing
) -> None:
    options = parse(
        [f"--data-path={folder}", f"--cache-dir={tmp_path}", f"--cache={cache}", "--batch-size=4",
         "--batch-k=2", "--workers=0", *FLAGS, *flags_of(preprocessing)]
    )  # fmt: skip
    split = read_split(options)
    data = open_data(split, options)
    try:
        expected = PixelsFromFiles(split.test, 40, preprocessing)
        for row in range(len(split.test)):
            np.testing.assert_array_equal(data.test.pixels[row], expected[row])
    finally:
        data.close()


@pytest.mark.slow
@pytest.mark.parametrize("preprocessing", PREPROCESSINGS)
def test_a_saved_model_sees_what_it_was_trained_with(
    images: ImageSet, tmp_path: Path, preprocessing: Preprocessing
) -> None:
    file = tmp_path / "model.params"
    save_model(file, TINY, *flags_of(preprocessing))
    model = load_model(file)
    assert model.preprocessing == preprocessing
    squares = [read_square(path, None, 40, preprocessing) for path in images.paths]
    np.testing.assert_allclose(model.embed(images.paths), model.embed(squares), atol=1e-5)
    # Unless something else is asked for.
    asked = load_model(file, exif_orientation=False, resize="linear")
    assert asked.preprocessing == ORIGINAL_PREPROCESSING
    squares = [read_square(path, None, 40) for path in images.paths]
    np.testing.assert_allclose(asked.embed(images.paths), model.embed(squares), atol=1e-5)


def test_a_file_from_before_the_flags_has_the_original_preprocessing(tmp_path: Path) -> None:
    from embedding_learning.model import description
    from embedding_learning.model.weights.params_file import save_parameters

    file = tmp_path / "model.params"
    net = save_model(file, TINY)
    described = description.read(str(file), None, {})
    del described["exif_orientation"], described["resize"]
    save_parameters(net, str(file), described)
    assert load_model(file).preprocessing == ORIGINAL_PREPROCESSING


def test_a_word_that_is_no_way_to_resize_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose from linear, area"):
        load_model(tmp_path / "any.params", resize="Area")


@pytest.fixture
def upright_model(tmp_path: Path) -> EmbeddingModel:
    save_model(tmp_path / "upright.params", TINY, "--exif-orientation")
    return load_model(tmp_path / "upright.params")


def test_embed_and_search_follow_the_model_and_its_flags(
    images: ImageSet, upright_model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = images.paths
    as_stored = load_model("upright.params", exif_orientation=False).embed(names)
    for flags, expected in (
        ([], upright_model.embed(names)),
        (["--no-exif-orientation"], as_stored),
    ):
        command = ["embed", "upright.params", *names, "--output=a.npy", "--overwrite", *flags]
        assert main(command) == 0
        np.testing.assert_allclose(np.load("a.npy"), expected, atol=1e-5)
    # What was embedded as stored is another image to the model.
    assert np.linalg.norm(as_stored - upright_model.embed(names), axis=1).max() > 1e-3
    found = search.search(upright_model, str(tmp_path / "photographs"), names, 3)
    np.testing.assert_allclose(found.queries.vectors, upright_model.embed(names), atol=1e-5)


@pytest.mark.parametrize("is_upright", [False, True])
def test_the_picture_of_a_search_shows_what_the_model_sees(
    images: ImageSet, upright_model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, is_upright: bool,
) -> None:  # fmt: skip
    shown: dict[str, Any] = {}
    monkeypatch.setattr(
        plots,
        "plot_search_results",
        lambda names, query, rows, distances, titles, thumbnail, *rest: shown.update(
            query=query, thumbnail=thumbnail
        ),
    )
    model = load_model(tmp_path / "upright.params", exif_orientation=is_upright)
    found = search.search(model, str(tmp_path / "photographs"), images.paths, 11)
    search.draw_result(found, "a.png")
    for row, path in enumerate(images.paths):
        with Image.open(path) as file:
            orientation = file.getexif()[0x0112]
        stored = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)[:, :, ::-1]
        expected = upright(stored, orientation) if is_upright else stored
        for function in ("query", "thumbnail"):
            np.testing.assert_array_equal(shown[function](row), expected)


def test_other_pictures_show_what_the_model_sees(
    images: ImageSet, upright_model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        embedded_split.datasets, "load_dataset", lambda *_, **__: Split("Birds", images, images)
    )
    found = embedded_split.embed_split(upright_model, TestImages("", ""), batch_size=12, workers=0)
    np.testing.assert_allclose(found.queries, upright_model.embed(images.paths), atol=1e-5)
    shown: dict[str, Any] = {}
    monkeypatch.setattr(
        plots, "plot_tsne_photographs", lambda points, row, *_: shown.update(tsne=row)
    )
    monkeypatch.setattr(projection, "tsne", lambda *_: np.zeros((12, 2)))
    monkeypatch.setattr(
        plots, "plot_gallery", lambda **named: shown.update(gallery=named["thumbnail"])
    )
    plot.draw_tsne_photographs(found, "a.png", plot.place_test_images(found))
    plot.draw_gallery(found, "a.png")
    for picture in ("tsne", "gallery"):
        for row, path in enumerate(images.paths):
            expected = read_square(path, None, 224, UPRIGHT)
            np.testing.assert_array_equal(shown[picture](row), expected)


def test_the_projector_shows_what_the_model_sees(images: ImageSet, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    board = TensorBoard(str(tmp_path / "board"), 0)
    shown: dict[str, Any] = {}
    board._writer.add_embedding = lambda *_, label_img, **__: shown.update(images=label_img)
    pixels = PixelsFromFiles(images, 40, UPRIGHT)
    board.project(1, np.zeros((12, 4)), images.labels, list("abcdefghijkl"), pixels)
    board.close()
    rows = np.random.default_rng(0).permutation(12)
    size = shown["images"].shape[-1]
    for place, row in enumerate(rows):
        small = cv2.resize(pixels[row], (size, size), interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(shown["images"][place] * 255, small.transpose(2, 0, 1), atol=1)


def test_the_commands_on_a_saved_model_leave_the_choice_to_it(tmp_path: Path) -> None:
    import argparse

    save_model(tmp_path / "model.params", TINY, "--exif-orientation", "--resize=area")
    for flags, expected in (
        ([], Preprocessing(True, "area")),
        (["--no-exif-orientation"], Preprocessing(False, "area")),
        (["--resize=linear"], Preprocessing(True, "linear")),
    ):
        parser = argparse.ArgumentParser()
        model_flags.add_flags(parser)
        options = parser.parse_args([str(tmp_path / "model.params"), *flags])
        model_flags.check(options)
        assert model_flags.load(options).preprocessing == expected


def test_check_counts_boxes_as_training_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["path,label,split,x,y,width,height"]
    for number in range(4):
        save(tmp_path / f"{number}.jpg", 6, seed=number)  # stored 48 x 32, upright 32 x 48
        split = "train" if number < 2 else "test"
        lines.append(f"{number}.jpg,{split}{number},{split},2,35,20,10")
    (tmp_path / "data.csv").write_text("\n".join(lines), encoding="utf-8")
    flags = ["--batch-k=2", "--batch-size=4", "--small-classes=repeat"]
    assert main(["check", f"--data-path={tmp_path / 'data.csv'}", *flags]) == 2
    assert "lies outside of the image, 48x32 pixels" in capsys.readouterr().out
    assert (
        main(["check", f"--data-path={tmp_path / 'data.csv'}", "--exif-orientation", *flags]) == 0
    )


def test_export_says_how_images_are_to_be_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, said in (([], False), (["--exif-orientation", "--resize=area"], True)):
        save_model(tmp_path / "model.params", TINY, *flags)
        assert main(["export", str(tmp_path / "model.params"), str(tmp_path / "net")]) == 0
        printed = capsys.readouterr().out
        assert ("--exif-orientation" in printed, "--resize area" in printed) == (said, said)
