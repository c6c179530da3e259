"""Every file gives pixels of 8 bits or a one-line error: damage, rare number types, limits."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from embedding_learning.data.decoding import decode_image
from embedding_learning.errors import DataError
from embedding_learning.runtime import library_messages
from tests.fuzzing.samples import animation_of_16_bits, pixels

only_glibc = pytest.mark.skipif(
    not library_messages.CAN_COLLECT, reason="libjpeg's messages are collected with glibc"
)


def picture(side: int = 64) -> np.ndarray:
    """Pixels (side, side, 3) that are not smooth, so that no format makes them short."""
    return np.random.default_rng(3).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(suffix: str, image: np.ndarray, *settings: int) -> bytes:
    return cv2.imencode(suffix, image, settings)[1].tobytes()


def saved(name: str, mode: str = "RGB", **settings: Any) -> bytes:
    """Writes an image with Pillow; of an animation two frames."""
    file = io.BytesIO()
    image = Image.fromarray(picture()).convert(mode)
    if settings.get("save_all"):
        settings["append_images"] = [image.rotate(90)]
    image.save(file, name, **settings)
    return file.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return decode_image("x.jpg", content, cv2.IMREAD_COLOR)


def refused(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        decoded(content)
    message = str(caught.value)
    assert message.startswith("x.jpg: ")
    assert message.isprintable()
    return message


PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
BMP_MODES = ("1", "L", "P", "RGB", "RGBA")
TIFF_MODES = ("1", "L", "LA", "P", "CMYK")
COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg")
GOOD = {
    **{f"JPEG {mode}": lambda mode=mode: saved("JPEG", mode) for mode in ("L", "RGB", "CMYK")},
    "progressive JPEG": lambda: saved("JPEG", progressive=True),
    "JPEG in RGB": lambda: saved("JPEG", keep_rgb=True),
    "JPEG with restarts": lambda: encoded(".jpg", picture(), cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    "several JPEG": lambda: saved("MPO", save_all=True),
    **{f"PNG {mode}": lambda mode=mode: saved("PNG", mode) for mode in PNG_MODES},
    "16 bit PNG": lambda: encoded(".png", picture().astype(np.uint16) * 257),
    "animated PNG": lambda: saved("PNG", save_all=True),
    "animated PNG with alpha": lambda: saved("PNG", "RGBA", save_all=True),
    "animated PNG with another still": lambda: saved("PNG", save_all=True, default_image=True),
    **{f"BMP {mode}": lambda mode=mode: saved("BMP", mode) for mode in BMP_MODES},
    **{
        f"TIFF {compression}": lambda compression=compression: saved(
            "TIFF", compression=compression
        )
        for compression in [
            "raw",
            "tiff_lzw",
            "tiff_adobe_deflate",
            "tiff_deflate",
            "packbits",
            "jpeg",
        ]
    },
    **{f"TIFF {mode}": lambda mode=mode: saved("TIFF", mode) for mode in TIFF_MODES},
    "16 bit TIFF": lambda: encoded(".tiff", picture().astype(np.uint16) * 257),
    "gray 16 bit TIFF": lambda: encoded(".tiff", picture()[..., 0].astype(np.uint16) * 257),
    "BigTIFF": lambda: saved("TIFF", big_tiff=True),
    "WebP": lambda: saved("WEBP"),
    "lossless WebP": lambda: saved("WEBP", "RGBA", lossless=True),
    "animated WebP": lambda: saved("WEBP", save_all=True),
    **{f"PNM {mode}": lambda mode=mode: saved("PPM", mode) for mode in ("1", "L", "RGB")},
    "16 bit PPM": lambda: encoded(".ppm", picture().astype(np.uint16) * 257),
    "PPM in text": lambda: encoded(".ppm", picture(), cv2.IMWRITE_PXM_BINARY, 0),
}


@pytest.mark.parametrize("kind", GOOD)
def test_every_kind_becomes_the_pixels_of_opencv(kind: str) -> None:
    content = GOOD[kind]()
    found = decoded(content)
    assert (found.dtype, found.shape) == (np.uint8, (64, 64, 3))
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(found, expected)


def test_an_animation_of_16_bits_gives_its_still_picture_in_8() -> None:
    content = animation_of_16_bits()
    whole = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert whole.dtype == np.uint16  # of OpenCV: the reason for this test
    np.testing.assert_array_equal(decoded(content), pixels(0))


def test_pixels_that_are_not_8_bits_would_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(".png", picture())
    for wrong in (np.zeros((4, 4, 3), np.uint16), np.zeros((4, 4), np.uint8)):
        monkeypatch.setattr(cv2, "imdecode", lambda *_, wrong=wrong: wrong)
        assert "not of 8 bits a channel" in refused(content)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_tiff_file_of_other_numbers_is_refused(kind: type, channels: int) -> None:
    content = encoded(".tiff", picture()[..., :channels].astype(kind))
    assert "signed, floating point or 32 bit numbers" in refused(content)


@pytest.mark.parametrize("white, is_read", [(15, False), (255, True), (1023, False), (65535, True)])
def test_a_pnm_file_that_would_be_dark_is_refused(white: int, is_read: bool) -> None:
    kind = np.dtype(">u2" if white > 255 else "u1")
    content = (
        f"P5 # made by hand\n64 64\n{white}\n".encode() + picture()[..., 0].astype(kind).tobytes()
    )
    if is_read:
        assert decoded(content).dtype == np.uint8
    else:
        assert f"is a PNM file with the maximum value {white};" in refused(content)


def test_a_pnm_file_of_text_may_end_with_its_last_number() -> None:
    content = encoded(".ppm", picture(), cv2.IMWRITE_PXM_BINARY, 0)
    np.testing.assert_array_equal(decoded(content.rstrip()), picture())


def overwritten(content: bytes, new: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + new + content[middle + len(new) :]


JPEG_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "an end of the picture": lambda content: overwritten(content, b"\xff\xd9"),
    "another marker": lambda content: overwritten(content, b"\xff\xd3" * 4),
    "zeros": lambda content: overwritten(content, bytes(900)),
    "a part lost": lambda content: content[:1500] + content[2500:],
    "a part doubled": lambda content: content[:2500] + content[1500:],
    "more before its end": lambda content: content[:-2] + bytes(200) + content[-2:],
}


@only_glibc
@pytest.mark.parametrize("damage", JPEG_DAMAGE)
@pytest.mark.parametrize("progressive", [0, 1])
def test_a_jpeg_file_damaged_in_the_middle_is_refused(
    damage: str, progressive: int, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = encoded(".jpg", picture(), cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    content = JPEG_DAMAGE[damage](whole)
    message = refused(content)
    assert "is damaged (libjpeg: " in message or "is not a whole image" in message
    assert capfd.readouterr() == ("", "")
    assert cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_COLOR) is not None


@only_glibc
def test_padding_before_the_end_of_a_jpeg_file_is_no_damage(
    capfd: pytest.CaptureFixture[str],
) -> None:
    whole = encoded(".jpg", picture())
    padded = whole[:-2] + b"\x01\x02\x03" + whole[-2:]
    flags = cv2.IMREAD_COLOR
    np.testing.assert_array_equal(
        decode_image("a.jpg", padded, flags), decode_image("a.jpg", whole, flags)
    )
    assert capfd.readouterr() == ("", "")
    assert "is damaged" in refused(whole[:-2] + bytes(range(1, 100)) + whole[-2:])


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_a_tiff_file_damaged_in_the_middle_is_refused(
    compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    content = overwritten(saved("TIFF", compression=compression), bytes(range(256)))
    message = refused(content)
    assert "is damaged" in message or "is not a whole image" in message
    if library_messages.CAN_COLLECT:
        assert capfd.readouterr() == ("", "")


@only_glibc
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tiff", ".ppm"])
def test_no_library_prints_of_a_cut_off_file(
    suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    content = encoded(suffix, picture())
    assert "is not a whole image" in refused(content[: len(content) * 2 // 3])
    assert capfd.readouterr() == ("", "")


@only_glibc
def test_each_thread_collects_what_it_prints() -> None:
    """A whole file next to damaged ones is not taken for one of them."""
    whole = encoded(".jpg", picture())
    damaged = JPEG_DAMAGE["a part lost"](whole)

    def is_refused(content: bytes) -> bool:
        try:
            decoded(content)
        except DataError:
            return True
        return False

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(is_refused, [whole, damaged] * 100)) == [False, True] * 100


@only_glibc
def test_what_another_thread_prints_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    damaged = np.frombuffer(JPEG_DAMAGE["a part lost"](encoded(".jpg", picture())), np.uint8)
    with library_messages.collect_messages() as printed:
        thread = threading.Thread(target=cv2.imdecode, args=(damaged, cv2.IMREAD_COLOR))
        thread.start()
        thread.join()
    assert printed == []
    assert capfd.readouterr().err.startswith("Corrupt JPEG data")
    cv2.imdecode(damaged, cv2.IMREAD_COLOR)
    assert capfd.readouterr().err.startswith("Corrupt JPEG data")


@pytest.mark.slow
def test_an_image_beyond_the_limit_is_named_with_its_size_and_the_way_out(tmp_path: Path) -> None:
    """Runs in separate processes, since OpenCV reads the limit when it is loaded."""
    file = tmp_path / "large.jpg"
    file.write_bytes(encoded(".jpg", np.zeros((300, 400, 3), np.uint8)))
    read = f"""
import embedding_learning
from embedding_learning.data.datasets import DataError
from embedding_learning.data.preprocessing import read_square
try:
    print(read_square({str(file)!r}, None, 8).shape)
except DataError as error:
    print(error)
"""

    def run(**environment: str) -> str:
        command = [sys.executable, "-c", read]
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=True
        )
        return result.stdout.strip()

    variable = "OPENCV_IO_MAX_IMAGE_PIXELS"
    assert run(**{variable: "119999"}) == (
        f"{file}: has 400x300 pixels; the limit of pixels is 119999; make the image smaller, "
        f"or raise the limit: set {variable}=120000 in the environment"
    )
    assert run(**{variable: "120000"}) == "(8, 8, 3)"
    assert "the limit of width is 399" in run(OPENCV_IO_MAX_IMAGE_WIDTH="399")
