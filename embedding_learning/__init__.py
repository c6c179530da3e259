"""Deep metric learning on Apache MXNet Gluon."""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"]:
    # Python is about to run a module of this package as a program, and the imports take a while.
    from embedding_learning.runtime import startup

    startup.prepare_process("embedding_learning")

import importlib
import os
from typing import Any

from embedding_learning.runtime import mxnet_compat

mxnet_compat.install()

# OpenCV reads this once, when it is loaded, which MXNet does too. By its own limit, 2**30 pixels, a
# file of some KB could take 3 GB in each thread that decodes.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))

__version__ = "0.2.0"

# Imported when first used: MXNet takes seconds to import, and --help needs none of it.
_HOME_OF = {
    "ContrastiveLoss": "model.losses",
    "DistanceWeightedSampling": "model.sampling",
    "EuclideanTripletLoss": "model.losses",
    "HardSampling": "model.sampling",
    "MarginLoss": "model.losses",
    "MarginNet": "model.net",
    "RandomSampling": "model.sampling",
    "SemiHardSampling": "model.sampling",
    "TripletLoss": "model.losses",
    "embed": "cli.embed",
    "load_model": "inference.embedding_model",
    "recall_at_k": "evaluation.metrics",
    "search": "cli.search",
}
__all__ = [
    "ContrastiveLoss",
    "DistanceWeightedSampling",
    "EuclideanTripletLoss",
    "HardSampling",
    "MarginLoss",
    "MarginNet",
    "RandomSampling",
    "SemiHardSampling",
    "TripletLoss",
    "embed",
    "load_model",
    "recall_at_k",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
