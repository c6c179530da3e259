"""The built-in set: its layout, its images, and a cache that is complete or absent."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedding_learning.data.datasets import glyphs
from embedding_learning.errors import DataError
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT

# The SHA-256 of the pixels of `whole`.
PIXELS = "6a4e341049d6d799f899c9814dfb037226d620a40c286edb7d95c4eff42ffb71"
FEW = ["A", "δ", "Ж", "@"]
TWO_FACES = ("DejaVuSerif", "STIXGeneral")


def digest(folder: Path) -> str:
    """Return one hash over the names and the bytes of every file below `folder`."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(str(path.relative_to(folder)).encode() + b"\0")
        if path.is_file():
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def values(path: Path) -> list[str]:
    """Return the values of the lines `ID VALUE` of `path`; ids must count from 1."""
    rows = [line.split(" ", 1) for line in path.read_text().splitlines()]
    assert [row[0] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
    return [row[1] for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set with every character, but only one view and every fourth face to save time."""
    folder = tmp_path_factory.mktemp("glyphs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "FACES", glyphs.FACES[1::4])
        glyphs.draw(folder, views=1)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `find_or_draw` draw 16 images instead of thousands."""
    monkeypatch.setattr(glyphs, "list_characters", lambda: list(FEW))
    monkeypatch.setattr(glyphs, "FACES", TWO_FACES)


@pytest.mark.slow
def test_lists_agree_with_each_other_and_with_the_files(whole: Path) -> None:
    files = values(whole / "images.txt")
    labels = [int(label) for label in values(whole / "image_class_labels.txt")]
    names = values(whole / "classes.txt")
    assert len(files) == len(labels) == 800
    assert len(set(files)) == len(files)
    assert len(set(names)) == 200
    assert [file.split("/")[0] for file in files] == [names[label - 1] for label in labels]
    on_disk = {path.relative_to(whole / "images") for path in whole.glob("images/*/*")}
    assert on_disk == {Path(file) for file in files}
    boxes = values(whole / "bounding_boxes.txt")
    assert boxes == ["0.0 0.0 64.0 64.0"] * len(files)


@pytest.mark.slow
def test_the_pixels_are_the_same_on_every_python(whole: Path) -> None:
    """Each Python has its own releases of Pillow, matplotlib and numpy."""
    total = hashlib.sha256()
    for file in values(whole / "images.txt"):
        with Image.open(whole / "images" / file) as image:
            total.update(np.asarray(image).tobytes())
    assert total.hexdigest() == PIXELS


@pytest.mark.slow
def test_every_class_has_the_same_number_of_images(whole: Path) -> None:
    labels = [int(label) for label in values(whole / "image_class_labels.txt")]
    counts = np.bincount(labels)[1:]
    assert counts.tolist() == [4] * 200
    assert len(glyphs.FACES) * glyphs.VIEWS == 32


@pytest.mark.slow
def test_every_picture_is_rgb_shows_ink_and_is_unlike_all_others(whole: Path) -> None:
    seen = set()
    for file in values(whole / "images.txt"):
        with Image.open(whole / "images" / file) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
            pixels = np.asarray(image)
        assert pixels.std(axis=(0, 1)).max() > 8, f"{file} is blank"
        seen.add(pixels.tobytes())
    assert len(seen) == 800


def test_the_default_draws_two_different_views(tmp_path: Path) -> None:
    glyphs.draw(tmp_path, FEW[:1])
    pictures = [path.read_bytes() for path in tmp_path.glob("images/*/*")]
    assert len(pictures) == len(set(pictures)) == 2 * len(glyphs.FACES)


def test_ink_never_touches_the_rim(monkeypatch: pytest.MonkeyPatch) -> None:
    black_on_white = (np.zeros(3), np.full(3, 255.0))
    monkeypatch.setattr(glyphs, "_random_colors", lambda rng: black_on_white)
    monkeypatch.setattr(glyphs, "_random_gradient", lambda rng: np.zeros((64, 64, 3)))
    monkeypatch.setattr(glyphs, "BLUR", 0.0)
    monkeypatch.setattr(glyphs, "LONGER_SIDE", (60.0, 90.0))
    monkeypatch.setattr(glyphs, "SHIFT", 64.0)
    font = glyphs.load_font(glyphs.find_fonts()["STIXGeneralBolIta"])
    for number, character in enumerate(glyphs.list_characters()):
        ink = glyphs.draw_ink(character, font)
        pixels = np.asarray(glyphs.render(ink, np.random.default_rng(number)))
        assert pixels.min() < 64
        rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert rim.min() == 255, f"{character} is clipped"


def shapes(face: str) -> np.ndarray:
    """Return a unit vector of each character's ink, scaled into a square of 20 pixels."""
    font = glyphs.load_font(glyphs.find_fonts()[face])
    vectors = []
    for character in glyphs.list_characters():
        ink = glyphs.draw_ink(character, font)
        factor = 20 / max(ink.size)
        size = (max(1, round(ink.width * factor)), max(1, round(ink.height * factor)))
        square = Image.new("L", (24, 24))
        corner = ((24 - size[0]) // 2, (24 - size[1]) // 2)
        square.paste(ink.resize(size, Image.Resampling.BOX), corner)
        vector = np.asarray(square, dtype=np.float64).ravel()
        vectors.append((vector - vector.mean()) / np.linalg.norm(vector - vector.mean()))
    return np.stack(vectors)


@pytest.mark.parametrize("face", ["DejaVuSans", "DejaVuSerif-Italic", "STIXGeneralItalic"])
def test_no_two_characters_look_the_same(face: str) -> None:
    vectors = shapes(face)
    likeness = vectors @ vectors.T - np.eye(len(vectors))
    first, second = np.unravel_index(likeness.argmax(), likeness.shape)
    pair = glyphs.list_characters()[first] + glyphs.list_characters()[second]
    assert likeness.max() < 0.96, pair


def test_characters_are_two_hundred_and_public() -> None:
    characters = glyphs.list_characters()
    assert len(characters) == len(set(characters)) == 200
    assert not [c for c in characters if unicodedata.category(c) in ("Co", "Cn", "Mn", "Zs")]


def test_both_halves_mix_the_scripts() -> None:
    def share(half: list[str]) -> list[int]:
        scripts = (glyphs.LATIN, glyphs.GREEK, glyphs.CYRILLIC, glyphs.SIGNS)
        return [len(set(half) & set(script)) for script in scripts]

    train, test = (
        share(half) for half in (glyphs.list_characters()[:100], glyphs.list_characters()[100:])
    )
    assert sum(train) == sum(test) == 100
    assert all(abs(one - other) <= 1 for one, other in zip(train, test))


@pytest.mark.usefixtures("quick")
def test_two_drawings_have_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        np.random.seed(seed)
        glyphs.draw(tmp_path / name, FEW)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_a_drawing_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    glyphs.draw(tmp_path, FEW[:1], views=1)
    assert np.random.random() == expected


@pytest.mark.usefixtures("quick")
def test_cached_draws_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = glyphs.find_or_draw(tmp_path / "new" / "cache")
    assert folder == tmp_path / "new" / "cache" / "glyphs-v1"
    line = f"Drawing the glyph set (16 images of 4 characters) into {folder}."
    assert caplog.messages == [line]
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    assert glyphs.find_or_draw(tmp_path / "new" / "cache") == folder
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before
    assert caplog.messages == [line]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_drawing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    with monkeypatch.context() as patch:
        render = glyphs.render
        calls = iter(range(5))

        def failing(*arguments: object) -> Image.Image:
            if next(calls, None) is None:
                raise error
            return render(*arguments)  # type: ignore[arg-type]

        patch.setattr(glyphs, "render", failing)
        with pytest.raises(error):
            glyphs.find_or_draw(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(values(glyphs.find_or_draw(tmp_path) / "images.txt")) == 16


@pytest.mark.usefixtures("quick")
def test_a_killed_drawing_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A killed process cannot clean up: the remains stay, under another name.
    monkeypatch.setattr(glyphs.shutil, "rmtree", lambda *arguments, **options: None)
    with monkeypatch.context() as patch:
        patch.setattr(glyphs, "_publish", lambda aside, folder: None)
        glyphs.find_or_draw(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert not (tmp_path / "glyphs-v1").exists()
    assert (glyphs.find_or_draw(tmp_path) / "images.txt").is_file()


@pytest.mark.usefixtures("quick")
def test_the_loser_of_a_race_takes_the_winners_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = glyphs.draw

    def overtaken(folder: Path) -> None:
        draw(folder)
        monkeypatch.setattr(glyphs, "draw", draw)
        glyphs.find_or_draw(tmp_path)
        (tmp_path / "glyphs-v1" / "first").touch()

    monkeypatch.setattr(glyphs, "draw", overtaken)
    folder = glyphs.find_or_draw(tmp_path)
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "first").is_file()


def draw_few(cache_dir: Path, barrier: multiprocessing.synchronize.Barrier) -> None:
    """Wait for the other process, then ask for a small set in `cache_dir`."""
    glyphs.list_characters, glyphs.FACES = lambda: list(FEW), TWO_FACES  # the process ends
    barrier.wait(HANG_LIMIT)
    os._exit(0 if (glyphs.find_or_draw(cache_dir) / "classes.txt").is_file() else 1)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_two_processes_at_once_leave_one_whole_set(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    pair = [context.Process(target=draw_few, args=(tmp_path / "c", barrier)) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
    assert [process.exitcode for process in pair] == [0, 0]
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["glyphs-v1"]
    (tmp_path / "alone").mkdir()
    glyphs.draw(tmp_path / "alone", FEW)
    assert digest(tmp_path / "c" / "glyphs-v1") == digest(tmp_path / "alone")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("blocked", ["cache", "cache/glyphs-v1"])
def test_an_unwritable_cache_is_named_in_one_line(tmp_path: Path, blocked: str) -> None:
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file where a folder should be")
    with pytest.raises(DataError) as caught:
        glyphs.find_or_draw(tmp_path / "cache")
    message = str(caught.value)
    assert str(tmp_path / "cache") in message and "--cache-dir" in message
    assert "\n" not in message


@pytest.mark.parametrize("package", ["matplotlib", "PIL"])
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r"pip install (matplotlib|pillow)"):
        glyphs.find_or_draw(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_typeface_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match=r"DejaVuSans .*pip install"):
        glyphs.find_fonts()


def test_a_character_without_a_glyph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "list_characters", lambda: ["漢"])
    with pytest.raises(DataError, match="incomplete"):
        glyphs.find_fonts()


def test_importing_the_module_is_cheap() -> None:
    code = (
        "import sys; from embedding_learning.data.datasets import glyphs;"
        "print({'matplotlib', 'PIL', 'cv2', 'mxnet'} & set(sys.modules))"
    )
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
