"""`convert` writes what --pretrained-params takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon.model_zoo import vision

from embedding_learning.cli import convert
from embedding_learning.errors import UsageError
from embedding_learning.model import backbones
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT
from tests.helpers.saved_models import save_model
from tests.helpers.torch_writer import write_pth
from tests.helpers.torchvision_names import names_of


@pytest.fixture(scope="module")
def pth(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    rng = np.random.default_rng(0)
    shapes = names_of("squeezenet1_1")
    write_pth(
        path,
        {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()},
    )
    return str(path)


def test_the_file_holds_the_features_by_the_zoos_names(
    pth: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "net.params")
    assert convert.main([pth, out, "--model=SqueezeNet1_1"]) == 0
    line = f"{out}: the features of SqueezeNet1_1, for --pretrained-params.\n"
    assert capsys.readouterr().out == line
    zoo = vision.squeezenet1_1()
    zoo.load_parameters(out, allow_missing=True)
    x = mx.nd.random.normal(shape=(2, 3, 64, 64))
    for file in (pth, out):
        features = backbones.create("squeezenet1_1", [mx.cpu()], pretrained_params=file)
        np.testing.assert_array_equal(features(x).asnumpy(), zoo.features(x).asnumpy())
    names = {name.split(".")[0] for name in mx.nd.load(out)}
    assert names == {"features"}


def test_a_converted_file_can_be_converted_in_place(pth: str, tmp_path: Path) -> None:
    out = tmp_path / "net.params"
    convert.main([pth, str(out), "--model=squeezenet1.1"])
    content = out.read_bytes()
    convert.main([str(out), str(out), "--model=squeezenet1.1"])
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    "flags, message",
    [
        (["IN", "OUT", "--model=none"], "--model none: unknown; the nearest names are "),
        (["IN", "OUT", "--model=alexnet"], "IN {pth}: is not of alexnet: it lacks "),
        (["no.pth", "OUT", "--model=alexnet"], "IN no.pth: no such file, or it cannot be read"),
        (["IN", "no/OUT", "--model=squeezenet1.1"], "OUT no/OUT: the folder no does not exist"),
        (
            ["IN", "net.PTH", "--model=squeezenet1.1"],
            "OUT net.PTH: a Gluon parameter file is written; end the name in .params",
        ),
        (["IN", "OUT"], "the following arguments are required: --model"),
    ],
)
def test_a_mistake_is_reported_and_nothing_written(
    pth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        convert.main([pth if flag == "IN" else flag for flag in flags])
    assert str(caught.value).startswith(message.format(pth=pth))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["a trained network", "a file of another kind"])
def test_a_file_of_another_kind_is_not_replaced(pth: str, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "birds.params"
    if kind == "a trained network":
        save_model(out)
    else:
        out.write_bytes(Path(pth).read_bytes())
    before = out.read_bytes()
    with pytest.raises(UsageError, match=f"^OUT {out}: is {kind}, which would be lost; name"):
        convert.main([pth, str(out), "--model=squeezenet1.1"])
    assert out.read_bytes() == before


@pytest.mark.parametrize("name", ["output.weight", "base_net.0.weight"])
def test_a_whole_classifier_or_a_network_of_the_original_is_not_replaced(
    pth: str, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "net.params"
    mx.nd.save(str(out), {name: mx.nd.zeros(3)})
    before = out.read_bytes()
    with pytest.raises(UsageError, match=f"^OUT {out}: is a file of other layers .*; name another"):
        convert.main([pth, str(out), "--model=squeezenet1.1"])
    assert out.read_bytes() == before


@pytest.mark.slow
def test_it_is_a_verb(pth: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "embedding_learning", "convert", pth, "out", "--model=vgg11"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT,
    )
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"embedding_learning: error: IN {pth}: is not of vgg11: it lacks ")
