"""The README says what the program does."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from embedding_learning.cli import train_flags
from embedding_learning.model import losses, methods, sampling
from embedding_learning.training import build
from tests.end_to_end.test_train_command import QUICK
from tests.helpers.paths import ROOT
from tests.helpers.saved_models import save_model
from tests.helpers.tiny_networks import batch_of, each_class, small_net

# isort: split
import mxnet as mx

from tests.helpers.limits import HANG_LIMIT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
# Code that belongs at the end of a file, which its first line names.
PASTED = re.findall(r"^```python\n# at the end of (\S+)\n(.*?)^```", README, re.M | re.S)


@pytest.mark.parametrize(
    "action",
    [a for a in train_flags._parser()._actions if not isinstance(a, argparse._HelpAction)],
    ids=lambda action: action.dest,
)
def test_every_flag_stands_in_the_readme_with_its_default(action: argparse.Action) -> None:
    (row,) = re.findall(rf"^\| `{action.option_strings[0]}` \| (.*?) \| .+ \|$", README, re.M)
    has_none = action.default is None or action.default in ("", argparse.SUPPRESS)
    default = "" if has_none or isinstance(action.default, bool) else f"`{action.default}`"
    assert row == ("`~/.cache/embedding_learning`" if action.dest == "cache_dir" else default)


def test_no_other_flag_stands_in_the_tables() -> None:
    known = {name for action in train_flags._parser()._actions for name in action.option_strings}
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
    run = [b for b in BLOCKS if "onnxruntime" not in b and not b.startswith("# at the end of")]
    assert len(run) == 2
    for block in run:
        exec(compile(block, "README.md", "exec"), {})


def test_the_methods_in_the_readme_do_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("LOSSES", "SAMPLINGS"):
        monkeypatch.setattr(methods, table, dict(getattr(methods, table)))
    modules = {"losses.py": losses, "sampling.py": sampling, "methods.py": methods}
    assert [file for file, _ in PASTED] == [f"embedding_learning/model/{name}" for name in modules]
    for (_, code), module in zip(PASTED, modules.values()):
        made = dict(vars(module))
        exec(compile(code, "README.md", "exec"), made)
        for name in made.keys() - vars(module).keys():
            monkeypatch.setattr(module, name, made[name], raising=False)
    chosen = train_flags.parse(["--batch-size=20", "--batch-k=2"])
    chosen.loss, chosen.sampling, chosen.margin = "ratio", "farthest", 0.5
    net = small_net([mx.cpu()], sampling=build.find_sampling(chosen))
    learning = build.build(chosen, each_class(5), net, [mx.cpu()])
    batch = batch_of(20)
    (triple,) = learning.step(batch).triplets
    anchors, positives, negatives = (part.asnumpy() for part in triple)
    squared = [np.sum((anchors - other) ** 2, axis=1) for other in (positives, negatives)]
    expected = np.maximum(squared[0] / (squared[1] + 1e-3) - 0.5, 0)
    np.testing.assert_allclose(learning.loss.terms(*triple)[0].asnumpy(), expected, rtol=1e-4)
    # Each anchor is an anchor once, and its own class does not count.
    distance = np.sum((anchors[:, None] - anchors) ** 2, axis=2)
    distance[np.arange(20)[:, None] // 2 == np.arange(20) // 2] = 0
    np.testing.assert_allclose(squared[1], distance.max(axis=1), rtol=1e-4)


def test_the_methods_in_the_readme_train_when_pasted_into_the_files(
    tmp_path: Path, tiny_cub: Path
) -> None:
    """As a reader does it: in a copy of the program, with nothing else changed."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "embedding_learning", tmp_path / "embedding_learning", ignore=ignored)
    shutil.copy(ROOT / "train.py", tmp_path)
    for file, code in PASTED:
        with open(tmp_path / file, "a", encoding="utf-8") as source:
            source.write(code)
    flags = [*QUICK, "--loss=ratio", "--sampling=farthest", f"--data-path={tiny_cub}", "--epochs=1"]
    done = subprocess.run(
        [sys.executable, "train.py", *flags, "--save-model-prefix=mine"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT,
    )
    assert done.returncode == 0, done.stderr
    assert "loss='ratio'" in done.stderr and "margin=0.5" in done.stderr
    assert (tmp_path / "mine.params").is_file()
