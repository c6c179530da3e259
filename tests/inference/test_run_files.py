"""A run's prefix, folder and network all name it."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedding_learning.errors import UsageError
from embedding_learning.inference.run_files import find_network, find_run, prefix_of

NAMES = ["birds", "birds.params", "birds.run", "birds.run/"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a run."""
    (tmp_path / "birds.run").mkdir()
    (tmp_path / "birds.params").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_a_run_means_its_files(here: Path, name: str) -> None:
    (here / "birds").mkdir()  # a folder of photographs, perhaps
    assert prefix_of(f"a.b/{name}") == "a.b/birds"
    assert find_network(name, "MODEL") == "birds.params"
    assert find_network(f"{here}/{name}", "MODEL") == f"{here}/birds.params"
    assert find_run(name) == "birds.run"


def test_a_file_or_folder_of_another_name_is_taken_as_it_is(here: Path) -> None:
    (here / "epoch-7").touch()
    (here / "birds.run.1").mkdir()
    assert find_network("epoch-7", "MODEL") == "epoch-7"
    assert find_run("birds.run.1") == "birds.run.1"


@pytest.mark.parametrize(
    "name, message",
    [
        ("bird", "no such file, and no bird.params; name a trained network by its PREFIX, "),
        ("bird.run", "no such file, and no bird.params; "),
        ("bird.params", "no such file; name a trained network by its PREFIX, PREFIX.params or "),
    ],
)
def test_what_was_looked_for_is_named(here: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_network(name, "--init-from")
    assert str(caught.value).startswith(f"--init-from {name}: {message}")
    with pytest.raises(UsageError, match=rf"^{name}: no such folder bird\.run; name a run by its"):
        find_run(name)


def test_a_folder_without_its_network_is_no_network(here: Path) -> None:
    (here / "birds.params").unlink()
    with pytest.raises(UsageError, match=r"^MODEL birds.run: no such file, and no birds\.params"):
        find_network("birds.run", "MODEL")
