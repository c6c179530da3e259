"""The README says what the program does."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from embedding_learning import building, losses, methods, options, sampling
from tests.models import save_model
from tests.small import batch_of, each_class, small_net

# isort: split
import mxnet as mx

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


@pytest.mark.parametrize(
    "action",
    [a for a in options._parser()._actions if not isinstance(a, argparse._HelpAction)],
    ids=lambda action: action.dest,
)
def test_every_flag_stands_in_the_readme_with_its_default(action: argparse.Action) -> None:
    (row,) = re.findall(rf"^\| `{action.option_strings[0]}` \| (.*?) \| .+ \|$", README, re.M)
    has_none = action.default is None or action.default in ("", argparse.SUPPRESS)
    default = "" if has_none or isinstance(action.default, bool) else f"`{action.default}`"
    assert row == ("`~/.cache/embedding_learning`" if action.dest == "cache_dir" else default)


def test_no_other_flag_stands_in_the_tables() -> None:
    known = {name for action in options._parser()._actions for name in action.option_strings}
    assert set(re.findall(r"^\| `(--[\w-]+)`", README, re.M)) <= known


def test_the_demo_in_the_readme_is_the_makefiles() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (flags,) = re.findall(r"^DEMO_FLAGS \?= (.*)$", makefile, re.M)
    (command,) = re.findall(r"train\.py --data-path=glyphs (.*?)\n```", README, re.S)
    assert command.replace("\\\n", " ").split() == flags.split()


def test_the_python_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block that needs ONNX is run by test_export.py."""
    save_model(tmp_path / "birds.params")
    for name in ("a.jpg", "b.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((50, 60, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    run = [b for b in BLOCKS if "onnxruntime" not in b and "methods.LOSSES" not in b]
    assert len(run) == 2
    for block in run:
        exec(compile(block, "README.md", "exec"), {})


def test_the_methods_in_the_readme_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do what they say, and the tables' lines are what the flags look up."""
    for table in ("LOSSES", "SAMPLINGS"):
        monkeypatch.setattr(methods, table, dict(getattr(methods, table)))
    (block,) = [block for block in BLOCKS if "methods.LOSSES" in block]
    made: dict[str, Any] = {"__name__": "README"}
    exec(compile(block, "README.md", "exec"), made)
    monkeypatch.setattr(losses, "RatioLoss", made["RatioLoss"], raising=False)
    monkeypatch.setattr(sampling, "FarthestSampling", made["FarthestSampling"], raising=False)
    chosen = options.parse(["--batch-size=20", "--batch-k=2"])
    chosen.loss, chosen.sampling, chosen.margin = "ratio", "farthest", 0.5
    net = small_net([mx.cpu()], sampling=building.find_sampling(chosen))
    learning = building.build(chosen, each_class(5), net, [mx.cpu()])
    batch = batch_of(20)
    (triple,) = learning.step(batch).triples
    anchors, positives, negatives = (part.asnumpy() for part in triple)
    squared = [np.sum((anchors - other) ** 2, axis=1) for other in (positives, negatives)]
    expected = np.maximum(squared[0] / (squared[1] + 1e-3) - 0.5, 0)
    np.testing.assert_allclose(learning.loss.terms(*triple)[0].asnumpy(), expected, rtol=1e-4)
    # Each anchor is an anchor once, and its own class does not count.
    distance = np.sum((anchors[:, None] - anchors) ** 2, axis=2)
    distance[np.arange(20)[:, None] // 2 == np.arange(20) // 2] = 0
    np.testing.assert_allclose(squared[1], distance.max(axis=1), rtol=1e-4)
