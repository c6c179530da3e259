"""What a run prints: the original example's log lines, and a progress bar on a terminal."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from embedding_learning.datasets import Split

T = TypeVar("T")

# tqdm's own lock is shared with other processes, which is not needed here. From Python 3.14 on it
# starts a helper process, which complains on the error output after a run that is ended at once.
tqdm.set_lock(threading.RLock())


@contextmanager
def log_to_terminal() -> Iterator[None]:
    """Log lines go to the error output, above a progress bar where one is shown."""
    logging.basicConfig(level=logging.INFO)
    with logging_redirect_tqdm():
        yield


def progress(items: Iterable[T], description: str, unit: str = "batch") -> Iterator[T]:
    """The items, with a bar if the error output is a terminal and this process is to speak."""
    hidden = not sys.stderr.isatty() or not logging.getLogger().isEnabledFor(logging.WARNING)
    yield from tqdm(items, description, leave=False, disable=hidden, unit=unit)


def log_split(split: Split) -> None:
    """What the recalls of the run are about."""
    logging.info(
        "%s: %d images of %d classes train, %d of %d test%s.",
        split.title,
        len(split.train),
        len(split.train.class_names),
        len(split.test),
        len(np.unique(split.test.labels)),
        f" against a gallery of {len(split.gallery)}" if split.gallery else "",
    )


# The lines below are read by parsers of the original's output: their text must not change.


def log_learning_rates(epoch: int, learning_rates: list[float]) -> None:
    """At the start of an epoch: the network's rate and, where beta is learned, beta's."""
    for name, rate in zip(("", "beta "), learning_rates):
        logging.info("Epoch %d %slearning rate=%f", epoch, name, rate)


def log_interval_loss(epoch: int, batches: int, loss: float) -> None:
    """`loss` is the sum since the last such line."""
    logging.info("[Epoch %d, Iter %d] training loss=%f", epoch, batches, loss)


def log_epoch_loss(epoch: int, loss: float, seconds: float) -> None:
    """`loss` is the sum over the epoch."""
    logging.info("[Epoch %d] training loss=%f", epoch, loss)
    logging.info("[Epoch %d] time cost: %f", epoch, seconds)


def log_metrics(epoch: int | None, metrics: dict[str, float]) -> None:
    """After an epoch, or before the first one (`epoch` is None); named as `evaluate` does."""
    when = "Before training" if epoch is None else f"Epoch {epoch}"
    for name, value in metrics.items():
        # The original writes Recall@1.
        logging.info("[%s] validation: %s=%f", when, name.replace("recall", "Recall"), value)


def log_saving(prefix: str) -> None:
    """When a better model is written."""
    logging.info("Saving %s.", prefix)


def print_best(title: str, recall_at_1: float, before: float | None = None) -> None:
    """The closing line; above it on what data, and the gain if the network was evaluated before."""
    print(f"{title}.")
    if before is not None:
        print(f"Recall@1 before training: {before:.4f}, best after: {recall_at_1:.4f}.")
    print(f"Best validation Recall@1: {recall_at_1:.2f}.")
