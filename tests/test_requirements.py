"""Each Python from 3.9 on gets one release of each package, and the package asks for the same."""

from __future__ import annotations

import importlib
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import embedding_learning
from embedding_learning import __main__ as program
from embedding_learning.runtime import startup
from tests.helpers.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYTHONS = [f"3.{minor}" for minor in range(9, 17)]
FILES = sorted(ROOT.glob("requirements*.txt"))
# Packages that some Pythons do without.
NOT_BEFORE = {"setuptools": "3.12"}
NOT_FROM = {"onnxruntime": "3.15"}


def requirements(file: Path) -> list[Requirement]:
    """Returns the packages that a file names itself, without those of other files."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r "))]


def expected_on(python: str, name: str) -> bool:
    """Whether a Python gets the package."""
    minor = int(python.split(".")[1])
    first = int(NOT_BEFORE.get(name, "3.0").split(".")[1])
    end = int(NOT_FROM.get(name, "3.99").split(".")[1])
    return first <= minor < end


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_python_gets_each_package_once(file: Path, python: str) -> None:
    listed = requirements(file)
    environment = {"python_version": python}
    found = Counter(r.name for r in listed if not r.marker or r.marker.evaluate(environment))
    assert found == {r.name: 1 for r in listed if expected_on(python, r.name)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_release_is_exact(file: Path) -> None:
    for requirement in requirements(file):
        (version,) = requirement.specifier
        assert version.operator == "==" and "*" not in version.version, requirement


def test_the_checks_before_a_commit_have_the_same_releases() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    revisions = dict(re.findall(r"repo: https://\S+/([\w-]+)\n    rev: v(\S+)", text))
    for requirement in requirements(ROOT / "requirements-dev.txt"):
        repository = {"ruff": "ruff-pre-commit"}.get(requirement.name, requirement.name)
        if repository in revisions:
            assert str(requirement.specifier) == f"=={revisions.pop(repository)}"
    assert [*revisions] == ["pre-commit-hooks"]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# The lists of pyproject.toml, and the files with the same packages in the releases that were tried.
# pyproject.toml leaves MXNet out where pip must not look at what it asks for: its build for GPUs,
# and both builds from Python 3.13 on.
SAME = {
    "dependencies": (PROJECT["dependencies"], ["requirements-common.txt", "requirements.txt"]),
    "gpu": (EXTRAS["gpu"], ["requirements-gpu.txt"]),
    "onnx": (EXTRAS["onnx"], ["requirements-onnx.txt"]),
    "docs": (EXTRAS["docs"], ["requirements-docs.txt"]),
    "dev": (EXTRAS["dev"] + EXTRAS["tensorboard"], ["requirements-dev.txt"]),
}


def on(python: str, listed: list[Requirement]) -> dict[str, Requirement]:
    """Returns the requirements of a Python by name."""
    environment = {"python_version": python}
    return {r.name: r for r in listed if not r.marker or r.marker.evaluate(environment)}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", SAME)
def test_the_package_asks_for_the_same_as_the_files(name: str, python: str) -> None:
    """Each release of the files fits."""
    texts, files = SAME[name]
    asked = on(python, [Requirement(text) for text in texts if "[" not in text])
    pinned = on(python, [r for file in files for r in requirements(ROOT / file)])
    left_out = {"mxnet-cu112"}
    if int(python.split(".")[1]) >= 13:
        left_out.add("mxnet")
    assert asked.keys() == pinned.keys() - left_out
    for package, requirement in asked.items():
        (version,) = pinned[package].specifier
        assert requirement.specifier.contains(version.version), requirement


@pytest.mark.parametrize("name", SAME)
def test_the_package_asks_for_no_older_release_than_was_tried(name: str) -> None:
    texts, files = SAME[name]
    tried = [
        (r.name, s.version) for f in files for r in requirements(ROOT / f) for s in r.specifier
    ]
    for requirement in [Requirement(text) for text in texts if "[" not in text]:
        (lowest,) = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
        assert (requirement.name, lowest) in tried, requirement


def test_the_extras_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`pip install '\.\[(\w+)\]'`", page)) == {*EXTRAS}
    assert EXTRAS["dev"][0] == "embedding-learning[onnx,tensorboard]"


def test_versions_and_pythons_are_said_once() -> None:
    assert PROJECT["version"] == embedding_learning.__version__
    listed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert PROJECT["requires-python"] == f">={listed[0]}"
    assert f"Tried up to {listed[-1]};" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_console_script_is_the_program() -> None:
    (name, target), *others = PROJECT["scripts"].items()
    module, _, function = target.partition(":")
    assert not others and name == startup.CONSOLE_SCRIPT
    assert getattr(importlib.import_module(module), function) is program.run


@pytest.mark.parametrize("file", ["Dockerfile", "Dockerfile.gpu"])
def test_a_container_has_what_the_page_on_installing_names(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    (libraries,) = re.findall(r"^apt-get install (lib.*)$", page, re.M)
    assert f"--no-install-recommends {libraries} " in text
    for requirement_file in re.findall(r"-r (\S+)", text):
        assert (ROOT / requirement_file).exists()
    assert f'ENTRYPOINT ["{startup.CONSOLE_SCRIPT}"]' in text
