"""Sees what a reader does to the machine: files written elsewhere, programs started."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NOT_FOLLOWING = os.O_NOFOLLOW | os.O_EXCL
_CHANGES = {
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"),
    *("os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr"),
}
_PROGRAMS = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("socket.connect", "pickle.find_class"),
}


class Watch:
    """While it is entered, forbids Python code to write outside of a folder or start a program.

    What was forbidden is added to ``faults``, for the reader may go on as if the disk had refused.
    """

    def __init__(self, folder: Path, programs_allowed: bool) -> None:
        self.faults: list[str] = []
        self._home = os.path.realpath(folder)
        self._programs_allowed = programs_allowed
        self._entered = False
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        self._entered = True

    def __exit__(self, *_: object) -> None:
        self._entered = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._entered:
            return
        paths: list[str] = []
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes, os.PathLike)) and flags & _WRITING:
                paths = [_target(path, followed=not flags & _NOT_FOLLOWING)]
        elif event in _CHANGES:
            names = (some for some in arguments if isinstance(some, (str, bytes, os.PathLike)))
            paths = [_target(name, followed=False) for name in names]
        elif event in _PROGRAMS and not self._programs_allowed:
            self._forbid(f"{event} {arguments}")
        for path in paths:
            if os.path.commonpath([path, self._home]) != self._home and path != os.devnull:
                self._forbid(f"{event} {path}")

    def _forbid(self, what: str) -> None:
        self.faults.append(f"was about to: {what}")
        raise PermissionError(what)


def _target(path: str | bytes | os.PathLike[str], followed: bool) -> str:
    """The file that is written, links followed; if need be, all but the last."""
    name = os.fsdecode(path)
    if followed:
        return os.path.realpath(name)
    folder, last = os.path.split(os.path.abspath(name))
    return os.path.join(os.path.realpath(folder), last)


def take_stock(root: Path) -> list[tuple[str, bytes]]:
    """What stands around the sample, for what libraries write past Python."""
    stock = []
    for folder in (root, root / "samples", root / "outside"):
        for name in sorted(os.listdir(folder)):
            content = (folder / name).read_bytes() if name == "precious" else b""
            stock.append((f"{folder}/{name}", content))
    return stock
