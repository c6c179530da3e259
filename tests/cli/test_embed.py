"""`python -m embedding_learning embed`: complete files of embeddings, also after interruptions."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest

import embedding_learning
from embedding_learning.__main__ import main as program
from embedding_learning.cli.exit_codes import run_command
from embedding_learning.data.datasets import ImageSet, cub200
from embedding_learning.errors import DataError, Interrupted, UsageError
from embedding_learning.inference import resumable_output
from embedding_learning.inference.embedding_model import EmbeddingModel, load_model
from tests.helpers import tiny_backbone
from tests.helpers.paths import ROOT
from tests.helpers.saved_models import DIMENSION, save_model

pytestmark = pytest.mark.usefixtures("tiny_backbones")

CLOSE = 1e-5


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_backbones: None) -> Path:
    path = tmp_path_factory.mktemp("model") / "birds.params"
    save_model(path, "--model=tiny")
    return path


@pytest.fixture(scope="module")
def model(file: Path) -> EmbeddingModel:
    return load_model(file)


@pytest.fixture
def here(tmp_path: Path, tiny_cub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a copy of the birds in data."""
    shutil.copytree(tiny_cub, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def birds(data: str = "data") -> ImageSet:
    return cub200.read(Path(data))


def rows(path: str = "e.csv") -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as lines:
        found = list(csv.DictReader(lines))
    assert [row["row"] for row in found] == [str(number) for number in range(len(found))]
    return found


def left(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if name.startswith("e.")}


WHOLE = {"e.npy", "e.csv", "e.npy.json"}


def test_a_folder_is_embedded(
    here: Path, file: Path, model: EmbeddingModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(["embed", str(file), "data/images", "--output=e.npy", "--batch-size=5"]) == 0
    assert capsys.readouterr().out == f"e.npy: 32 images of 8 classes, {DIMENSION} dimensions.\n"
    paths = sorted(birds().paths)
    assert [row["path"] for row in rows()] == paths
    assert [row["label"] for row in rows()] == [Path(path).parent.name for path in paths]
    vectors = np.load("e.npy", mmap_mode="r")
    assert (vectors.shape, vectors.dtype) == ((32, DIMENSION), np.float32)
    np.testing.assert_array_equal(vectors, model.embed(paths, batch_size=5))
    assert left(here) == WHOLE


def test_images_and_lists_go_between_flags(here: Path, file: Path, model: EmbeddingModel) -> None:
    one, two, three = birds().paths[5:8]
    Path("some.txt").write_text(f"{three}\n{one}\n")
    flags = ["--output", "e.npy", one, "--workers=1", "some.txt", two]
    assert program(["embed", str(file), *flags]) == 0
    assert [row["path"] for row in rows()] == [one, three, one, two]
    assert {row["label"] for row in rows()} == {""}
    np.testing.assert_array_equal(np.load("e.npy"), model.embed([one, three, one, two]))


@pytest.mark.parametrize("boxed", [True, False])
def test_a_data_set_is_embedded_whole_with_labels_and_in_its_boxes(
    here: Path, tmp_path: Path, boxed: bool
) -> None:
    file = tmp_path / "model.params"
    save_model(file, "--model=tiny", "--bbox" if boxed else "--no-bbox")
    assert program(["embed", str(file), "--data-path=data", "--output=e.npy"]) == 0
    images = birds()
    assert [row["path"] for row in rows()] == images.paths
    names = [images.class_names[label] for label in images.labels]
    assert [row["label"] for row in rows()] == names
    boxes = images.boxes if boxed else None
    expected = load_model(file).embed(images.paths, boxes)
    np.testing.assert_array_equal(np.load("e.npy"), expected)


def test_the_parts_of_a_data_set_keep_their_classes(here: Path, file: Path) -> None:
    images = birds()
    parts = ["train", "query", "gallery", "gallery"]
    lines = [
        f"{path},{'x' if row < 4 else 'yz'[row % 2]},{parts[row % 4 if row > 3 else 0]}"
        for row, path in enumerate(images.paths[:12])
    ]
    Path("list.csv").write_text("\n".join(["path,label,split", *lines]))
    assert program(["embed", str(file), "--data-path=list.csv", "--output=e.npy"]) == 0
    listed = {tuple(line.split(",")[:2]) for line in lines}
    assert {(row["path"], row["label"]) for row in rows()} == listed
    assert len(rows()) == 12


def test_a_list_without_training_images_is_embedded(here: Path, file: Path) -> None:
    lines = [f"{path},x,test" for path in birds().paths[:3]]
    Path("list.csv").write_text("\n".join(["path,label,split", *lines]))
    assert program(["embed", str(file), "--data-path=list.csv", "--output=e.npy"]) == 0
    assert [row["label"] for row in rows()] == ["x"] * 3


def test_devices_share_the_work(here: Path, file: Path, model: EmbeddingModel) -> None:
    shared = load_model(file, [mx.cpu(0), mx.cpu(1)])
    assert embedding_learning.embed(shared, ["data/images"], "e.npy", batch_size=6) == 32
    expected = model.embed(sorted(birds().paths))
    np.testing.assert_allclose(np.load("e.npy"), expected, atol=CLOSE)


def test_any_file_name_will_do(here: Path, file: Path) -> None:
    names = ["a,b.jpg", "two\nlines.jpg", 'quote".jpg', os.fsdecode(b"latin\xe4.jpg")]
    (here / "odd").mkdir()
    for name in names:
        shutil.copy(birds().paths[0], f"odd/{name}")
    assert program(["embed", str(file), "odd", "--output=e.npy"]) == 0
    found = embedding_learning.inference.embedding_file.read_embeddings("e.npy", DIMENSION)
    assert {found.path(row) for row in range(4)} == {f"odd/{name}" for name in names}


@pytest.mark.slow
def test_a_list_comes_from_the_standard_input(here: Path, file: Path) -> None:
    paths = birds().paths[:3]
    done = subprocess.run(
        [sys.executable, "-m", "embedding_learning", "embed", str(file), "-", "--output=e.npy"],
        input=f"# three birds\n{paths[2]}\n{paths[0]}\n",
        env={**os.environ, "PYTHONPATH": tiny_backbone.PYTHONPATH},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"e.npy: 2 images, {DIMENSION} dimensions.\n", done.stderr
    assert [row["path"] for row in rows()] == [paths[2], paths[0]]


@pytest.mark.parametrize("name", ["birds", "birds.run", "birds.run/", "birds.params"])
def test_every_name_of_a_run_names_its_network(
    here: Path, file: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (file.parent / "birds.run").mkdir(exist_ok=True)
    command = ["embed", f"{file.parent}/{name}", birds().paths[0], "--output=e.npy"]
    assert program(command) == 0
    assert capsys.readouterr().out.startswith("e.npy: 1 images")


# Bad images


def spoil(*numbers: int) -> list[str]:
    paths = sorted(birds().paths)
    for number in numbers:
        Path(paths[number]).write_bytes(b"no image")
    return paths


def test_a_bad_image_is_named(here: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = spoil(13, 20)
    command = ["embed", str(file), "data/images", "--output=e.npy", "--batch-size=4"]
    assert run_command("program", lambda: program(command)) == 2
    error = capsys.readouterr().err
    path = re.escape(paths[13])
    assert re.fullmatch(rf"program: error: {path}: is a text file; .*\n", error)
    assert "; e.npy.partial holds what is done, and the same command resumes from it\n" in error
    # Once it is repaired, the command resumes.
    for number in (13, 20):
        shutil.copy(paths[0], paths[number])
    assert program(command) == 0
    assert left(here) == WHOLE


def test_a_refused_image_leaves_nothing_behind_that_holds_nothing(
    here: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(2)
    command = ["embed", str(file), "data/images", "--output=e.npy", "--batch-size=4"]
    assert run_command("program", lambda: program(command)) == 2
    assert ".partial" not in capsys.readouterr().err
    assert left(here) == set()


@pytest.mark.parametrize("workers", [0, 3])
def test_bad_images_are_left_out_named_and_counted(
    here: Path,
    file: Path,
    model: EmbeddingModel,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    # The first one also fills up the last batch.
    bad = [0, 4, 5, 6, 7, 31]
    paths = spoil(*bad)
    Path(paths[5]).unlink()
    Path("list.txt").write_text("\n".join(paths))
    flags = ["--skip-bad-images", "--output=e.npy", "--batch-size=5", f"--workers={workers}"]
    assert program(["embed", str(file), "list.txt", *flags]) == 0
    named = [line.split(": ")[1] for line in caplog.messages if line.startswith("Skipped: ")]
    assert named == [paths[number] for number in bad]
    assert "6 images that cannot be decoded are left out." in caplog.messages
    assert capsys.readouterr().out.endswith("26 images, 16 dimensions. 6 left out.\n")
    good = [path for number, path in enumerate(paths) if number not in bad]
    assert [row["path"] for row in rows()] == good
    np.testing.assert_allclose(np.load("e.npy"), model.embed(good), atol=CLOSE)


def test_nothing_but_bad_images_is_refused(here: Path, model: EmbeddingModel) -> None:
    paths = spoil(2, 3)
    with pytest.raises(DataError, match="none of the 2 images can be decoded"):
        embedding_learning.embed(model, paths[2:4], "e.npy", skip_bad=True)
    assert left(here) == set()


def test_a_missing_image_is_named_before_any_is_decoded(
    here: Path, model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(birds().paths)
    Path("list.txt").write_text("\n".join([*paths, "x.jpg", "y.jpg"]))
    monkeypatch.setattr(EmbeddingModel, "embed_batches", lambda *_: pytest.fail("embedded"))
    with pytest.raises(DataError, match=r"x\.jpg and 1 more: no such file; .*--skip-bad-images"):
        embedding_learning.embed(model, ["list.txt"], "e.npy")
    assert left(here) == set()


# Stopping and going on


class Stopping:
    """Ends the embedding before a number of batches, in the place of a signal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.after = 10**6
        append = resumable_output.ResumableOutput.append

        def counted(*arguments: Any) -> None:
            self.after -= 1
            if self.after < 0:
                raise Interrupted(signal.SIGTERM)
            append(*arguments)

        monkeypatch.setattr(resumable_output.ResumableOutput, "append", counted)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--skip-bad-images"]])
def test_the_same_command_goes_on_to_the_same_bytes(
    here: Path,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
) -> None:
    caplog.set_level("INFO")
    if flags:
        spoil(3, 17, 31)
    command = ["embed", str(file), "data/images", "--output=e.npy", "--batch-size=5", *flags]
    assert program(command) == 0
    expected = Path("e.npy").read_bytes(), Path("e.csv").read_bytes()
    os.remove("e.npy")
    os.remove("e.csv")
    stopping = Stopping(monkeypatch)
    for done in (0, 1, 3, 2):
        stopping.after = done
        assert run_command("program", lambda: program(command)) == 143
        message = capsys.readouterr().err
        hint = "e.npy.partial holds what is done, and the same command resumes from it"
        is_resumable = hint in message
        assert is_resumable == (done > 0)
        assert "e.npy" not in left(here)
    stopping.after = 10**6
    caplog.clear()
    assert program(command) == 0
    assert "Resuming after 30 of 32 images." in caplog.messages
    assert (Path("e.npy").read_bytes(), Path("e.csv").read_bytes()) == expected
    assert left(here) == WHOLE


def test_what_was_all_but_finished_is_finished(
    here: Path, model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(resumable_output.ResumableOutput, "finish", stop)
        embedding_learning.embed(model, ["data/images"], "e.npy", batch_size=5)
    assert embedding_learning.embed(model, ["data/images"], "e.npy", batch_size=5) == 32
    expected = model.embed(sorted(birds().paths), batch_size=5)
    np.testing.assert_array_equal(np.load("e.npy"), expected)


@pytest.mark.slow
def test_a_killed_process_is_gone_on_from_to_the_same_bytes(here: Path, file: Path) -> None:
    """Killed for good, in the middle of a batch, by another process's command line."""
    code = (
        "import os, sys\n"
        "from embedding_learning.data import preprocessing\n"
        "from embedding_learning.inference import embedding_model, resumable_output\n"
        "from embedding_learning.__main__ import main\n"
        "resumable_output._SECONDS_BETWEEN_SAVES = -1\n"
        "read, count = preprocessing.read_image, []\n"
        "def kill_late(*arguments):\n"
        "    count.append(1)\n"
        "    os.kill(os.getpid(), 9) if len(count) == 28 else None\n"
        "    return read(*arguments)\n"
        "preprocessing.read_image = kill_late\n"
        "main(sys.argv[1:])\n"
    )
    command = ["embed", str(file), "data/images", "--output=e.npy", "--batch-size=4"]
    command.append("--workers=0")
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        env={**os.environ, "PYTHONPATH": tiny_backbone.PYTHONPATH},
    )
    assert done.returncode == -9
    assert left(here) == {"e.npy.partial", "e.npy.partial.json"}
    assert Path("e.npy.partial").stat().st_size > 128
    assert program(command) == 0
    killed = Path("e.npy").read_bytes(), Path("e.csv").read_bytes()
    assert program(command) == 0
    assert (Path("e.npy").read_bytes(), Path("e.csv").read_bytes()) == killed


@pytest.mark.slow
@pytest.mark.parametrize("change", ["model", "sizes", "images", "boxes", "labels", "batch size"])
def test_what_was_begun_otherwise_is_not_gone_on_with(
    here: Path, model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    stopping = Stopping(monkeypatch)
    images = birds()
    stopping.after = 2
    with pytest.raises(Interrupted):
        embedding_learning.embed(model, images, "e.npy", batch_size=4)
    stopping.after = 10**6
    size = 4
    if change == "model":
        save_model(here / "other.params", "--model=tiny", "--nu=0.5", epoch=7)
        other = load_model(here / "other.params")
        other.net.dense.bias.set_data(mx.nd.ones((DIMENSION,)))
        other.description["epoch"] = 3
        model = other
    elif change == "sizes":
        save_model(here / "other.params", "--model=tiny", "--image-size=41")
        model = load_model(here / "other.params")
    elif change == "images":
        images = images.take(np.r_[0:31, 30])
    elif change == "boxes":
        images = ImageSet(images.paths, images.labels, images.class_names)
    elif change == "labels":
        images = ImageSet(images.paths, images.labels, images.class_names[::-1], images.boxes)
    else:
        size = 5
    with pytest.raises(UsageError, match="started with another model"):
        embedding_learning.embed(model, images, "e.npy", batch_size=size)
    assert embedding_learning.embed(model, images, "e.npy", size, overwrite=True) == 32


def test_a_full_disk_is_reported_in_one_line(
    here: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append = resumable_output.ResumableOutput.append
    calls: list[int] = []

    def full(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        append(*arguments)

    command = ["embed", str(file), "data/images", "--output=e.npy", "--batch-size=4"]
    with monkeypatch.context() as patched:
        patched.setattr(resumable_output.ResumableOutput, "append", full)
        assert run_command("program", lambda: program(command)) == 2
    message = "--output e.npy: cannot be written: No space left on device; .* same command resumes"
    assert re.fullmatch(rf"program: error: {message}\n", capsys.readouterr().err)
    assert program(command) == 0


# Mistakes


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("MODEL --output=e.npy", "INPUT, --data-path: name images or a data set, one of the two"),
        ("MODEL data --data-path=data --output=e.npy", "INPUT, --data-path: "),
        ("MODEL data", "the following arguments are required: --output"),
        ("missing.params data --output=e.npy", "MODEL missing.params: no such file"),
        ("data/images.txt data --output=e.npy", "MODEL data/images.txt: is damaged or not"),
        ("MODEL missing.jpg --output=e.npy", "missing.jpg: no such file or folder"),
        ("MODEL empty --output=e.npy", "empty: holds no image"),
        ("MODEL data/classes.txt --output=e.npy", r"data/1 001\.Bird_1 and 7 more: no such file"),
        ("MODEL folders.txt --output=e.npy", "data/images: is a folder, not an image; correct the"),
        ("MODEL - data - --output=e.npy", "-: the standard input can be read only once"),
        ("MODEL --data-path=empty --output=e.npy", "empty: no data set is recognized"),
        ("missing.params data --output=e.txt", "--output e.txt: end the name in .npy"),
        ("MODEL data --output=nowhere/e.npy", "--output nowhere/e.npy: the folder nowhere"),
        ("MODEL data --output=e.npy --workers=-1", "--workers -1: must be at least 0"),
        ("MODEL data --output=e.npy --batch-size=0", "--batch-size 0: must be at least 1"),
        ("MODEL data --output=e.npy --gpus=1,1", "--gpus 1,1: different whole numbers"),
        ("MODEL data --output=e.npy --gpus=63", "--gpus 63: this machine "),
        ("MODEL data --output=e.npy --model=alexnet", "--model alexnet: MODEL .* tiny"),
        ("MODEL data --output=e.npy --model=alexnot", "--model alexnot: unknown"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    here: Path, file: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    (here / "empty").mkdir()
    (here / "folders.txt").write_text("data/images\n")
    command = ["embed", *arguments.replace("MODEL", str(file)).split()]
    assert run_command("program", lambda: program(command)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"program: error: {message}.*\n", err), err
    assert left(here) == set()


def test_a_data_set_is_not_overwritten_by_the_list_beside_the_output(
    here: Path, model: EmbeddingModel
) -> None:
    Path("e.csv").write_text("path,label,split\n")
    with pytest.raises(UsageError, match=r"would overwrite e\.csv"):
        embedding_learning.embed(model, ["data/images"], "e.npy", overwrite=True)
    assert Path("e.csv").read_text() == "path,label,split\n"


def test_python_takes_paths_and_refuses_what_is_no_list(here: Path, model: EmbeddingModel) -> None:
    paths = birds().paths[:2]
    assert embedding_learning.embed(model, map(Path, paths), here / "e.npy") == 2
    assert [row["path"] for row in rows()] == paths
    np.testing.assert_array_equal(np.load("e.npy"), model.embed(paths))
    for images in ("data", Path("data")):
        with pytest.raises(ValueError, match=r"a list of inputs expected, not .*data.* alone"):
            embedding_learning.embed(model, images, "other.npy")
    with pytest.raises(ValueError, match="there are no images to embed"):
        embedding_learning.embed(model, [], "other.npy")
    assert not list(here.glob("other*"))


def test_the_flags_are_listed_without_mxnet() -> None:
    code = "import sys; from embedding_learning.__main__ import main\n"
    code += "try: main(['embed', '--help'])\nfinally: assert 'mxnet' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--skip-bad-images" in done.stdout
