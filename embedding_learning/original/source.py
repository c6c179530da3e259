"""Loads the original's three files, with some numbers in them replaced.

The number of training classes, the batches per epoch and the image sizes are no flags of the
original: they are constants in its files. When these are compiled here, each such constant is
replaced by the value of the run. The files on disk stay unchanged.
"""

from __future__ import annotations

import ast
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from embedding_learning.errors import UsageError

FILES = ("train.py", "model.py", "data.py")
_EXAMPLE_FOLDER = "example/gluon/embedding_learning"
_WAY_OUT = (
    f"name the folder {_EXAMPLE_FOLDER} of a checkout: "
    "git clone --depth 1 --branch 1.9.1 https://github.com/apache/mxnet"
)


class Numbers(NamedTuple):
    """The values that replace constants in the original's files."""

    classes: int
    batches: int
    image_size: int
    crop_size: int


# The constants to replace, by file, and the field of Numbers that replaces each.
_CONSTANTS: dict[str, dict[int, str]] = {
    "model.py": {},
    "data.py": {100: "classes", 256: "image_size", 224: "crop_size"},
    "train.py": {100: "classes", 200: "batches", 224: "crop_size"},
}


def check_folder(folder: Path) -> None:
    """Raises UsageError unless the folder has the files of the original example."""
    for name in FILES:
        try:
            tree = _parse(folder / name)
        except FileNotFoundError:
            inner = folder / _EXAMPLE_FOLDER
            hint = f"did you mean {inner}?" if inner.is_dir() else _WAY_OUT
            raise UsageError(
                f"{folder}: has no {name}, as the original example does; {hint}"
            ) from None
        except (OSError, SyntaxError, ValueError) as error:
            raise UsageError(f"{folder / name}: cannot be read ({error}); {_WAY_OUT}") from error
        integers = {_get_integer(node) for node in ast.walk(tree)}
        missing = _CONSTANTS[name].keys() - integers
        if missing:
            raise UsageError(
                f"{folder / name}: does not contain the number {min(missing)}, so it is not "
                f"the file of the example; {_WAY_OUT}"
            )


def load(
    folder: Path,
    flags: Iterable[str],
    numbers: Numbers,
    iterators: Callable[..., Any] | None = None,
) -> ModuleType:
    """Imports the original's train.py. Its network exists then, and its `train` can be called.

    It never downloads weights: `--use-pretrained` among the flags has only its other effects.
    `iterators` replaces the function `cub200_iterator` of its data.py.
    """
    from mxnet.gluon.model_zoo import vision

    own = vision.get_model
    vision.get_model = lambda name, **settings: own(name, **{**settings, "pretrained": False})
    _define_bottleneck()
    for name in ("data", "model"):
        _import(folder / f"{name}.py", name, numbers)
    if iterators:
        vars(sys.modules["data"])["cub200_iterator"] = iterators
    sys.argv = ["train.py", *flags]
    return _import(folder / "train.py", "original_train", numbers)


def _import(path: Path, name: str, numbers: Numbers) -> ModuleType:
    tree = _ReplaceNumbers(path.name, numbers).visit(_parse(path))
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    with warnings.catch_warnings():
        # It compares texts by `is`. Python warns of that since 3.8.
        warnings.simplefilter("ignore", SyntaxWarning)
        code = compile(tree, str(path), "exec")
    exec(code, vars(module))
    return module


class _ReplaceNumbers(ast.NodeTransformer):
    """Replaces the constants of a file by the numbers of the run."""

    def __init__(self, file: str, numbers: Numbers) -> None:
        self._values: dict[int | None, int] = {
            old: getattr(numbers, new) for old, new in _CONSTANTS[file].items()
        }

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        number = _get_integer(node)
        if number not in self._values:
            return node
        return ast.copy_location(ast.Constant(self._values[number]), node)


def _get_integer(node: ast.AST) -> int | None:
    """Returns the value of a node that is an integer constant; else None."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if type(value) is int else None


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _define_bottleneck() -> None:
    """Defines a module `bottleneck` if it is not installed.

    The original uses one function of it, which numpy has too, under the same name.
    """
    try:
        importlib.import_module("bottleneck")
    except ImportError:
        import numpy as np

        stand_in = ModuleType("bottleneck")
        vars(stand_in)["argpartition"] = np.argpartition
        sys.modules["bottleneck"] = stand_in
