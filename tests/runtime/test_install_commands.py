"""The commands of messages: for a checkout and for an installed package, on each Python."""

from __future__ import annotations

import ast
import re
import sys

import pytest

from embedding_learning.runtime import install_commands
from embedding_learning.runtime.install_commands import format_install_command
from tests.helpers.paths import ROOT

PYTHONS = [(3, 9, 18), (3, 12, 1), (3, 13, 0)]


@pytest.mark.parametrize("extra", ["", "gpu", "onnx"])
@pytest.mark.parametrize("python", PYTHONS)
def test_a_checkout_has_lists_of_requirements(
    monkeypatch: pytest.MonkeyPatch, python: tuple[int, int, int], extra: str
) -> None:
    monkeypatch.setattr(sys, "version_info", python)
    command = format_install_command(extra)
    files = re.findall(r"-r (\S+)", command)
    assert all((ROOT / file).is_file() for file in files)
    wanted = f"requirements-{extra}.txt" if extra else "requirements.txt"
    if python < (3, 13) or extra == "onnx":
        assert command == f"pip install -r {wanted}"
    else:
        common = "pip install -r requirements-common.txt"
        assert command == f"{common} && pip install --no-deps -r {wanted}"


@pytest.mark.parametrize(
    ("extra", "python", "command"),
    [
        ("", (3, 9, 18), "pip install embedding-learning"),
        (
            "",
            (3, 13, 0),
            "pip install embedding-learning && pip install --no-deps mxnet==1.9.1",
        ),
        ("onnx", (3, 9, 18), 'pip install "embedding-learning[onnx]"'),
        ("onnx", (3, 13, 0), 'pip install "embedding-learning[onnx]"'),
        *(
            (
                "gpu",
                python,
                'pip install "embedding-learning[gpu]" && pip uninstall mxnet && '
                "pip install --no-deps --force-reinstall mxnet-cu112==1.9.1",
            )
            for python in PYTHONS
        ),
    ],
)
def test_an_installed_package_asks_for_what_it_declares(
    monkeypatch: pytest.MonkeyPatch, extra: str, python: tuple[int, int, int], command: str
) -> None:
    """It comes without the lists of a checkout."""
    monkeypatch.setattr(install_commands, "find_checkout", lambda: None)
    monkeypatch.setattr(sys, "version_info", python)
    assert format_install_command(extra) == command


def test_the_package_and_its_extras_are_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nname = "{install_commands._PACKAGE}"\n' in text
    assert all(f"\n{extra} = [" in text for extra in ("gpu", "onnx"))


@pytest.mark.slow
def test_no_other_module_names_a_list_of_requirements() -> None:
    """A message with one would be wrong in an installed package."""
    here = ROOT / "embedding_learning"
    for file in here.rglob("*.py"):
        if file == here / "runtime" / "install_commands.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "-r requirements" not in node.value, file
