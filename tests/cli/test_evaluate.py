"""`evaluate` measures what training measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_learning import load_model
from embedding_learning.cli import evaluate, plot
from embedding_learning.data.datasets import cub200
from embedding_learning.errors import UsageError
from embedding_learning.evaluation.metrics import map_at_r, recall_at_k
from tests.helpers.paths import ROOT
from tests.helpers.saved_models import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "birds.params"
    save_model(path)
    return str(path)


def test_the_table_and_the_json_hold_the_metrics_of_the_test_images(
    model: str, tiny_cub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = cub200.read(tiny_cub).take(np.arange(16, 32))  # classes 5 to 8
    embeddings = load_model(model).embed(images.paths, images.boxes)
    expected = {
        **{f"recall@{k}": v for k, v in recall_at_k(embeddings, images.labels, (1, 3)).items()},
        "map@r": map_at_r(embeddings, images.labels),
    }
    flags = [model, f"--data-path={tiny_cub}", "--metrics=recall@1,recall@3,map@r"]
    assert evaluate.main([*flags, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("data") == "CUB-200-2011, cropped to boxes"
    assert (printed.pop("images"), printed.pop("without_match")) == (16, 0)
    assert printed.pop("bases") == dict.fromkeys(expected, 16)
    assert printed == pytest.approx(expected)
    assert evaluate.main(flags) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{model} on CUB-200-2011, cropped to boxes: 16 test images, 0 without a match."
    assert lines == [f"{name:12s} {value:.4f}  of 16 images" for name, value in expected.items()]


def test_boxes_are_those_of_training_unless_asked_otherwise(
    model: str, tiny_cub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([model, f"--data-path={tiny_cub}", "--no-bbox", "--metrics=nmi"]) == 0
    assert "CUB-200-2011, whole images" in capsys.readouterr().out


def test_by_default_all_metrics_are_measured(
    model: str, tiny_cub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([model, f"--data-path={tiny_cub}"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    recalls = [f"recall@{k}" for k in (1, 2, 4, 8, 16)]
    assert names == [*recalls, "map@r", "r-precision", "nmi", "ami"]


def test_how_many_images_have_no_match_is_reported(
    model: str, write_cub: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two classes of the four that test have a single image."""
    folder = write_cub(tmp_path / "birds", [2, 2, 2, 2, 3, 3, 1, 1])
    flags = [model, f"--data-path={folder}", "--metrics=recall@16,map@2,precision@9,nmi"]
    assert evaluate.main(flags) == 0
    first, *lines, of_match, of_precision = capsys.readouterr().out.splitlines()
    assert first.endswith(": 8 test images, 2 without a match.")
    assert lines[0] == "recall@16    0.7500  of 8 images"
    assert [line.split("  ")[-1] for line in lines[1:]] == ["of 6 images", *["of 8 images"] * 2]
    assert of_match.startswith("2 of 8 images have no match")
    assert of_precision.startswith("precision@9: fewer images are searched")
    assert evaluate.main([*flags, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["images"], printed["without_match"], printed["recall@16"]) == (8, 2, 0.75)
    assert printed["bases"] == {"recall@16": 8, "map@2": 6, "precision@9": 8, "nmi": 8}


def test_all_classes_of_a_folder_are_tested(
    model: str, tiny_cub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = cub200.read(tiny_cub)
    embeddings = load_model(model).embed(images.paths, images.boxes)
    flags = [model, f"--data-path={tiny_cub}", "--test=all", "--metrics=recall@1", "--json"]
    assert evaluate.main(flags) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["data"] == "CUB-200-2011, cropped to boxes, tested on all classes"
    assert printed["images"] == 32
    assert printed["recall@1"] == pytest.approx(recall_at_k(embeddings, images.labels, (1,))[1])


def test_a_list_without_training_images_is_measured(
    model: str, tiny_cub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = cub200.read(tiny_cub)
    rows = [f"{path},{label},test" for path, label in zip(images.paths[:9], images.labels)]
    (tmp_path / "a.csv").write_text("\n".join(["path,label,split", *rows]))
    flags = [model, f"--data-path={tmp_path / 'a.csv'}", "--metrics=recall@1"]
    assert evaluate.main(flags) == 0
    assert "a.csv, whole images: 9 test images, 1 without a match." in capsys.readouterr().out


@pytest.mark.parametrize("command", [[evaluate], [plot, "points"]])
def test_no_number_of_training_classes_is_passed_over(model: str, command: list[Any]) -> None:
    module, *kind = command
    flags = [*kind, model, *(["points.png"] if kind else [])]
    with pytest.raises(UsageError, match="--train-classes 0: must be at least 1; --test all"):
        module.main([*flags, "--train-classes=0"])
    with pytest.raises(UsageError, match="--train-classes: --test all tests every class"):
        module.main([*flags, "--train-classes=3", "--test=all"])


@pytest.mark.parametrize("flags", ["--metrics=recall@0", "--metrics=accuracy", "--gpus=x"])
def test_mistakes_are_refused(model: str, flags: str) -> None:
    with pytest.raises(UsageError, match=flags.split("=")[0]):
        evaluate.main([model, flags])


def test_help_needs_no_mxnet() -> None:
    blocked = "import sys; sys.modules['mxnet'] = None\n"
    call = "from embedding_learning.__main__ import main; main(['evaluate', '--help'])"
    root = ROOT
    command = [sys.executable, "-c", blocked + call]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert "--metrics" in done.stdout
