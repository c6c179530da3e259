"""`python -m embedding_learning check`: all faults at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_learning.__main__ import main
from tests.fuzzing.samples import animation_of_16_bits

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, write_cub: Callable[..., Path]) -> Path:
    return write_cub(tmp_path / "birds", [3] * 4)


def test_a_sound_set_is_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"--data-path={folder}"]) == 0
    assert capsys.readouterr().out == (
        "CUB-200-2011: 12 images, 0 of them bad; 2 classes train, of 3 to 3 images.\n"
    )


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


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_files_are_told_for_what_they_are_whatever_their_names(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    """The last one is of a format with which OpenCV has ended the process."""
    contents = {
        "1.jpg": b"GIF89a",
        "2.jpg": b"<!DOCTYPE html>",
        "3.jpg": b"\x93NUMPY\1\0",
        "4.jpg": animation_of_16_bits(),
        "5.jpg": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(range(256)),
    }
    for name, content in contents.items():
        for label in "ab":
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / name).write_bytes(content)
    (tmp_path / "b" / "6.heic").touch()
    assert main(["check", f"--data-path={tmp_path}", f"--workers={workers}"]) == 2
    output, error = capfd.readouterr()
    told = {
        1: "is a GIF file; convert it to JPEG or PNG",
        2: "is an HTML file; replace the file",
        3: "is a numpy file; replace the file",
        5: "is a JPEG 2000 file; convert it to JPEG or PNG",
    }
    lines = [f"{tmp_path}/{label}/{n}.jpg: {text}" for label in "ab" for n, text in told.items()]
    assert output.splitlines()[:-1] == lines
    assert "10 images, 8 of them bad" in output
    assert "1 file was passed over: 1 .heic; convert them to JPEG or PNG." in error


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
