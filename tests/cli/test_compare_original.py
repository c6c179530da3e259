"""`python -m embedding_learning compare-original`, with a stand-in for the original.

Those against the original itself run where EMBEDDING_LEARNING_ORIGINAL names its folder.
"""

from __future__ import annotations

import csv
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from embedding_learning.__main__ import main
from embedding_learning.cli import compare_original
from embedding_learning.data.preprocessing import read_square, write_crop
from embedding_learning.errors import DataError, TrainingError, UsageError
from embedding_learning.model.net import ImageNormalization
from tests.original.stand_in import change, write

# The smallest network of both zoos, with the smallest images it takes.
_SMALL = (
    "--model=squeezenet1.1", "--crop-size=32", "--image-size=40", "--batch-size=8", "--batch-k=4",
    "--embed-dim=8", "--optimizer=sgd", "--lr=0.1", "--train-classes=3", "--workers=0",
    "--cache=none",
)  # fmt: skip


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write(tmp_path / "original")


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory, write_cub: Callable[..., Path]) -> Path:
    """Three classes of four images to train, and 20 images to test."""
    return write_cub(tmp_path_factory.mktemp("data") / "birds", [4] * 8)


def _rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.slow
def test_equal_steps_stay_equal(
    original: Path, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    flags = ("--steps=3", "--control", "--epochs=0", f"--output={output}", f"--data-path={birds}")
    assert main(["compare-original", str(original), *flags, *_SMALL]) == 0
    assert [path.name for path in output.iterdir()] == ["steps.csv"]
    rows = _rows(output / "steps.csv")
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    for row in rows:
        # Two float32 of one loss, of losses that are no zeros and that change.
        assert 0.1 < float(row["loss_original"]) < 2
        assert float(row["loss_difference"]) < 1e-5
        assert float(row["gradient_norm_original"]) > 0.01
        assert float(row["gradient_norm_difference"]) < 1e-4
        assert float(row["parameter_difference"]) < 1e-3
        assert float(row["beta_difference"]) < 1e-5
        assert float(row["control_parameter_difference"]) < 1e-3
    assert len({row["loss_original"] for row in rows}) == 3
    printed = capsys.readouterr().out
    assert "Largest difference of the original and here in parameters: " in printed
    assert "Largest difference of the original twice in loss: " in printed


@pytest.mark.slow
def test_another_behaviour_shows(original: Path, birds: Path, tmp_path: Path) -> None:
    change(original, "train.py", '"wd": opt.wd', '"wd": 10 * opt.wd')
    change(original, "model.py", "+ self.margin)\n        pushes", ")\n        pushes")
    output = tmp_path / "output"
    flags = ("--steps=1", "--epochs=0", f"--output={output}", f"--data-path={birds}", "--wd=0.1")
    assert main(["compare-original", str(original), *flags, *_SMALL]) == 0
    (row,) = _rows(output / "steps.csv")
    assert float(row["loss_difference"]) > 1e-2
    assert float(row["gradient_norm_difference"]) > 1e-3
    assert float(row["parameter_difference"]) > 1e-2


@pytest.mark.slow
def test_an_original_that_fails_is_reported_in_one_line(
    original: Path, birds: Path, tmp_path: Path
) -> None:
    change(
        original,
        "model.py",
        "        a = [i",
        "        raise ValueError('too near')\n        a = [i",
    )
    output = tmp_path / "output"
    flags = ("--steps=2", "--epochs=0", f"--output={output}", f"--data-path={birds}")
    line = "the original failed at step 1: ValueError: too near"
    with pytest.raises(TrainingError, match=f"^{line}$"):
        main(["compare-original", str(original), *flags, *_SMALL])
    assert not list(output.iterdir())


@pytest.mark.slow
def test_free_runs(
    original: Path, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    flags = ("--steps=0", "--epochs=1", "--seeds=1", "--batch-num=2", f"--data-path={birds}")
    arguments = [str(original), *flags, f"--output={output}", "--seed=5", *_SMALL]
    assert main(["compare-original", *arguments]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["free_runs.csv", "recalls.csv"]
    runs = _rows(output / "free_runs.csv")
    assert [(run["program"], run["seed"]) for run in runs] == [("the original", "5"), ("here", "5")]
    for run in runs:
        recalls = [float(run[f"recall@{k}"]) for k in (1, 2, 4, 8, 16)]
        assert recalls == sorted(recalls) and recalls[0] >= 0 and 0.5 < recalls[-1] <= 1
        assert float(run["images_per_second"]) > 0
        assert 50 < float(run["peak_megabytes"]) < 5000
    printed = capsys.readouterr()
    assert "images/s, at most" in printed.out
    assert "here, seed 5: [Epoch 0] validation: Recall@1=" in printed.err


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--feat-dim=3"], "--feat-dim: the original does not know it"),
        (["--save-model-prefix=x"], "--save-model-prefix: the original does not know it, or it is"),
        (
            ["--model=resnet50_v1d"],
            "--model resnet50_v1d: the original knows only MXNet's model zo",
        ),
        (["--model=resnet50v"], "--model resnet50v: unknown; the nearest names are "),
        (["--steps=-1"], "--steps -1: must be at least 0"),
        (["--seeds=0"], "--seeds 0: must be at least 1"),
        (["--seeds=some"], "argument --seeds: invalid int value: 'some'"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--batch-size=7"], "--batch-size 7: 7 images a device are not whole classes"),
        (["--kvstore=dist_sync"], "--kvstore dist_sync: is for several worker processes"),
        (["--output=/dev/null/output"], "--output /dev/null/output: cannot be created"),
    ],
)
def test_mistakes_in_flags(original: Path, flags: list[str], line: str) -> None:
    with pytest.raises(UsageError) as error:
        main(["compare-original", str(original), *flags])
    assert str(error.value).startswith(line)


def test_pretrained_weights_are_no_evaluation_before_training() -> None:
    """The original has none, and refuses no weights."""
    assert not compare_original._train_config(["--use-pretrained"]).run.evaluate_first
    with pytest.raises(UsageError, match=r"^--evaluate-first: the original does not know it"):
        compare_original._train_config(["--evaluate-first"])


def test_the_path_comes_first() -> None:
    with pytest.raises(UsageError, match="the original's PATH comes first"):
        main(["compare-original", "--model=resnet18_v1", "PATH"])
    with pytest.raises(UsageError, match="the following arguments are required: PATH"):
        main(["compare-original"])


def test_too_few_test_images_for_free_runs(
    original: Path, tmp_path: Path, write_cub: Callable[..., Path]
) -> None:
    folder = write_cub(tmp_path / "few", [4] * 6)
    with pytest.raises(UsageError, match=r"12 test images are too few .* --epochs 0"):
        main(["compare-original", str(original), "--steps=0", f"--data-path={folder}", *_SMALL])


def test_data_that_is_not_there(original: Path) -> None:
    with pytest.raises(DataError, match="missing: no such folder"):
        main(["compare-original", str(original), "--data-path=missing", *_SMALL[:-5]])


@pytest.fixture
def the_original() -> Path:
    if "EMBEDDING_LEARNING_ORIGINAL" not in os.environ:
        pytest.skip("EMBEDDING_LEARNING_ORIGINAL does not name the original example's folder")
    return Path(os.environ["EMBEDDING_LEARNING_ORIGINAL"])


def test_the_original_makes_the_same_pixels(the_original: Path, birds: Path) -> None:
    """Those of steps are this program's."""
    spec = importlib.util.spec_from_file_location("original_data", the_original / "data.py")
    assert spec and spec.loader
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    for path in sorted((birds / "images").rglob("*.jpg"))[::5]:
        box = np.array([3, 2, 90, 30])
        theirs = data.transform(mx.image.imread(str(path)), 256, 256, False, box).asnumpy()
        ours = np.empty((3, 224, 224), np.uint8)
        write_crop(read_square(str(path), box, 256), 16, 16, False, out=ours)
        ours = ImageNormalization()(mx.nd.array(ours[None], dtype=np.uint8)).asnumpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("flags", [[], ["--lr-beta=0"], ["--nu=0.1", "--optimizer=adam"]])
def test_the_original_makes_the_same_steps(
    the_original: Path, birds: Path, tmp_path: Path, flags: list[str]
) -> None:
    output = tmp_path / "output"
    flags = [
        "--steps=2",
        "--epochs=0",
        f"--output={output}",
        f"--data-path={birds}",
        *_SMALL,
        *flags,
    ]
    assert main(["compare-original", str(the_original), *flags]) == 0
    for row in _rows(output / "steps.csv"):
        assert float(row["loss_difference"]) < 1e-5
        assert float(row["gradient_norm_difference"]) < 1e-4
        assert float(row["parameter_difference"]) < 1e-2
        assert float(row["beta_difference"]) < 1e-5


def test_the_original_runs_freely(the_original: Path, birds: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    flags = ("--steps=0", "--epochs=2", "--seeds=1", "--batch-num=2", f"--data-path={birds}")
    # Of so small images SqueezeNet's embeddings are so near that the original ends with a NaN.
    arguments = [str(the_original), *flags, f"--output={output}", *_SMALL, "--model=resnet18_v1"]
    assert main(["compare-original", *arguments]) == 0
    assert len(_rows(output / "recalls.csv")) == 4
