"""A lock is held by one process at a time, and is freed when its holder ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embedding_learning.runtime.file_locks import locked, open_locked
from tests.helpers.paths import ROOT

# Holds the lock until its input ends or it is killed.
HOLDER = """
import sys
from embedding_learning.runtime.file_locks import locked

with locked(sys.argv[1], is_shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""
Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """A function that starts a process which holds a lock."""
    started = []

    def hold(path: Path, mode: str = "exclusive") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), mode],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def open_files() -> list[str]:
    return os.listdir("/proc/self/fd")


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_second_process_is_refused_until_the_first_ends(
    tmp_path: Path, hold: Hold, is_folder: bool
) -> None:
    path = tmp_path if is_folder else tmp_path / "file"
    if not is_folder:
        path.touch()
    holder = hold(path)
    before = open_files()
    with pytest.raises(BlockingIOError):
        open_locked(path)
    assert open_files() == before
    holder.kill()
    holder.wait()
    with locked(path), pytest.raises(BlockingIOError):
        open_locked(path)
    os.close(open_locked(path))
    assert open_files() == before


def test_shared_locks_exclude_only_exclusive_ones(tmp_path: Path, hold: Hold) -> None:
    hold(tmp_path, "shared")
    with locked(tmp_path, is_shared=True):
        pass
    with pytest.raises(BlockingIOError):
        open_locked(tmp_path)


def test_one_that_may_wait_says_so_once_and_waits(tmp_path: Path, hold: Hold) -> None:
    holder = hold(tmp_path)
    calls = []

    def release() -> None:
        calls.append(None)
        holder.kill()

    with locked(tmp_path, on_wait=release):
        assert holder.wait() == -signal.SIGKILL
    with locked(tmp_path, on_wait=release):
        pass
    assert len(calls) == 1


def test_the_file_is_created_and_no_link_is_followed_if_the_flags_say_so(tmp_path: Path) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with locked(tmp_path / "lock", flags):
        assert (tmp_path / "lock").read_bytes() == b""
    (tmp_path / "link").symlink_to(tmp_path / "lock")
    with pytest.raises(OSError, match="link"):
        open_locked(tmp_path / "link", flags)
