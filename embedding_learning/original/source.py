"""The original's three files, loaded as they are on disk, with this run's numbers in them.

How many classes train, how many batches make an epoch and how large an image is are not flags of
the original: they are written into its files. As these are compiled here, each such number takes
the value of the run.
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
_PLACE = "example/gluon/embedding_learning"
_WAY_OUT = (
    f"name the folder {_PLACE} of a checkout: "
    "git clone --depth 1 --branch 1.9.1 https://github.com/apache/mxnet"
)


class Numbers(NamedTuple):
    """What takes the place of the numbers that are written into the original."""

    classes: int
    batches: int
    image_size: int
    crop_size: int


# Which number of which file means what.
_WRITTEN: dict[str, dict[int, str]] = {
    "model.py": {},
    "data.py": {100: "classes", 256: "image_size", 224: "crop_size"},
    "train.py": {100: "classes", 200: "batches", 224: "crop_size"},
}


def check_folder(folder: Path) -> None:
    """Raises UsageError if the original's files are not there or not those of the example."""
    for name in FILES:
        try:
            tree = _parsed(folder / name)
        except FileNotFoundError:
            inner = folder / _PLACE
            hint = f"did you mean {inner}?" if inner.is_dir() else _WAY_OUT
            raise UsageError(
                f"{folder}: has no {name}, as the original example does; {hint}"
            ) from None
        except (OSError, SyntaxError, ValueError) as error:
            raise UsageError(f"{folder / name}: cannot be read ({error}); {_WAY_OUT}") from error
        found = {_integer(node) for node in ast.walk(tree)}
        missing = _WRITTEN[name].keys() - found
        if missing:
            raise UsageError(
                f"{folder / name}: the number {min(missing)} is not in it, so it is not the file "
                f"of the example; {_WAY_OUT}"
            )


def load(
    folder: Path,
    flags: Iterable[str],
    numbers: Numbers,
    iterators: Callable[..., Any] | None = None,
) -> ModuleType:
    """The original's train.py, imported: its network is there, and its `train` can be called.

    Its weights are never downloaded; `--use-pretrained` among the flags only sets what it sets
    beside them. `iterators` takes the place of its data.py's function of that kind.
    """
    from mxnet.gluon.model_zoo import vision

    own = vision.get_model
    vision.get_model = lambda name, **settings: own(name, **{**settings, "pretrained": False})
    _provide_bottleneck()
    for name in ("data", "model"):
        _import(folder / f"{name}.py", name, numbers)
    if iterators:
        vars(sys.modules["data"])["cub200_iterator"] = iterators
    sys.argv = ["train.py", *flags]
    return _import(folder / "train.py", "original_train", numbers)


def _import(path: Path, name: str, numbers: Numbers) -> ModuleType:
    tree = _WithNumbers(path.name, numbers).visit(_parsed(path))
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    with warnings.catch_warnings():
        # It compares texts by `is`, which Python has warned of since 3.8.
        warnings.simplefilter("ignore", SyntaxWarning)
        code = compile(tree, str(path), "exec")
    exec(code, vars(module))
    return module


class _WithNumbers(ast.NodeTransformer):
    """Puts the run's numbers in the place of those that are written in a file."""

    def __init__(self, file: str, numbers: Numbers) -> None:
        self._values: dict[int | None, int] = {
            old: getattr(numbers, new) for old, new in _WRITTEN[file].items()
        }

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        number = _integer(node)
        if number not in self._values:
            return node
        return ast.copy_location(ast.Constant(self._values[number]), node)


def _integer(node: ast.AST) -> int | None:
    """The whole number that stands there."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if type(value) is int else None


def _parsed(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _provide_bottleneck() -> None:
    """The original takes one function of it, which numpy has too, under the same name."""
    try:
        importlib.import_module("bottleneck")
    except ImportError:
        import numpy as np

        stand_in = ModuleType("bottleneck")
        vars(stand_in)["argpartition"] = np.argpartition
        sys.modules["bottleneck"] = stand_in
