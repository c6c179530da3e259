"""`python -m embedding_learning check`: all faults at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_learning.__main__ import main
from embedding_learning.cli.train_flags import parse
from embedding_learning.data.build import read_split
from embedding_learning.errors import DataError, UsageError
from tests.fuzzing.samples import animation_of_16_bits
from tests.helpers.paths import ROOT

# Two classes of three images can train with these.
FITTING = ["--batch-k=3", "--batch-size=6"]


@pytest.fixture
def folder(tmp_path: Path, write_cub: Callable[..., Path]) -> Path:
    return write_cub(tmp_path / "birds", [3] * 4)


def test_a_sound_set_is_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"--data-path={folder}", *FITTING]) == 0
    assert capsys.readouterr().out == (
        "CUB-200-2011: 12 images, 0 of them bad; 2 classes train, of 3 to 3 images.\n"
    )


def test_test_images_that_nothing_can_be_learned_about_are_reported(
    tmp_path: Path, write_cub: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_cub(tmp_path / "birds", [3, 3, 1, 2])
    flags = ["--batch-k=3", "--batch-size=6"]
    assert main(["check", f"--data-path={folder}", *flags]) == 0
    warning, last = capsys.readouterr().out.splitlines()
    assert warning.startswith("CUB-200-2011: 1 of 3 test images have no partner")
    assert "0 of them bad" in last
    assert (
        main(
            ["check", f"--data-path={folder}", "--train-classes=3", "--small-classes=drop", *flags]
        )
        == 0
    )
    assert "a single class is searched" in capsys.readouterr().out


def test_every_fault_is_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = sorted((folder / "images").rglob("*.jpg"))
    images[1].write_bytes(b"")
    images[5].write_text("no image")
    images[11].unlink()
    images[7].write_bytes(images[7].read_bytes()[:200])
    assert main(["check", f"--data-path={folder}", "--workers=1", *FITTING]) == 2
    *faults, last = capsys.readouterr().out.splitlines()
    assert [Path(fault.split(":")[0]) for fault in faults] == [images[i] for i in (1, 5, 7, 11)]
    assert "12 images, 4 of them bad" in last


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_files_are_reported_for_what_they_are_whatever_their_names(
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
    faults = {
        1: "is a GIF file; convert it to JPEG or PNG",
        2: "is an HTML file; replace the file",
        3: "is a numpy file; replace the file",
        5: "is a JPEG 2000 file; convert it to JPEG or PNG",
    }
    lines = [f"{tmp_path}/{label}/{n}.jpg: {text}" for label in "ab" for n, text in faults.items()]
    assert output.splitlines()[: len(lines)] == lines
    assert "10 images, 8 of them bad" in output
    assert "1 file was skipped: 1 .heic; convert them to JPEG or PNG." in error


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [],  # a class is smaller than --batch-k
        ["--batch-k=3"],  # a batch cannot be divided into classes
        ["--batch-k=3", "--batch-size=9"],
        ["--batch-k=3", "--total-batch-size=9"],
        ["--batch-k=3", "--batch-size=6", "--train-classes=1"],
        ["--batch-k=3", "--batch-size=6", "--train-classes=4"],
        ["--batch-k=3", "--batch-size=6", "--held-out=0.2"],
        ["--batch-k=3", "--batch-size=6", "--cpu-contexts=2"],
        ["--batch-k=3", "--batch-size=6", "--gpus=0,1"],
        ["--batch-k=3", "--batch-size=6", "--classes=3"],
        ["--batch-k=4", "--batch-size=8", "--small-classes=drop"],
        ["--batch-k=4", "--batch-size=8"],
        ["--preset=paper-sop"],
    ],
)
def test_what_training_would_refuse_is_reported_in_its_words(
    folder: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [f"--data-path={folder}", *flags]
    with pytest.raises((UsageError, DataError)) as refusal:
        read_split(parse(command))
    try:
        assert main(["check", *command]) == 2
        assert f"\nTraining would refuse: {refusal.value}\n" in capsys.readouterr().out
    except (UsageError, DataError) as error:
        # Some flags contradict each other whatever the data.
        assert str(error) == str(refusal.value)


@pytest.mark.parametrize(
    "flags",
    [
        ["--batch-k=2", "--batch-size=4"],
        ["--batch-k=4", "--batch-size=8", "--small-classes=repeat"],
        ["--preset=paper-sop", "--batch-size=4"],
        ["--batch-k=3", "--total-batch-size=6", "--classes=2", "--gpus=0"],
    ],
)
def test_nothing_is_said_of_what_training_would_take(
    folder: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    read_split(parse([f"--data-path={folder}", *flags]))
    assert main(["check", f"--data-path={folder}", *flags]) == 0
    assert "refuse" not in capsys.readouterr().out


def test_images_that_only_test_are_checked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted((folder / "images").rglob("*.jpg"))
    images[1].write_bytes(b"")
    file = tmp_path / "a.csv"
    file.write_text("\n".join(["path,label,split", *(f"{path},x,test" for path in images)]))
    assert main(["check", f"--data-path={file}"]) == 2
    fault, single, counts, refusal = capsys.readouterr().out.splitlines()
    assert fault.startswith(f"{images[1]}: ")
    assert "a single class is searched" in single
    assert counts == "a.csv: 12 images, 1 of them bad; 0 classes train."
    assert refusal.startswith(f"Training would refuse: {file}: none of its images train")


def test_a_flag_that_decides_nothing_here_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="unrecognized arguments: --lr"):
        main(["check", f"--data-path={folder}", *FITTING, "--lr=0.1"])


def test_check_asks_for_no_place_to_save_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The superuser may write everywhere, so the answer of the system is replaced.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert main(["check", f"--data-path={folder}", *FITTING]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, line",
    [
        (["cheque"], "error: cheque: choose one of train, check"),
        ([], "error: no verb: choose one of train, check"),
        (["check", "--data-path=missing"], "error: missing: no such folder"),
        (["check", "--no-such-flag"], "error: unrecognized arguments: --no-such-flag"),
    ],
)
def test_a_mistake_is_reported_in_one_line(tmp_path: Path, arguments: list[str], line: str) -> None:
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
