"""Files to pixels: against MXNet's own decoder, numpy's cut and the original's transform."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from embedding_learning.data.batches import SequentialBatches
from embedding_learning.data.datasets import ImageSet, text_files
from embedding_learning.data.preprocessing import (
    PixelsFromFiles,
    find_decoding_errors,
    read_square,
    write_crop,
)
from embedding_learning.errors import DataError
from embedding_learning.model.net import ImageNormalization

SIDE = 24


def picture() -> np.ndarray:
    """Smooth RGB pixels (SIDE, SIDE, 3) without any symmetry."""
    coarse = np.random.default_rng(1).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def save_grey(path: Path) -> None:
    Image.fromarray(picture()).convert("L").save(path)


def save_palette(path: Path) -> None:
    Image.fromarray(picture()).convert("P", palette=Image.Palette.ADAPTIVE, colors=16).save(path)


def save_with_alpha(path: Path) -> None:
    alpha = np.linspace(0, 255, SIDE * SIDE).astype(np.uint8).reshape(SIDE, SIDE, 1)
    Image.fromarray(np.dstack([picture(), alpha])).save(path)


def save_16_bits(path: Path) -> None:
    cv2.imwrite(str(path), picture()[..., ::-1].astype(np.uint16) * 257)


def save_turned_by_exif(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    Image.fromarray(picture()).save(path, exif=exif)


def save_cmyk(path: Path) -> None:
    Image.fromarray(picture()).convert("CMYK").save(path)


def save_progressive(path: Path) -> None:
    Image.fromarray(picture()).save(path, progressive=True)


def save_plain(path: Path) -> None:
    Image.fromarray(picture()).save(path)


@pytest.mark.parametrize(
    "save, suffix",
    [
        (save_plain, "jpg"),
        (save_plain, "png"),
        (save_grey, "jpg"),
        (save_grey, "png"),
        (save_palette, "png"),
        (save_with_alpha, "png"),
        (save_16_bits, "png"),
        (save_turned_by_exif, "jpg"),
        (save_cmyk, "jpg"),
        (save_progressive, "jpg"),
    ],
)
def test_files_of_every_kind_become_the_pixels_that_mxnet_decodes(
    tmp_path: Path, save: Callable[[Path], None], suffix: str
) -> None:
    path = tmp_path / f"image.{suffix}"
    save(path)
    found = read_square(str(path), None, SIDE)
    assert (found.shape, found.dtype) == ((SIDE, SIDE, 3), np.uint8)
    np.testing.assert_array_equal(found, mx.image.imread(str(path)).asnumpy())


def test_an_image_wider_than_20000_pixels_works(tmp_path: Path) -> None:
    Image.fromarray(np.tile(picture(), (1, 20_000 // SIDE + 1, 1))).save(tmp_path / "wide.jpg")
    assert read_square(str(tmp_path / "wide.jpg"), None, 24).shape == (24, 24, 3)


@pytest.mark.parametrize("name", ["two words.jpg", "Grünspecht 啄木鳥.jpg"])
def test_names_of_any_letters_work(tmp_path: Path, name: str) -> None:
    save_plain(tmp_path / name)
    assert read_square(str(tmp_path / name), None, SIDE).shape == (SIDE, SIDE, 3)


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match=r"link\.jpg: cannot be read"):
        read_square(str(tmp_path / "link.jpg"), None, SIDE)


@pytest.mark.parametrize("save", [save_plain, save_with_alpha, save_16_bits])
def test_pixels_are_rgb_and_8_bits_deep(tmp_path: Path, save: Callable[[Path], None]) -> None:
    save(tmp_path / "image.png")
    found = read_square(str(tmp_path / "image.png"), None, SIDE)
    np.testing.assert_array_equal(found, picture())


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    save_grey(tmp_path / "image.png")
    found = read_square(str(tmp_path / "image.png"), None, SIDE)
    np.testing.assert_array_equal(found[..., 0], found[..., 1])
    np.testing.assert_array_equal(found[..., 0], found[..., 2])


def test_the_box_is_cut_and_resized_without_keeping_the_aspect_ratio(tmp_path: Path) -> None:
    save_plain(tmp_path / "image.png")
    found = read_square(str(tmp_path / "image.png"), np.array([3, 5, 16, 8]), 32)
    expected = mx.image.imresize(mx.nd.array(picture()[5:13, 3:19], dtype=np.uint8), 32, 32)
    np.testing.assert_array_equal(found, expected.asnumpy())


@pytest.mark.parametrize(
    "box, rows, columns",
    [
        ((4, 6, 10, 10), slice(6, 16), slice(4, 14)),
        ((0, 0, SIDE, SIDE), slice(None), slice(None)),
        ((14, 16, 50, 50), slice(16, SIDE), slice(14, SIDE)),
        ((-3, -4, 13, 14), slice(0, 10), slice(0, 10)),
        ((-3, -4, 100, 100), slice(None), slice(None)),
    ],
)
def test_what_leaves_the_image_is_cut_off_the_box(
    tmp_path: Path, box: tuple[int, ...], rows: slice, columns: slice
) -> None:
    save_plain(tmp_path / "image.png")
    expected = picture()[rows, columns]
    found = read_square(str(tmp_path / "image.png"), np.array(box), 40)
    resized = cv2.resize(expected, (40, 40), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(found, resized)


@pytest.mark.parametrize(
    "box",
    [
        *((SIDE, 0, 5, 5), (0, SIDE, 5, 5), (-5, 0, 5, 5), (0, -5, 5, 5), (90, 90, 2, 2)),
        *((-9, 0, 5, 5), (0, -9, 5, 5), (-9, -9, 5, 5)),
    ],
)
def test_a_box_outside_of_the_image_is_refused(tmp_path: Path, box: tuple[int, ...]) -> None:
    path = tmp_path / "image.png"
    save_plain(path)
    with pytest.raises(DataError, match="lies outside of the image, 24x24 pixels; corr") as caught:
        read_square(str(path), np.array(box), 32)
    assert str(caught.value).startswith(f"{path}: the box {box} ")
    assert "--no-bbox" in str(caught.value)


def thumbnail_segment() -> bytes:
    """The segment that a camera writes before the image: it holds a small JPEG file."""
    small = cv2.imencode(".jpg", picture())[1].tobytes()
    return b"\xff\xe1" + (len(small) + 8).to_bytes(2, "big") + b"Exif\0\0" + small


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    encoded = cv2.imencode(suffix, picture())[1].tobytes()
    path = tmp_path / f"image{suffix}"
    path.write_bytes(encoded[: int(share * len(encoded))])
    with pytest.raises(DataError) as caught:
        read_square(str(path), None, SIDE)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_whole_thumbnail_does_not_hide_a_cut_off_picture(tmp_path: Path) -> None:
    encoded = cv2.imencode(".jpg", picture())[1].tobytes()
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded[:2] + thumbnail_segment() + encoded[2:-100])
    with pytest.raises(DataError, match="whole image"):
        read_square(str(path), None, SIDE)


def test_bytes_around_a_whole_picture_do_no_harm(tmp_path: Path) -> None:
    encoded = cv2.imencode(".jpg", picture())[1].tobytes()
    (tmp_path / "plain.jpg").write_bytes(encoded)
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded[:2] + thumbnail_segment() + encoded[2:] + b"\0" * 50)
    expected = read_square(str(tmp_path / "plain.jpg"), None, SIDE)
    np.testing.assert_array_equal(read_square(str(path), None, SIDE), expected)


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_text("<html>404 Not Found</html>")
    with pytest.raises(DataError) as caught:
        read_square(str(path), None, SIDE)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jpg", tmp_path):
        with pytest.raises(DataError) as caught:
            read_square(str(path), None, SIDE)
        assert str(caught.value).startswith(f"{path}: cannot be read: ")


def test_a_path_with_a_zero_byte_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\\x00b\.jpg: cannot be read: "):
        read_square(f"{tmp_path}/a\0b.jpg", None, SIDE)


def test_what_is_no_plain_file_or_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to /dev/zero would never end; /dev/null, which ends at once, stands for it."""
    (tmp_path / "link.jpg").symlink_to("/dev/null")
    with pytest.raises(DataError, match=r"link\.jpg: cannot be read: it is not a regular file"):
        read_square(str(tmp_path / "link.jpg"), None, SIDE)
    save_plain(tmp_path / "image.png")
    monkeypatch.setattr(text_files, "_MOST_BYTES", (tmp_path / "image.png").stat().st_size)
    read_square(str(tmp_path / "image.png"), None, SIDE)
    monkeypatch.setattr(text_files, "_MOST_BYTES", (tmp_path / "image.png").stat().st_size - 1)
    with pytest.raises(DataError, match=r"image\.png: cannot be read: it is larger than"):
        read_square(str(tmp_path / "image.png"), None, SIDE)


