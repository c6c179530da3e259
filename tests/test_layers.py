"""The rules on imports: between the packages, and of MXNet."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_learning import config
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT

PACKAGE = "embedding_learning"
# A package may import those of the rows above its own, and itself; rows of one list know nothing of
# each other. docs/architecture.md says what each holds.
LAYERS = [
    ["errors"],
    ["config"],
    ["runtime"],
    ["distributed", "evaluation"],
    ["data", "model", "plots"],
    ["inference"],
    ["training"],
    ["experiments", "original"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# What `--help` shows, and what reads or draws without a network, starts quickly.
WITHOUT_MXNET = [
    *("", ".errors", ".config", ".evaluation", ".plots", ".data.datasets", ".model.methods"),
    *(".model.weights.catalog", ".cli.train_flags", ".cli.model_flags", ".__main__"),
]
# Modules of which each takes a good part of a second to import, or more.
TAKE_LONG = ["mxnet", "matplotlib", "sklearn", "scipy", "pandas", "jinja2", "gluoncv"]


def modules() -> Iterator[tuple[str, Path]]:
    """Each module's name below the package, and its file."""
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        if parts != ("__init__",):
            yield ".".join(part for part in parts if part != "__init__"), path


def imports(name: str, path: Path) -> Iterator[str]:
    """The modules of the package that a module imports anywhere in its code."""
    known = dict(modules())
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            home = node.module[len(PACKAGE) + 1 :]
            for alias in node.names:
                full = f"{home}.{alias.name}".strip(".")
                if full in known or home:
                    yield full if full in known else home
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{PACKAGE}."):
                    yield alias.name[len(PACKAGE) + 1 :]


def package_of(module: str) -> str:
    return module.split(".")[0]


def test_every_package_has_a_layer() -> None:
    assert {package_of(name) for name, _ in modules()} == set(RANK)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(value))
def test_a_module_imports_lower_layers_only(name: str, path: Path) -> None:
    own = package_of(name)
    others = {module for module in imports(name, path) if package_of(module) != own}
    wrong = {module for module in others if RANK[package_of(module)] >= RANK[own]}
    assert not wrong


def test_weights_know_nothing_of_the_network() -> None:
    for name, path in modules():
        if name.startswith("model.weights"):
            of_model = {module for module in imports(name, path) if package_of(module) == "model"}
            assert all(module.startswith("model.weights") for module in of_model), name


@pytest.mark.slow
def test_the_original_is_imported_by_its_own_command_only() -> None:
    users = {
        name
        for name, path in modules()
        if package_of(name) != "original"
        and any(package_of(module) == "original" for module in imports(name, path))
    }
    assert users == {"cli.compare_original"}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_MXNET)
def test_imports_no_mxnet(name: str) -> None:
    code = f"import sys; sys.modules['mxnet'] = None; import {PACKAGE}{name}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=HANG_LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["plot", "report", "evaluate", "train"])
def test_help_imports_nothing_that_draws_or_computes(verb: str) -> None:
    code = f"""
import sys
from {PACKAGE}.__main__ import main
sys.modules.update(dict.fromkeys({TAKE_LONG}))
main(["{verb}", "--help"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=HANG_LIMIT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def test_only_commands_know_argparse() -> None:
    """Below them settings are typed; a namespace would be an object of any attributes."""
    users = {
        name
        for name, path in modules()
        if re.search(r"^\s*(import|from) argparse", path.read_text(encoding="utf-8"), re.M)
    }
    assert {package_of(name) for name in users} == {"cli"}


def test_every_setting_has_a_type() -> None:
    for section in config.SECTIONS.values():
        for field in dataclasses.fields(section):
            assert "Any" not in str(field.type), field.name
