"""A file is replaced atomically or left as it was."""

from __future__ import annotations

import csv
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_learning.errors import UsageError
from embedding_learning.runtime.atomic_files import (
    atomic_write,
    check_output_path,
    format_csv,
    write_bytes,
    write_text,
)
from tests.helpers.paths import ROOT


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("former", [None, b"former"])
def test_the_file_is_replaced_when_the_block_ends(tmp_path: Path, former: bytes | None) -> None:
    path = tmp_path / "file"
    before = {} if former is None else {"file": former}
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    with atomic_write(str(path)) as partial:
        assert partial == f"{path}.{os.getpid()}.partial"
        assert contents(tmp_path) == before
        Path(partial).write_bytes(b"new")
        assert contents(tmp_path) == {**before, os.path.basename(partial): b"new"}
    assert contents(tmp_path) == {"file": b"new"}


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("written", [b"half", None])
def test_an_exception_leaves_the_former_file_alone(
    tmp_path: Path, error: type[BaseException], written: bytes | None
) -> None:
    (tmp_path / "file").write_bytes(b"former")
    raised = error("why")
    with pytest.raises(error) as caught, atomic_write(tmp_path / "file") as partial:
        if written:
            Path(partial).write_bytes(written)
        raise raised
    assert caught.value is raised
    assert contents(tmp_path) == {"file": b"former"}


def test_a_block_that_writes_nothing_leaves_the_former_file_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"former")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "file"):
        pass
    assert contents(tmp_path) == {"file": b"former"}


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, replace, steps = os.fsync, os.replace, []

    def watch_fsync(descriptor: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def watch_replace(source: str, target: str) -> None:
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "replace", watch_replace)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "file", Path("file")):
        with atomic_write(path) as partial:
            Path(partial).write_bytes(b"new")
        name = f"{tmp_path / 'file'}.{os.getpid()}.partial"
        assert steps == [name, "replace", str(tmp_path)]
        steps.clear()
    before = len(os.listdir("/proc/self/fd"))
    with atomic_write("file") as partial:
        Path(partial).write_bytes(b"new")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_former_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "file").write_bytes(b"former")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "file") as partial:
        Path(partial).write_bytes(b"new")
    assert caught.value.errno == errno.EIO
    assert contents(tmp_path) == {"file": b"former"}


def test_a_folder_that_cannot_be_flushed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has been replaced by then."""
    fsync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with atomic_write(tmp_path / "file") as partial:
        Path(partial).write_bytes(b"new")
    assert contents(tmp_path) == {"file": b"new"}


def test_a_target_that_is_a_folder_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "file") as partial:
        Path(partial).write_bytes(b"new")
    assert os.listdir(tmp_path) == ["file"]


_FILL = """
import resource, sys
from embedding_learning.runtime.atomic_files import atomic_write

resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    with atomic_write(sys.argv[1]) as partial, open(partial, "wb") as file:
        file.write(bytes(9_000))
        file.write(bytes(9_000))
except OSError as error:
    print(error.errno)
"""


def test_a_full_disk_leaves_the_former_file_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"former")
    command = [sys.executable, "-c", _FILL, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{errno.EFBIG}\n"
    assert contents(tmp_path) == {"file": b"former"}


def test_text_is_written_as_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "é\n\ud800")
    assert contents(tmp_path) == {"file": b"\xc3\xa9\n?"}


def test_csv_gives_back_any_text(tmp_path: Path) -> None:
    lines = [["class", "images"], ["a,b", "1"], ['"c"', "2"], ["old\rMac", "3"], ["d\r\ne\nf", "4"]]
    write_text(tmp_path / "file.csv", format_csv(lines))
    with open(tmp_path / "file.csv", encoding="utf-8", newline="") as file:
        assert list(csv.reader(file, strict=True)) == lines


def test_a_file_that_cannot_be_written_is_named_with_the_way_out(tmp_path: Path) -> None:
    for way_out in ("name another file", "name another folder"):
        with pytest.raises(UsageError) as error:
            write_bytes(tmp_path / "no" / "file", b"", way_out)
        reason = "cannot be written: No such file or directory"
        assert str(error.value) == f"{tmp_path}/no/file: {reason}; {way_out}"


@pytest.mark.parametrize(
    "path, message",
    [
        ("a.txt", r"a\.txt: end the name in \.png or \.svg$"),
        (".png/a", r"\.png/a: end the name in"),
        ("no/a.png", r"no/a\.png: the folder no does not exist or cannot be .*; create it first$"),
        ("folder.png", r"folder\.png: is a folder; name a file$"),
        # Its temporary name is longer than the 255 characters that a name may have.
        ("x" * 240 + ".png", "x{240}.png: is too long for the names of files; choose a"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    for flag, start in (("", "^"), ("--output", "^--output ")):
        with pytest.raises(UsageError, match=start + message):
            check_output_path(path, (".png", ".svg"), flag)
    assert contents_of_no_file(tmp_path)


def contents_of_no_file(folder: Path) -> bool:
    return not any(path.is_file() for path in folder.rglob("*"))


def test_a_path_that_can_be_written_passes_and_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.SVG").write_bytes(b"former")
    check_output_path(str(tmp_path / "a.SVG"), (".png", ".svg"))
    check_output_path(str(tmp_path / "b.png"), (".png", ".svg"))
    assert contents(tmp_path) == {"a.SVG": b"former"}
