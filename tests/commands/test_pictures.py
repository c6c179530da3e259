"""`plot`, `report` and `export`: the commands, on a run of a small network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import mxnet as mx
import numpy as np
import pytest

from embedding_learning import load_model
from embedding_learning.commands import export, plot, report
from embedding_learning.datasets import DataError
from embedding_learning.flags import UsageError
from tests.onnx_files import open_session
from tests.test_command import QUICK


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_cub: Path, train_command: Callable[..., object]
) -> Path:
    """The folder that a short run was started in; its prefix is `birds`."""
    folder = tmp_path_factory.mktemp("pictures") / "here"
    folder.mkdir()
    train_command(folder, *QUICK, f"--data-path={tiny_cub}", "--save-model-prefix=birds")
    return folder


@pytest.mark.parametrize("kind", ["tsne", "points", "gallery"])
def test_a_picture_of_the_test_images_is_drawn(run: Path, tiny_cub: Path, kind: str) -> None:
    picture = run / f"{kind}.png"
    model = str(run / "birds.params")
    assert plot.main([kind, model, str(picture), f"--data-path={tiny_cub}"]) == 0
    image = cv2.imread(str(picture))
    assert min(image.shape[:2]) > 200
    assert image.std() > 10


def test_the_curves_of_a_run_are_drawn(run: Path) -> None:
    assert plot.main(["curves", str(run / "birds.run"), str(run / "curves.svg")]) == 0
    drawn = (run / "curves.svg").read_text(encoding="utf-8")
    assert "Mean distance of pairs" in drawn


def test_the_distances_of_a_run_are_drawn(run: Path) -> None:
    assert plot.main(["distances", str(run / "birds.run"), str(run / "distances.svg")]) == 0
    drawn = (run / "distances.svg").read_text(encoding="utf-8")
    assert "q(D), 16 dimensions" in drawn
    assert "drawn, epoch 1" in drawn


def test_a_run_is_reported_on_one_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert report.main(["birds"]) == 0
    page = (run / "birds.run" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/") == 5
    for told in (
        "epoch 1",
        "saved: epoch",
        "Distances of pairs",
        "map@r",
        "--model=squeezenet1.1",
        "mxnet",
    ):
        assert told in page


def test_what_is_not_there_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run of this prefix"):
        report.main([str(tmp_path / "birds")])
    (tmp_path / "birds.run").mkdir()
    with pytest.raises(DataError, match=r"run\.json: is missing or damaged"):
        report.main([str(tmp_path / "birds.run")])
    with pytest.raises(UsageError, match=r"end the name in \.html"):
        report.main([str(run / "birds"), "--output=page.txt"])
    with pytest.raises(UsageError, match="no such folder"):
        plot.main(["curves", str(tmp_path / "other.run"), "curves.png"])
    with pytest.raises(UsageError, match="no such folder"):
        plot.main(["distances", str(tmp_path / "other.run"), "distances.png"])
    with pytest.raises(UsageError, match=r"x\.jpg"):
        plot.main(["curves", str(run / "birds.run"), "x.jpg"])


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
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "embedding_learning", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True).stdout
    for verb in ("check", "evaluate", "embed", "search", "plot", "report", "export"):
        assert f"  {verb} " in told
