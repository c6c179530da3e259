"""Deep metric learning on Apache MXNet Gluon."""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"]:
    # Python is about to run a module of this package as a program, and the imports take a while.
    from embedding_learning.runtime import startup

    startup.begin("embedding_learning")

import importlib
import os
from typing import Any

from embedding_learning.runtime import mxnet_compat

mxnet_compat.install()

# OpenCV reads this once, when it is loaded, which MXNet does too. By its own limit, 2**30 pixels, a
# file of some KB could take 3 GB in each thread that decodes.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))

__version__ = "0.2.0"

# The public names and their modules. Imported when first used: MXNet takes seconds to import, and
# --help needs none of it.
_HOME_OF = {
    "BalancedBatches": "data.batches",
    "ContrastiveLoss": "model.losses",
    "DataError": "errors",
    "DistanceWeightedSampling": "model.sampling",
    "EmbeddingModel": "inference.embedding_model",
    "EuclideanTripletLoss": "model.losses",
    "HardSampling": "model.sampling",
    "ImageSet": "data.image_set",
    "MarginLoss": "model.losses",
    "MarginNet": "model.net",
    "RandomSampling": "model.sampling",
    "Sampling": "model.sampling",
    "SemiHardSampling": "model.sampling",
    "Split": "data.image_set",
    "TrainingError": "errors",
    "TripletLoss": "model.losses",
    "TripletLossBase": "model.losses",
    "UsageError": "errors",
    "embed": "cli.embed",
    "evaluate": "evaluation.metrics",
    "load_model": "inference.embedding_model",
    "map_at_r": "evaluation.metrics",
    "nearest": "evaluation.neighbors",
    "r_precision": "evaluation.metrics",
    "recall_at_k": "evaluation.metrics",
    "search": "cli.search",
}
__all__ = list(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
