"""Collects what C libraries print on the error output, separately for each thread.

libjpeg decodes a damaged file to the end and only prints that it is corrupt. OpenCV returns the
pixels as if nothing were wrong, and Pillow, which uses libjpeg too, ignores it. So the printed text
is the only sign of the damage. It does not name the file.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Only glibc has streams that call a function, and a variable `stderr` that can be set.
CAN_COLLECT = hasattr(ctypes.CDLL(None), "gnu_get_libc_version")

_UNBUFFERED = 2
_Write = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class _Functions(ctypes.Structure):
    """cookie_io_functions_t: the functions that read, write, seek and close a stream."""

    _fields_ = (
        ("read", ctypes.c_void_p),
        ("write", _Write),
        ("seek", ctypes.c_void_p),
        ("close", ctypes.c_void_p),
    )


class _Collector:
    """Replaces C's variable `stderr` by its own stream while any thread collects."""

    def __init__(self) -> None:
        self._collected = threading.local()
        self._lock = threading.Lock()
        self._threads = 0
        library = ctypes.CDLL(None)
        self._stderr = ctypes.c_void_p.in_dll(library, "stderr")
        library.fopencookie.restype = ctypes.c_void_p
        library.fopencookie.argtypes = (ctypes.c_void_p, ctypes.c_char_p, _Functions)
        library.setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        self._functions = _Functions(None, _Write(self._write), None, None)
        self._stream = library.fopencookie(None, b"w", self._functions)
        # Without a buffer each message arrives at once, in the thread that prints it.
        library.setvbuf(self._stream, None, _UNBUFFERED, 0)

    @contextmanager
    def collect(self) -> Iterator[list[str]]:
        """See `collect_messages`."""
        parts: list[str] = []
        self._collected.parts = parts
        with self._lock:
            if not self._threads:
                self._before, self._stderr.value = self._stderr.value, self._stream
            self._threads += 1
        try:
            yield parts
        finally:
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    self._stderr.value = self._before
            self._collected.parts = None

    def _write(self, _: Any, text: int, size: int) -> int:
        """Receives what C prints. Writes it to the error output if the thread does not collect."""
        printed = ctypes.string_at(text, size)
        parts = getattr(self._collected, "parts", None)
        if parts is None:
            os.write(2, printed)
        else:
            parts.append(printed.decode("utf-8", "replace"))
        return size


_collector = _Collector() if CAN_COLLECT else None


@contextmanager
def collect_messages() -> Iterator[list[str]]:
    """Collects in a list what C code of this thread prints on the error output within the block.

    On systems where this is not possible the list stays empty, and the text is printed.
    """
    if _collector is None:
        yield []
        return
    with _collector.collect() as parts:
        yield parts
