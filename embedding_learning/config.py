"""Choices and defaults that several packages know."""

from __future__ import annotations

import argparse

# The first is the default.
POOLS = ("original", "avg", "max", "none")
# What a learned beta holds; the first is the default.
BETA_PER = ("class", "image")
# What a run was trained with before there was a choice.
FIRST_METHOD = {"loss": "margin", "sampling": "distance-weighted", "beta_per": BETA_PER[0]}
DATA_PATH, WORKERS = "data/CUB_200_2011", 4
# Images that a saved model embeds at once.
BATCH_SIZE = 64
KVSTORES = ("local", "device", "nccl", "dist_sync", "dist_device_sync", "dist_async")
# The first of each is the default.
SMALL_CLASSES = ("error", "drop", "repeat")
CACHES = ("pixels", "none")
ON_NONFINITE = ("stop", "skip")
SAVED_EPOCHS = ("best", "last")
DTYPES = ("float32", "float16")
LARGEST_IMAGE = 4096  # pixels; a batch of such images takes 3.5 GB already
RESIZES = ("linear", "area")
# The ranks K of the Recall@K that the original reports.
COMMON_RECALL_RANKS = (1, 2, 4, 8, 16)
# What `evaluation.metrics.parse_metrics` reads.
METRICS = "recall@K, cmc@K, precision@K and map@K for any K, map@r, r-precision, nmi, ami"
LARGEST_LAYER = 2**16  # units; such a layer on VGG's features takes 6.6 GB already
# Each thread and each context needs memory of its own.
MOST_WORKERS, MOST_CONTEXTS = 1024, 256


def resumes_network(options: argparse.Namespace) -> bool:
    """Whether --resume names a network alone, not the state of a run."""
    return bool(options.resume) and options.resume.endswith(".params")


def decay(options: argparse.Namespace, epoch: int) -> float:
    """What the schedule multiplies both learning rates by in an epoch.

    It is the factor for each of the steps up to that epoch, wherever they stand in the list and
    however often.
    """
    return float(options.factor ** sum(epoch >= step for step in options.steps))


def device_count(options: argparse.Namespace) -> int:
    """How many devices train, over all processes."""
    return (len(options.gpus) or options.cpu_contexts) * int(options.processes)
