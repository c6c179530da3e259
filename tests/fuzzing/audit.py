"""Notices what a reader does to the machine: files written elsewhere, programs started."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NOT_FOLLOWING = os.O_NOFOLLOW | os.O_EXCL
_FILE_CHANGES = {
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"),
    *("os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr"),
}
_PROGRAMS = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("socket.connect", "pickle.find_class"),
}


class AuditGuard:
    """A context in which Python code can neither write outside of a folder nor start a program.

    Each refusal is added to ``faults``, since the reader may continue as if the disk had refused.
    """

    def __init__(self, folder: Path, programs_allowed: bool) -> None:
        self.faults: list[str] = []
        self._folder = os.path.realpath(folder)
        self._programs_allowed = programs_allowed
        self._is_active = False
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        self._is_active = True

    def __exit__(self, *_: object) -> None:
        self._is_active = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_active:
            return
        paths: list[str] = []
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes, os.PathLike)) and flags & _WRITING:
                paths = [_resolve(path, follow_last=not flags & _NOT_FOLLOWING)]
        elif event in _FILE_CHANGES:
            names = (value for value in arguments if isinstance(value, (str, bytes, os.PathLike)))
            paths = [_resolve(name, follow_last=False) for name in names]
        elif event in _PROGRAMS and not self._programs_allowed:
            self._refuse(f"{event} {arguments}")
        for path in paths:
            if os.path.commonpath([path, self._folder]) != self._folder and path != os.devnull:
                self._refuse(f"{event} {path}")

    def _refuse(self, action: str) -> None:
        self.faults.append(f"was about to: {action}")
        raise PermissionError(action)


def _resolve(path: str | bytes | os.PathLike[str], follow_last: bool) -> str:
    """Returns the path with links followed, that of the last part only with `follow_last`."""
    name = os.fsdecode(path)
    if follow_last:
        return os.path.realpath(name)
    folder, last = os.path.split(os.path.abspath(name))
    return os.path.join(os.path.realpath(folder), last)


def list_surroundings(root: Path) -> list[tuple[str, bytes]]:
    """Returns the files around the sample, to see what libraries write without Python."""
    files = []
    for folder in (root, root / "samples", root / "outside"):
        for name in sorted(os.listdir(folder)):
            content = (folder / name).read_bytes() if name == "precious" else b""
            files.append((f"{folder}/{name}", content))
    return files
