"""Processes that are forked from one that has imported MXNet already.

Importing MXNet takes longer than what most processes of a test compute. Tests of what happens while
a program starts use `subprocess`.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["embedding_learning.training.run"])


def start(
    module: str, function: str, flags: Sequence[str], folder: Path, variables: dict[str, str]
) -> BaseProcess:
    """Calls a function in a process of its own; its result is the exit status.

    The process runs in the folder, with these environment variables and no others. What it prints
    is in the files `out` and `err` of the folder.
    """
    process = _CONTEXT.Process(
        target=_call, args=(module, function, list(flags), str(folder), variables)
    )
    process.start()
    return process


def _call(
    module: str, function: str, flags: list[str], folder: str, variables: dict[str, str]
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for name, descriptor in (("out", 1), ("err", 2)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    sys.argv = ["train.py", *flags]
    sys.exit(getattr(importlib.import_module(module), function)())
