"""`evaluate` measures what training measured."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_curve

from embedding_learning import load_model
from embedding_learning.cli import evaluate, plot
from embedding_learning.data.datasets import cub200, pairs
from embedding_learning.errors import DataError, UsageError
from embedding_learning.evaluation.metrics import map_at_r, recall_at_k
from tests.helpers.paths import ROOT
from tests.helpers.saved_models import save_model

pytestmark = pytest.mark.usefixtures("tiny_backbones")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_backbones: None) -> str:
    path = tmp_path_factory.mktemp("model") / "birds.params"
    save_model(path, "--model=tiny")
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


def test_the_classes_that_are_taken_for_others_are_listed(
    model: str, tiny_cub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = cub200.read(tiny_cub).take(np.arange(16, 32))  # classes 5 to 8
    embeddings = load_model(model).embed(images.paths, images.boxes)
    distances = np.linalg.norm(embeddings[:, None] - embeddings, axis=2)
    np.fill_diagonal(distances, np.inf)
    taken_for = images.labels[distances.argmin(axis=1)]
    names = images.class_names
    path, flags = tmp_path / "confusions.csv", [f"--data-path={tiny_cub}", "--metrics=recall@1"]
    assert evaluate.main([model, *flags, f"--confusions={path}"]) == 0
    capsys.readouterr()
    head, *lines = csv.reader(path.read_text(encoding="utf-8").splitlines())
    assert head == ["class", "taken for", "confused", "images"]
    confused = [int(line[2]) for line in lines]
    assert confused == sorted(confused, reverse=True)
    assert {(a, b): int(count) for a, b, count, _ in lines} == Counter(
        (names[label], names[other])
        for label, other in zip(images.labels, taken_for)
        if label != other
    )
    assert {images for *_, images in lines} == {"4"}


def test_a_list_of_confusions_is_refused_before_anything_is_embedded(
    model: str, tiny_cub: Path, tmp_path: Path
) -> None:
    for name in ("confusions.txt", "no/confusions.csv"):
        with pytest.raises(UsageError, match=f"--confusions .*{name}"):
            evaluate.main([model, f"--data-path={tiny_cub}", f"--confusions={tmp_path / name}"])
    data = tmp_path / "list.csv"
    data.write_text("path,label,split\n")
    (tmp_path / "link.csv").symlink_to(data)
    with pytest.raises(UsageError, match=r"--confusions .*link\.csv: would replace .*list\.csv"):
        evaluate.main([model, f"--data-path={data}", f"--confusions={tmp_path}/link.csv"])
    with pytest.raises(UsageError, match="--confusions: has no effect next to --pairs"):
        evaluate.main([model, "--pairs=pairs.csv", "--confusions=a.csv"])


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


def test_images_of_a_querys_group_are_left_out(
    model: str, tiny_cub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = cub200.read(tiny_cub).take(np.arange(12))
    # The third class is one group.
    groups = [["a", "b", "", "a"][row % 4] if row < 8 else "c" for row in range(12)]
    rows = zip(groups, images.paths, images.labels)
    lines = ["group,split,path,label", *(f"{g},test,{path},{label}" for g, path, label in rows)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    embeddings = load_model(model).embed(images.paths).astype(np.float64)
    found = []
    for query, group in enumerate(groups[:8]):
        distances = np.linalg.norm(embeddings - embeddings[query], axis=1)
        others = [
            row
            for row in np.argsort(distances, kind="stable")
            if row != query and not (group and groups[row] == group)
        ]
        found.append([images.labels[row] == images.labels[query] for row in others])
    matches = [sum(right) for right in found]
    assert matches == [2, 3, 3, 2] * 2
    expected = {
        "recall@1": sum(right[0] for right in found) / 12,
        "r-precision": np.mean([sum(right[:r]) / r for right, r in zip(found, matches)]),
    }
    flags = [model, f"--data-path={tmp_path / 'a.csv'}", "--metrics=recall@1,r-precision"]
    assert evaluate.main([*flags, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["data"] == "a.csv, whole images, groups left out"
    assert (printed["without_match"], printed["bases"]["r-precision"]) == (4, 8)
    assert {name: printed[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("command", [[evaluate], [plot, "points"]])
def test_no_number_of_training_classes_is_passed_over(model: str, command: list[Any]) -> None:
    module, *kind = command
    flags = [*kind, model, *(["points.png"] if kind else [])]
    with pytest.raises(UsageError, match="--train-classes 0: must be at least 1; --test all"):
        module.main([*flags, "--train-classes=0"])
    with pytest.raises(UsageError, match="--train-classes: --test all tests every class"):
        module.main([*flags, "--train-classes=3", "--test=all"])


@pytest.fixture
def pair_list(tiny_cub: Path, tmp_path: Path) -> Path:
    """A CSV of 24 pairs of one class and 36 of two, in four folds."""
    images = cub200.read(tiny_cub)
    rows = ["first,second,type,fold"]
    for row in range(24):
        for other in [row + 1, row + 4, row + 6][: 2 + row % 2]:
            same = images.labels[row] == images.labels[other]
            kind = "same" if same else "different"
            rows.append(f"{images.paths[row]},{images.paths[other]},{kind},{row % 4}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    return tmp_path / "pairs.csv"


@pytest.mark.slow
def test_pairs_are_verified(
    model: str, pair_list: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the file to the printed numbers; tests/evaluation holds the definitions."""
    listed = pairs.read(pair_list)
    embeddings = load_model(model).embed(listed.images.paths)
    distances = np.linalg.norm(embeddings[listed.first] - embeddings[listed.second], axis=1)
    false, true, _ = roc_curve(listed.is_same, -distances, drop_intermediate=False)
    picture = pair_list.with_name("roc.png")
    flags = [model, f"--pairs={pair_list}"]
    assert evaluate.main([*flags, "--json", f"--roc={picture}"]) == 0
    printed = json.loads(capsys.readouterr().out)
    same = int(listed.is_same.sum())
    counts = {"images": len(listed.images), "same": same, "different": len(listed) - same}
    assert {name: printed[name] for name in counts} == counts
    for rate in ("0.01", "0.001", "0.0001"):
        found = printed[f"tar@far={rate}"]
        assert found["tar"] == pytest.approx(true[false <= float(rate)].max())
        assert (found["accepted_different"], found["accepted_same"]) == (0, found["tar"] * same)
    accuracies = []
    for fold, threshold in enumerate(printed["fold_thresholds"]):
        own = listed.folds == fold
        limit = -1.0 if threshold is None else threshold
        accuracies.append(np.mean((distances[own] <= limit) == listed.is_same[own]))
    assert len(accuracies) == 4 and accuracies == pytest.approx(printed["fold_accuracies"])
    assert printed["accuracy"] == pytest.approx(np.mean(accuracies))
    assert printed["standard_error"] == pytest.approx(np.std(accuracies, ddof=1) / 2)
    assert cv2.imread(str(picture)) is not None

    assert evaluate.main(flags) == 0
    first, accuracy, *rates, few = capsys.readouterr().out.splitlines()
    assert first == (
        f"{model} on {pair_list}: {len(listed.images)} images, {same} pairs are same, "
        f"{len(listed) - same} are different."
    )
    value, error = printed["accuracy"], printed["standard_error"]
    assert accuracy.startswith(f"accuracy       {value:.4f} ± {error:.4f}  mean of 4 folds and its")
    tar = printed["tar@far=0.001"]
    assert rates[1] == (
        f"tar@far=0.001  {tar['tar']:.4f}  {tar['accepted_same']} of {same} accepted, with 0 of "
        f"{len(listed) - same} that are different"
    )
    assert few.startswith("tar@far=0.01, tar@far=0.001, tar@far=0.0001: decided by fewer than 10 ")


