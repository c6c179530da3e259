"""The folders of files without a flag for them, also for a user without a home."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from embedding_learning.cli import train_flags
from embedding_learning.errors import UsageError
from embedding_learning.runtime import user_folders


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user without a home, below the temporary folder; it does not exist yet."""

    def no_entry(user: int) -> None:
        raise KeyError(user)

    for name in ("HOME", "XDG_CACHE_HOME", "MXNET_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"embedding_learning-{os.getuid()}"


def test_without_a_home_the_cache_is_a_private_temporary_folder(temporary: Path) -> None:
    assert not temporary.exists()
    umask = os.umask(0)
    try:
        assert train_flags.parse([]).data.cache_dir == str(temporary)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    assert user_folders.find_cache_folder() == user_folders.find_zoo_folder() == str(temporary)


def test_a_relative_cache_folder_of_the_environment_is_ignored(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cache")
    assert user_folders.find_cache_folder() == str(temporary)
    monkeypatch.setenv("HOME", "/home/user")
    assert user_folders.find_cache_folder() == "/home/user/.cache/embedding_learning"


def test_the_home_of_the_passwd_file_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "MXNET_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda user: SimpleNamespace(pw_dir="/home/user"))
    assert user_folders.find_cache_folder() == "/home/user/.cache/embedding_learning"
    assert user_folders.find_zoo_folder() == "/home/user/.mxnet"


def test_a_folder_that_others_can_write_is_refused(temporary: Path) -> None:
    temporary.mkdir()
    temporary.chmod(0o777)
    with pytest.raises(UsageError, match=f"others can write {temporary}; name a home .* in HOME"):
        user_folders.find_cache_folder()


def test_a_link_in_the_place_of_the_folder_is_refused(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(0o700)
    temporary.symlink_to("elsewhere")
    with pytest.raises(UsageError, match="others can write"):
        user_folders.find_cache_folder()


def test_a_folder_of_another_user_is_refused(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary.mkdir(0o700)
    another = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    temporary.rename(temporary.with_name(f"embedding_learning-{another}"))
    with pytest.raises(UsageError, match="others can write"):
        user_folders.find_cache_folder()


def test_without_a_temporary_folder_one_line_says_so(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    with pytest.raises(UsageError, match=r"no home folder, and .*/dev/null.*; name a home"):
        user_folders.find_cache_folder()


def test_without_a_folder_for_temporary_files_one_line_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    message = r"^no temporary folder can be created: .* in TMPDIR$"
    with pytest.raises(UsageError, match=message), user_folders.scratch_folder():
        pass


def test_mxnet_home_moves_the_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.delenv("MXNET_HOME", raising=False)
    assert user_folders.find_zoo_folder() == "/home/user/.mxnet"
    monkeypatch.setenv("MXNET_HOME", "")
    assert user_folders.find_zoo_folder() == "/home/user/.mxnet"
    monkeypatch.setenv("MXNET_HOME", "~/zoo")
    assert user_folders.find_zoo_folder() == "/home/user/zoo"
    monkeypatch.setenv("MXNET_HOME", "zoo")
    assert user_folders.find_zoo_folder() == "zoo"


def test_a_home_in_the_flag_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    assert train_flags.parse(["--cache-dir=~/cache"]).data.cache_dir == "/home/user/cache"
    assert train_flags.parse(["--tensorboard=~/logs"]).run.tensorboard == "/home/user/logs"
