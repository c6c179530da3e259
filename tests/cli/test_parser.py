"""Flags that name files and folders."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from embedding_learning.errors import UsageError

PATHS = pytest.mark.parametrize(
    "command, arguments, name",
    [
        ("compare", "--output=~/x", "output"),
        ("compare_original", "PATH --output=~/x", "output"),
        ("convert", "IN ~/x --model=resnet18_v1", "output"),
        ("embed", "MODEL a.jpg --output=~/x", "output"),
        ("embed", "MODEL --data-path=~/x --output=e.npy", "data_path"),
        ("export", "MODEL ~/x", "output"),
        ("plot", "curves RUN ~/x", "output"),
        ("report", "RUN --output=~/x", "output"),
        ("search", "MODEL GALLERY QUERY --picture=~/x", "picture"),
    ],
)


@PATHS
def test_a_home_in_a_path_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, arguments: str, name: str
) -> None:
    """The shell does it for words that begin with ~, but not in --flag=~/x."""
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN.run").mkdir()
    parsed = importlib.import_module(f"embedding_learning.cli.{command}")._parse(arguments.split())
    options = parsed[0] if isinstance(parsed, tuple) else parsed
    assert Path(getattr(options, name)) == Path("/home/user/x")


@PATHS
def test_an_empty_path_is_refused(command: str, arguments: str, name: str) -> None:
    """It comes from a shell variable that is not set; some paths would mean the current folder."""
    module = importlib.import_module(f"embedding_learning.cli.{command}")
    with pytest.raises(UsageError, match="the name of a file or folder is empty"):
        module._parse([word.replace("~/x", "") for word in arguments.split()])


def test_the_file_of_hosts_may_be_in_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from embedding_learning.cli import launch

    monkeypatch.setenv("HOME", str(tmp_path))
    assert launch._parser().parse_args(["--hosts=~/hosts"]).hosts == f"{tmp_path}/hosts"
