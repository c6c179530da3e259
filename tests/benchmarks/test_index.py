"""Every benchmark can be imported, README.md lists it, and the sections it names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FOLDER = Path(__file__).parent
FILES = sorted(file for file in FOLDER.rglob("*.py") if not file.name.startswith("test_"))
IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "pytorch_metric_learning"):
            raise
"""


@pytest.mark.slow
def test_every_module_can_be_imported() -> None:
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES]
    # In another process, which leaves this one as it is.
    command = [sys.executable, "-c", IMPORTS, *names]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_index_lists_every_module() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    missing = [
        file.stem for file in FILES if file.parent == FOLDER and f"`{file.stem}" not in index
    ]
    assert missing == []


def test_the_sections_that_the_index_names_exist() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| .* \| `.* \| ([^|]+) \|$", index, re.M))
    assert len(named) > 8
    assert named <= set(re.findall(r"^## (.*)$", page, re.M))
