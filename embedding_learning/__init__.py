"""Deep metric learning on Apache MXNet Gluon."""

from __future__ import annotations

import importlib
from typing import Any

from embedding_learning import mxnet_runtime

mxnet_runtime.install()

# Imported when first used: MXNet takes seconds to import, and --help needs none of it.
_HOME_OF = {
    "DistanceWeightedSampling": "sampling",
    "MarginLoss": "losses",
    "MarginNet": "model",
    "recall_at_k": "evaluation",
}
__all__ = ["DistanceWeightedSampling", "MarginLoss", "MarginNet", "recall_at_k"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
