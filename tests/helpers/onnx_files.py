"""Runs ONNX files where there is an onnxruntime for this Python."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest


def open_session(path: object) -> Any:
    """Return a session of the ONNX file `path`; skips the test if there is no onnxruntime."""
    return import_onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])


def import_onnxruntime() -> ModuleType:
    """Return the module, or skip the test on a Python that it has no wheel for."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        # As requirements-onnx.txt says.
        if sys.version_info < (3, 15):
            raise
        pytest.skip("onnxruntime has no wheel for this Python")
    return onnxruntime