@pytest.mark.parametrize("height, refused", [(2**14, False), (2**14 + 1, True)])
def test_an_image_of_more_than_134_million_pixels_is_refused_by_its_header(
    tmp_path: Path, height: int, refused: bool
) -> None:
    """Runs in a separate process that imports the package before OpenCV, as the program does."""
    header = cv2.imencode(".bmp", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    header = header[:18] + struct.pack("<ii", 2**13, height) + header[26:]
    (tmp_path / "image.bmp").write_bytes(header)
    decode = (
        "import embedding_learning, cv2, numpy as np; "
        f"cv2.imdecode(np.fromfile({str(tmp_path / 'image.bmp')!r}, np.uint8), 1)"
    )
    result = subprocess.run([sys.executable, "-c", decode], stderr=subprocess.PIPE, text=True)
    assert ("IO_MAX_IMAGE_PIXELS" in result.stderr) == refused == bool(result.returncode)


def test_a_png_chunk_that_claims_gigabytes_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV would take them, so it must not see the file."""
    save_plain(tmp_path / "image.png")
    encoded = (tmp_path / "image.png").read_bytes()
    at = encoded.index(b"IDAT") - 4
    (tmp_path / "claims.png").write_bytes(encoded[:at] + b"\xff" * 4 + encoded[at + 4 :])
    (tmp_path / "longer.png").write_bytes(encoded + b"\xff" * 9)
    read_square(str(tmp_path / "longer.png"), None, SIDE)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(DataError, match=r"claims\.png: is not a whole image"):
        read_square(str(tmp_path / "claims.png"), None, SIDE)


@pytest.mark.parametrize("flip", [False, True])
def test_crop_copies_a_square_with_the_channels_first(flip: bool) -> None:
    out = np.zeros((3, 10, 10), np.uint8)
    write_crop(picture(), 4, 9, flip, out)
    square = picture()[4:14, 9:19]
    expected = square[:, ::-1] if flip else square
    np.testing.assert_array_equal(out, expected.transpose(2, 0, 1))


def pictures(folder: Path, count: int) -> list[Path]:
    """Files of that many whole pictures."""
    files = [folder / f"{number}.png" for number in range(count)]
    for file in files:
        save_plain(file)
    return files


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_every_fault_is_found_and_nothing_else(tmp_path: Path, workers: int) -> None:
    files = pictures(tmp_path, 9)
    files[1].write_bytes(files[1].read_bytes()[:200])
    files[2].write_bytes(b"")
    files[5].write_text("no image")
    files[6].unlink()
    files[6].symlink_to(tmp_path / "gone.png")
    boxes = np.tile(np.int32([2, 3, 10, 10]), (9, 1))
    boxes[8] = SIDE, 0, 5, 5
    images = ImageSet([str(file) for file in files], np.zeros(9, np.int32), ["one"], boxes)
    faults = find_decoding_errors(images, 16, workers)
    for row, message in {
        1: "is not a whole image",
        2: "is empty",
        5: "is a text file",
        6: "cannot be read: No such file",
        8: f"the box {SIDE, 0, 5, 5} lies outside",
    }.items():
        assert faults.pop(row).startswith(f"{files[row]}: {message}")
    assert faults == {}


def test_whole_images_have_no_fault(tmp_path: Path) -> None:
    files = [str(file) for file in pictures(tmp_path, 3)]
    assert find_decoding_errors(ImageSet(files, np.zeros(3, np.int32), ["one"]), 16, 2) == {}


def test_a_decoder_gives_each_row_with_its_own_box(tmp_path: Path) -> None:
    files = [str(file) for file in pictures(tmp_path, 2)]
    boxes = np.int32([[3, 5, 16, 8], [0, 0, 9, 9]])
    labels = np.zeros(2, np.int32)
    for images in (ImageSet(files, labels, ["one"], boxes), ImageSet(files, labels, ["one"])):
        decoder = PixelsFromFiles(images, 20)
        assert decoder.shape == (2, 20, 20, 3)
        for row in range(2):
            box = None if images.boxes is None else boxes[row]
            np.testing.assert_array_equal(decoder[row], read_square(files[row], box, 20))


@pytest.mark.shared
@pytest.mark.parametrize("group", ["transform0", "transform1"])
def test_the_evaluation_transform_is_that_of_the_original(
    shared: Path, golden: dict[str, np.ndarray], group: str
) -> None:
    path = shared / "data" / "cub_fullres" / "images" / str(golden[f"{group}/image"])
    image = ImageSet([str(path)], np.zeros(1, np.int32), ["bird"], golden[f"{group}/box"][None])
    pixels = PixelsFromFiles(image, 256)
    batch = SequentialBatches(pixels, image.labels, 1, crop_size=224, workers=0).next()
    found = ImageNormalization()(batch.data[0])[0].asnumpy()
    np.testing.assert_allclose(found, golden[f"{group}/output"], atol=1e-5, rtol=0)
