"""`plot`, `report` and `export`: the commands, on a run of a small network."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mxnet as mx
import numpy as np
import pytest

from embedding_learning import load_model, plots
from embedding_learning.cli import export, plot, report, train
from embedding_learning.data.datasets import ImageSet, Split
from embedding_learning.data.preprocessing import read_square
from embedding_learning.errors import DataError, UsageError
from embedding_learning.inference import embedding_file, onnxruntime_engine
from embedding_learning.inference.embedded_split import EmbeddedSplit
from embedding_learning.training.run_folder import RunFolder
from tests.end_to_end.test_train_command import QUICK
from tests.helpers.onnx_files import open_session
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.usefixtures("tiny_backbones", "quick_plots")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_cub: Path) -> Path:
    """The folder that a short run was started in; its prefix is `birds`."""
    folder = tmp_path_factory.mktemp("pictures") / "here"
    folder.mkdir()
    flags = ["--save-model-prefix=birds", "--metrics=recall@1,precision@2", "--evaluate-first"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train.main([*QUICK, f"--data-path={tiny_cub}", *flags]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, name",
    [
        ("tsne", "birds"),
        ("gallery", "birds.run"),
        ("confusions", "birds"),
        ("points", "birds"),
        ("points", "birds.run"),
        ("points", "birds.params"),
    ],
)
def test_a_picture_of_the_test_images_is_drawn(
    run: Path, tiny_cub: Path, kind: str, name: str
) -> None:
    picture = run / f"{kind}.png"
    model = str(run / name)
    assert plot.main([kind, model, str(picture), f"--data-path={tiny_cub}"]) == 0
    image = cv2.imread(str(picture))
    assert min(image.shape[:2]) > 200
    assert image.std() > 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tsne", "points", "gallery"])
def test_a_picture_is_drawn_of_every_class_and_of_a_list_without_training_images(
    run: Path, tiny_cub: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    images = sorted((tiny_cub / "images").rglob("*.jpg"))
    rows = [f"{path},{path.parent.name},test" for path in images[:12]]
    (run / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    model, picture = str(run / "birds.params"), run / f"all_{kind}.png"
    for flags, counted in (
        ([f"--data-path={tiny_cub}", "--test=all"], "32 of 8 test."),
        ([f"--data-path={run / 'list.csv'}"], "12 of 3 test."),
    ):
        picture.unlink(missing_ok=True)
        assert plot.main([kind, model, str(picture), *flags]) == 0
        assert cv2.imread(str(picture)).std() > 10
        assert caplog.messages[-1].endswith(counted)


def write_vectors(folder: Path, tiny_cub: Path, labels: bool = True, listed: bool = True) -> str:
    """Vectors of the birds, two clusters, without a model; every other bird has a label if any."""
    paths = sorted(str(path) for path in tiny_cub.rglob("*.jpg"))
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(paths), 5)) + 9 * (np.arange(len(paths)) % 2)[:, None]
    np.save(folder / "e.npy", vectors.astype(np.float32))
    if listed:
        classes = [("wren" if labels and row % 2 else "") for row in range(len(paths))]
        embedding_file.write_csv(f"{folder}/e.csv", zip(paths, classes))
    return str(folder / "e.npy")


@pytest.mark.parametrize(
    "labels, expected", [(True, "Images: 32. Classes: 1"), (False, "Images: 32. Classes: 0")]
)
def test_points_of_a_file_of_vectors_are_drawn_with_or_without_labels(
    tmp_path: Path, tiny_cub: Path, labels: bool, expected: str
) -> None:
    file = write_vectors(tmp_path, tiny_cub, labels)
    assert plot.main(["points", file, f"{tmp_path}/points.svg"]) == 0
    drawn = (tmp_path / "points.svg").read_text(encoding="utf-8")
    assert "<!-- e.npy: t-SNE of 32 images -->" in drawn
    assert f"<!-- {expected} -->" in drawn


def test_no_more_points_are_drawn_than_the_flag_says(tmp_path: Path, tiny_cub: Path) -> None:
    file = write_vectors(tmp_path, tiny_cub)
    assert plot.main(["points", file, f"{tmp_path}/points.svg", "--images=9"]) == 0
    drawn = (tmp_path / "points.svg").read_text(encoding="utf-8")
    assert "<!-- e.npy: t-SNE of 9 of 32 images -->" in drawn


def test_photographs_of_a_file_of_vectors_are_drawn(
    tmp_path: Path, tiny_cub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[int, np.ndarray] = {}

    def draw(points: np.ndarray, thumbnail: Any, *_: object) -> None:
        assert points.shape == (32, 2)
        shown.update({row: thumbnail(row) for row in range(len(points))})

    monkeypatch.setattr(plots, "plot_tsne_photographs", draw)
    file = write_vectors(tmp_path, tiny_cub)
    assert plot.main(["tsne", file, f"{tmp_path}/tsne.png"]) == 0
    for row, path in enumerate(sorted(tiny_cub.rglob("*.jpg"))):
        np.testing.assert_array_equal(shown[row], read_square(str(path), None, 224))


def test_a_plot_does_not_replace_a_photograph(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.eye(3, dtype=np.float32))
    image = tmp_path / "b.png"
    image.write_bytes(b"a photograph")
    embedding_file.write_csv(f"{tmp_path}/e.csv", [("a.png", ""), (str(image), ""), ("c.png", "")])
    with pytest.raises(UsageError, match=r"^FILE .*b\.png: would replace .*b\.png, which is read"):
        plot.main(["points", f"{tmp_path}/e.npy", str(image)])
    assert image.read_bytes() == b"a photograph"


@pytest.mark.slow
def test_a_plot_does_not_replace_an_image_of_the_data_set(run: Path, tiny_cub: Path) -> None:
    image = run / "photo.png"
    rows = [f"{path},{path.parent.name},test" for path in sorted(tiny_cub.rglob("*.jpg"))[:8]]
    cv2.imwrite(str(image), np.zeros((32, 32, 3)))
    listed = ["path,label,split", *rows, "photo.png,x,train"]
    (run / "photo.csv").write_text("\n".join(listed))
    flags = [str(run / "birds.params"), str(image), f"--data-path={run}/photo.csv"]
    with pytest.raises(UsageError, match=r"^FILE .*photo\.png: would replace .*photo\.png"):
        plot.main(["confusions", *flags])


def test_a_map_of_photographs_needs_the_photographs(tmp_path: Path, tiny_cub: Path) -> None:
    file = write_vectors(tmp_path, tiny_cub, listed=False)
    with pytest.raises(UsageError, match=r"e\.npy: no \.csv file names the image of row 0; "):
        plot.main(["tsne", file, f"{tmp_path}/tsne.png"])
    assert plot.main(["points", file, f"{tmp_path}/points.png"]) == 0
    embedding_file.write_csv(f"{tmp_path}/e.csv", [(f"{tmp_path}/gone.jpg", "")] * 32)
    with pytest.raises(
        DataError, match=r"gone\.jpg: no such file, though it is in the list of e\.npy"
    ):
        plot.main(["tsne", file, f"{tmp_path}/tsne.png"])
    assert not (tmp_path / "tsne.png").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("tsne missing.npy x.png", "missing.npy: no such file"),
        ("gallery e.npy x.png", "MODEL e.npy: plot gallery needs a trained network and a data set"),
        ("points e.npy x.png --data-path=birds", "--data-path: has no effect, because the images"),
        ("points e.npy x.png --images=0", "--images 0: must be at least 1"),
        ("points e.npy x.png --no-bbox", "--bbox: has no effect"),
        ("points e.npy x.png --gpus=0", "--gpus: has no effect"),
        ("points e.npy x.png --model=alexnet", "--model: has no effect"),
    ],
)
def test_flags_without_effect_on_a_file_of_vectors_are_refused(
    tmp_path: Path, tiny_cub: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    write_vectors(tmp_path, tiny_cub)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        plot.main(arguments.split())
    assert str(caught.value).startswith(message)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["birds", "birds.params"])
def test_every_name_of_a_run_has_its_curves(run: Path, tmp_path: Path, name: str) -> None:
    assert plot.main(["curves", str(run / name), f"{tmp_path}/curves.svg"]) == 0


def test_a_gallery_without_a_query_that_can_be_found_is_refused(
    run: Path, write_cub: Callable[..., Path], tmp_path: Path
) -> None:
    """A single test image, and test images that are all alone in their class."""
    for images in ([4, 1], [4, 4, 1, 1]):
        folder = write_cub(tmp_path / str(len(images)), images)
        picture = str(tmp_path / "gallery.png")
        with pytest.raises(DataError, match="no test image has another image of its class"):
            plot.main(["gallery", f"{run}/birds.params", picture, f"--data-path={folder}"])
        assert not Path(picture).exists()


def test_a_gallery_shows_no_image_of_the_querys_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In the second class only one image is of another group.
    groups = np.int32([0, 0, 1, -1, 2, 2, 2, 3])
    test = ImageSet([str(row) for row in range(8)], np.int32([0] * 4 + [1] * 4), ["x", "y"])
    test = dataclasses.replace(test, groups=groups)
    queries = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    drawn: dict[str, Any] = {}

    monkeypatch.setattr(plots, "plot_gallery", lambda **arguments: drawn.update(arguments))
    plot.draw_gallery(
        EmbeddedSplit(Split("s", test.take(np.array([], int)), test), queries, None), ""
    )
    assert sorted(np.concatenate([*drawn["groups"].values()])) == [*range(8)]
    for query, rows in enumerate(drawn["neighbors"]):
        assert {*rows[rows >= 0]} == {
            row
            for row in range(8)
            if row != query and (groups[query] < 0 or groups[row] != groups[query])
        }


# The titles of two of the latter are the same.
@pytest.mark.parametrize("names", [["a", "b", "c"], ["a", "1.a", "2.a"]])
def test_the_queries_of_confused_classes_are_drawn(
    monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    """In a line: two images of a are next to b, one of b is next to a, one to c; c is alone."""
    a, b, c = names
    test = ImageSet([str(row) for row in range(6)], np.int32([0, 0, 1, 1, 1, 2]), names)
    queries = np.float32([[0.0], [9.0], [1.0], [8.5], [5.0], [6.0]])
    drawn: list[dict[str, np.ndarray]] = []
    monkeypatch.setattr(plots, "plot_gallery", lambda groups, **_: drawn.append(groups))
    found = EmbeddedSplit(Split("s", test.take(np.array([], int)), test), queries, None)
    plot.draw_confusions(found, "")
    assert {heading: [*rows] for heading, rows in drawn[0].items()} == {
        f"{a} taken for {b}: 2 of 2 images": [1],
        f"{b} taken for {a}: 2 of 3 images": [3],
        f"{c} taken for {b}: 1 of 1 images": [5],
        f"{b} taken for {c}: 1 of 3 images": [4],
    }


def test_right_neighbors_alone_are_no_confusion(tmp_path: Path) -> None:
    for count in (1, 4):
        test = ImageSet([str(row) for row in range(count)], np.zeros(count, np.int32), ["a"])
        queries = np.eye(count, dtype=np.float32)
        found = EmbeddedSplit(Split("s", test.take(np.array([], int)), test), queries, None)
        assert found.confusions == []
        with pytest.raises(DataError, match="no test image has a nearest image of another class"):
            plot.draw_confusions(found, str(tmp_path / "confusions.png"))


@pytest.mark.slow
def test_the_curves_of_a_run_are_drawn(run: Path) -> None:
    assert plot.main(["curves", str(run / "birds.run"), str(run / "curves.svg")]) == 0
    drawn = (run / "curves.svg").read_text(encoding="utf-8")
    assert "Mean distance of pairs" in drawn


@pytest.mark.slow
def test_the_distances_of_a_run_are_drawn(run: Path) -> None:
    assert plot.main(["distances", str(run / "birds.run"), str(run / "distances.svg")]) == 0
    drawn = (run / "distances.svg").read_text(encoding="utf-8")
    assert "q(D), 16 dimensions" in drawn
    assert "sampled, epoch 1" in drawn


@pytest.mark.slow
def test_a_run_is_reported_on_one_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert report.main(["birds"]) == 0
    page = (run / "birds.run" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/") == 6
    for text in (
        "before training",
        "epoch 0",
        "epoch 1",
        "Epochs are counted from 0, as in the log.",
        "when the run was finished, after 2 of 2 epochs.",
        "saved: epoch",
        "Distances of pairs",
        "<th>taken for</th>",
        "map@r",
        "precision@2",
        "computed over",
        "--model=tiny",
        "mxnet",
    ):
        assert text in page


@pytest.mark.parametrize(
    "files, is_held, expected",
    [
        ([(3, 0)], False, "when the run was finished, after 3 of 3 epochs."),
        ([(1, 5)], False, "when the run was stopped; its latest checkpoint was after 1 of 3 epochs "
                          "and 5 batches."),
        ([(0, 0), (1, 0)], True, "while the run was training; its latest checkpoint was after 1 of "
                                 "3 epochs."),
        ([], False, "the run's checkpoints do not exist any more."),
    ],
)  # fmt: skip
def test_what_the_run_had_come_to_is_reported(
    tmp_path: Path, files: list[tuple[int, int]], is_held: bool, expected: str
) -> None:
    prefix = str(tmp_path / "birds")
    with RunFolder(prefix, 2) as folder:
        for epoch, batch in files:
            folder.save(epoch, batch, {}, {})
        state = report._state(prefix, 3) if is_held else ""
    (tmp_path / "birds.run").mkdir(exist_ok=True)
    state = state or report._state(prefix, 3)
    assert re.match(r"Written on \d{4}-\d\d-\d\d at \d\d:\d\d:\d\d \(UTC[+-]\d{4}\)", state)
    assert state.endswith(expected)


@pytest.mark.slow
def test_what_is_not_recorded_is_not_drawn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This happens in the report of a run without records of distances."""
    (tmp_path / "birds.run").mkdir()
    shutil.copy(run / "birds.params", tmp_path)
    shutil.copy(run / "birds.run" / "run.json", tmp_path / "birds.run")
    records = (run / "birds.run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "birds.run" / "metrics.jsonl").write_text(
        "".join(line for line in records if '"distances"' not in line)
    )
    monkeypatch.chdir(tmp_path)
    assert report.main(["birds"]) == 0
    page = (tmp_path / "birds.run" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/") == 5
    assert "<h2>Curves</h2>" in page
    assert "<h2>Distances of pairs</h2>" not in page
    with pytest.raises(DataError, match=r"birds\.run: no distances are recorded"):
        plot.main(["distances", "birds.run", "distances.png"])
    assert not (tmp_path / "distances.png").exists()


def test_what_is_not_there_is_reported(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such folder .*birds\.run; name a run"):
        report.main([str(tmp_path / "birds")])
    (tmp_path / "birds.run").mkdir()
    with pytest.raises(DataError, match=r"run\.json: is missing or damaged"):
        report.main([str(tmp_path / "birds.run")])
    shutil.copy(run / "birds.run" / "run.json", tmp_path / "birds.run")
    with pytest.raises(
        UsageError, match=r"birds\.params: does not exist; .* after its first epoch"
    ):
        report.main([str(tmp_path / "birds")])
    info = json.loads((run / "birds.run" / "run.json").read_text())
    info["arguments"].append("--data-path=gone")
    (tmp_path / "birds.run" / "run.json").write_text(json.dumps(info))
    shutil.copy(run / "birds.params", tmp_path)
    with pytest.raises(UsageError, match=r"--data-path gone of the run: no such file .*; call rep"):
        report.main([str(tmp_path / "birds")])
    with pytest.raises(UsageError, match=r"end the name in \.html"):
        report.main([str(run / "birds"), "--output=page.txt"])
    with pytest.raises(UsageError, match="no such folder"):
        plot.main(["curves", str(tmp_path / "other.run"), "curves.png"])
    with pytest.raises(UsageError, match="no such folder"):
        plot.main(["distances", str(tmp_path / "other.run"), "distances.png"])
    with pytest.raises(UsageError, match=r"x\.jpg"):
        plot.main(["curves", str(run / "birds.run"), "x.jpg"])


def test_a_report_takes_the_engine_that_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    monkeypatch.setattr(onnxruntime_engine, "_PACKAGES", ("a_missing_package",))
    with pytest.raises(UsageError, match="--engine onnxruntime: needs the packages"):
        report.main(["birds", "--engine=onnxruntime"])


@pytest.mark.slow
def test_the_exported_graphs_embed_as_the_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(run / "birds.params")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    expected = model.net.embed(mx.nd.array(pixels, dtype=np.uint8)).asnumpy()
    for output in ("birds.onnx", "birds"):
        flags = [str(run / "birds.params"), str(tmp_path / output), "--normalize-input"]
        assert export.main(flags) == 0
    assert "data (n, 3, 32, 32), uint8 RGB" in capsys.readouterr().out
    block = mx.gluon.SymbolBlock.imports(
        str(tmp_path / "birds-symbol.json"), ["data"], str(tmp_path / "birds-0000.params")
    )
    found = block(mx.nd.array(pixels, dtype=np.uint8)).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    session = open_session(tmp_path / "birds.onnx")
    np.testing.assert_allclose(session.run(None, {"data": pixels})[0], expected, atol=1e-5)


def test_the_commands_are_found_by_name() -> None:
    root = ROOT
    command = [sys.executable, "-m", "embedding_learning", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True).stdout
    for verb in ("check", "evaluate", "embed", "search", "plot", "report", "export"):
        assert f"  {verb} " in output
