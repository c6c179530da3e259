"""Each Python from 3.9 on gets one release of each package, named exactly."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.helpers.paths import ROOT

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
