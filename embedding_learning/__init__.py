"""Deep metric learning on Apache MXNet Gluon."""

from __future__ import annotations

import os
import sys

from embedding_learning.runtime import startup

if os.path.basename("".join(sys.argv[:1])) in ("-m", startup.CONSOLE_SCRIPT):
    # Python is about to run a module of this package as a program, and the imports are slow.
    startup.prepare_process("embedding_learning")

import importlib
from typing import Any

from embedding_learning.runtime import environment, mxnet_compat

mxnet_compat.install()
# OpenCV reads the variables once, when it is loaded, and MXNet loads it too.
environment.set_defaults()

__version__ = "0.2.0"

# Each public name and the module that defines it. A module is imported when a name of it is first
# used: MXNet takes seconds to import, and --help needs none of it.
_MODULE_OF = {
    # Network
    "MarginNet": "model.net",
    # Sampling
    "Sampling": "model.sampling",
    "DistanceWeightedSampling": "model.sampling",
    "RandomSampling": "model.sampling",
    "SemiHardSampling": "model.sampling",
    "HardSampling": "model.sampling",
    # Losses
    "TripletLossBase": "model.losses",
    "MarginLoss": "model.losses",
    "ContrastiveLoss": "model.losses",
    "TripletLoss": "model.losses",
    "EuclideanTripletLoss": "model.losses",
    "ProxyNCALoss": "model.label_losses.proxy_nca",
    "NormalizedSoftmaxLoss": "model.label_losses.normalized_softmax",
    "ProxyAnchorLoss": "model.label_losses.proxy_anchor",
    "MultiSimilarityLoss": "model.label_losses.multi_similarity",
    # Evaluation
    "evaluate": "evaluation.metrics",
    "recall_at_k": "evaluation.metrics",
    "map_at_r": "evaluation.metrics",
    "r_precision": "evaluation.metrics",
    "find_nearest": "evaluation.neighbors",
    "number_groups": "evaluation.groups",
    # Data
    "load_dataset": "data.datasets",
    "ImageSet": "data.image_set",
    "Split": "data.image_set",
    "BalancedBatches": "data.batches",
    # Training
    "TrainConfig": "config",
    "make_config": "training.settings",
    "train": "training.run",
    # Use of a trained network
    "load_model": "inference.embedding_model",
    "EmbeddingModel": "inference.embedding_model",
    "embed": "inference.embed",
    "search": "inference.search",
    # Errors
    "UsageError": "errors",
    "DataError": "errors",
    "TrainingError": "errors",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
