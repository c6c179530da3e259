"""Float16 layers on a CPU, for which MXNet has no float16 products.

As GPUs do it: float16 goes in, sums are float32, and float16 comes out, on the way forward and on
the way back. MXNet's own batch norm for CPUs takes float16 but lets its variance overflow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mxnet.gluon import nn
from mxnet.gluon.nn.basic_layers import _BatchNorm
from mxnet.gluon.nn.conv_layers import _Conv


def let_cpus_compute_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in (_Conv, nn.Dense, _BatchNorm):
        monkeypatch.setattr(layer, "hybrid_forward", _with_float32_sums(layer.hybrid_forward))
        monkeypatch.setattr(layer, "cast", _remembering(layer.cast))


def _remembering(cast: Any) -> Any:
    """Batch norm's parameters stay float32 and do not tell."""

    def remembering(self: Any, dtype: str) -> None:
        cast(self, dtype)
        self.is_float16 = np.dtype(dtype) == np.float16

    return remembering


def _with_float32_sums(forward: Any) -> Any:
    def hybrid_forward(self: Any, F: Any, x: Any, *weights: Any, **named: Any) -> Any:
        if not getattr(self, "is_float16", False):
            return forward(self, F, x, *weights, **named)
        x = F.cast(x, "float32")
        if not isinstance(self, _BatchNorm):  # whose weights are float32
            weights = tuple(F.cast(weight, "float32") for weight in weights)
            named = {n: None if w is None else F.cast(w, "float32") for n, w in named.items()}
        return F.cast(forward(self, F, x, *weights, **named), "float16")

    return hybrid_forward
