"""The README says what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from docs import write_flags
from embedding_learning.cli import train_flags
from tests.helpers.paths import ROOT
from tests.helpers.saved_models import save_model

# isort: split


README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


def test_the_flags_page_is_what_the_program_writes() -> None:
    page = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert page == write_flags.page(), "write it again: python -m docs.write_flags docs/flags.md"


def test_the_readme_names_no_flag_that_is_not_there() -> None:
    parser = train_flags.build_parser()
    known = {name for action in parser._actions for name in action.option_strings}
    commands = re.findall(r"train\.py ((?:--[^\n]*(?:\\\n)?)+)", README)
    named = {name for command in commands for name in re.findall(r"(--[\w-]+)", command)}
    assert len(named) > 10
    assert named <= known


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
    run = [b for b in BLOCKS if "onnxruntime" not in b]
    assert len(run) == 2
    for block in run:
        exec(compile(block, "README.md", "exec"), {})
