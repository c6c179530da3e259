"""The messages of `make` about a Python or a platform, before it installs anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_learning.runtime import mxnet_compat
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is what is tested")


def make(folder: Path, pretended: str) -> subprocess.CompletedProcess[str]:
    """Run `make demo` in `folder` with a Python that runs `pretended` before any code.

    It cannot make a virtual environment: "installing" stands for the first step after the checks.
    """
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("requirements.txt", "requirements-common.txt", "embedding_learning"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "pretended.py").write_text(f"import platform, sys\n{pretended}\nexec(sys.argv[1])\n")
    pretender = folder / "python"
    pretender.write_text(
        f"#!/bin/sh\nif [ $1 = -m ]; then echo installing; exit 1; fi\n"
        f'PYTHONPATH=. exec {sys.executable} pretended.py "$2"\n'
    )
    pretender.chmod(0o755)
    command = ["make", "-C", str(folder), "demo", f"PYTHON={pretender}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_LIMIT)


def test_a_python_older_than_3_9_is_refused(tmp_path: Path) -> None:
    done = make(tmp_path, "sys.version_info = (3, 8, 20)")
    assert "installing" not in done.stdout
    line = "Python 3.9 or later is needed, not 3.8: name one with make PYTHON=..."
    assert line in done.stderr.splitlines()


@pytest.mark.parametrize("minor", [9, 15])
def test_the_pythons_that_were_tried_are_taken_without_a_word(tmp_path: Path, minor: int) -> None:
    done = make(tmp_path, f"sys.version_info = (3, {minor}, 0)")
    assert "installing" in done.stdout.splitlines()
    assert "Python" not in done.stderr


def test_a_newer_python_is_tried_with_a_warning(tmp_path: Path) -> None:
    done = make(tmp_path, "sys.version_info = (3, 16, 0)")
    assert "installing" in done.stdout.splitlines()
    line = "Python 3.16 is newer than 3.15, the newest that was tried."
    assert line in done.stderr.splitlines()


def test_a_platform_without_a_wheel_is_refused(tmp_path: Path) -> None:
    done = make(tmp_path, "platform.system, platform.machine = lambda: 'Windows', lambda: 'AMD64'")
    assert "installing" not in done.stdout
    assert mxnet_compat.explain_platform("Windows", "AMD64") in done.stderr.splitlines()


def test_the_demo_ends_with_its_report_and_the_next_steps(tmp_path: Path) -> None:
    """With an environment that is installed already, and a Python that prints what it would run."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "requirements-gpu.txt", "requirements-common.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "runs $*"\n')
    python.chmod(0o755)
    version = ".".join(map(str, sys.version_info[:3]))
    for step in ("installed", "works"):
        for requirements in ("requirements", "requirements-gpu"):
            (tmp_path / ".venv" / f"{step}-{requirements}-{version}").touch()
    command = ["make", "-C", str(tmp_path), "--silent", "demo", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_LIMIT, check=True)
    train, report, *lines = done.stdout.splitlines()
    assert train.startswith("runs train.py --data-path=glyphs ")
    assert report == "runs -m embedding_learning report glyphs"
    assert "glyphs.run/report.html." in lines
    (page,) = [line for line in lines if line.startswith("docs/data.md")]
    assert all((ROOT / word).is_file() for word in page.split() if word.startswith("docs/"))