def test_pairs_without_folds_get_up_to_ten(
    model: str, pair_list: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair_list.write_text(pair_list.read_text().replace(",fold\n", ",note\n"))
    assert evaluate.main([model, f"--pairs={pair_list}"]) == 0
    printed = capsys.readouterr().out
    assert "mean of 10 folds and its standard error" in printed
    assert "The file has no folds: its pairs are dealt out to folds in turn" in printed
    lines = pair_list.read_text().splitlines()
    different = [line for line in lines if "different" in line]
    pair_list.write_text("\n".join([lines[0], different[0], different[1], lines[1]]))
    with pytest.raises(DataError, match="has 1 pairs that are same and 2 that are different; at"):
        evaluate.main([model, f"--pairs={pair_list}"])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--roc=a.png"], "--roc: is for --pairs"),
        (["--pairs=a.csv", "--roc=a.gif"], "a.gif: "),
        (["--pairs=a.csv", "--metrics=nmi"], "--metrics: has no effect next to --pairs; leave it"),
        (["--pairs=a.csv", "--no-bbox"], "--bbox: has no effect next to --pairs"),
        (["--pairs=a.csv", "--test=all"], "--test: has no effect next to --pairs"),
    ],
)
def test_flags_that_pairs_do_not_take_are_refused(
    model: str, flags: list[str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        evaluate.main([model, *flags])
    assert str(caught.value).startswith(message)


def test_a_roc_does_not_replace_an_image_of_the_pairs(model: str, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"a photograph")
    (tmp_path / "b.png").touch()
    rows = ["a.png,b.png,same", "b.png,./a.png,different"] * 2
    (tmp_path / "pairs.csv").write_text("\n".join(["first,second,type", *rows]))
    with pytest.raises(UsageError, match=r"^--roc .*a\.png: would replace .*a\.png, which is"):
        evaluate.main([model, f"--pairs={tmp_path}/pairs.csv", f"--roc={image}"])
    assert image.read_bytes() == b"a photograph"


@pytest.mark.parametrize("flags", ["--metrics=recall@0", "--metrics=accuracy", "--gpus=x"])
def test_mistakes_are_refused(model: str, flags: str) -> None:
    with pytest.raises(UsageError, match=flags.split("=")[0]):
        evaluate.main([model, flags])


@pytest.mark.slow
def test_help_needs_no_mxnet() -> None:
    blocked = "import sys; sys.modules['mxnet'] = None\n"
    call = "from embedding_learning.__main__ import main; main(['evaluate', '--help'])"
    root = ROOT
    command = [sys.executable, "-c", blocked + call]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert "--metrics" in done.stdout
