"""The README says what the program does."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from embedding_learning import options
from tests.models import save_model

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    run = [block for block in blocks if "onnxruntime" not in block]
    assert len(run) == 2
    for block in run:
        exec(compile(block, "README.md", "exec"), {})
