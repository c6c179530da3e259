"""`python -m embedding_learning check`: all faults at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_learning.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, write_cub: Callable[..., Path]) -> Path:
    return write_cub(tmp_path / "birds", [3] * 4)


def test_a_sound_set_is_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"--data-path={folder}"]) == 0
    assert capsys.readouterr().out == (
        "CUB-200-2011: 12 images, 0 of them bad; 2 classes train, of 3 to 3 images.\n"
    )


def test_test_images_that_nothing_can_be_learned_about_are_told(
    tmp_path: Path, write_cub: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_cub(tmp_path / "birds", [3, 3, 1, 2])
    assert main(["check", f"--data-path={folder}"]) == 0
    warning, last = capsys.readouterr().out.splitlines()
    assert warning.startswith("CUB-200-2011: 1 of 3 test images have no partner")
    assert "0 of them bad" in last
    assert main(["check", f"--data-path={folder}", "--train-classes=3"]) == 0
    assert "a single class is searched" in capsys.readouterr().out


def test_every_fault_is_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = sorted((folder / "images").rglob("*.jpg"))
    images[1].write_bytes(b"")
    images[5].write_text("no image")
    images[11].unlink()
    images[7].write_bytes(images[7].read_bytes()[:200])
    assert main(["check", f"--data-path={folder}", "--workers=1"]) == 2
    *faults, last = capsys.readouterr().out.splitlines()
    assert [Path(fault.split(":")[0]) for fault in faults] == [images[i] for i in (1, 5, 7, 11)]
    assert "12 images, 4 of them bad" in last


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["chek"], "error: chek: choose of check"),
        ([], "error: no verb: choose of check"),
        (["check", "--data-path=missing"], "error: missing: no such folder"),
        (["check", "--no-such-flag"], "error: unrecognized arguments: --no-such-flag"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, arguments: list[str], line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "embedding_learning", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
