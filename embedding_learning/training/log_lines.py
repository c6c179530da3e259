"""What a run prints: the original example's log lines, and a progress bar on a terminal."""

from __future__ import annotations

import logging

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


def print_best(
    title: str, best: float, before: float | None = None, is_trained: bool = True
) -> None:
    """The closing line; above it on what data, and the gain if the network was evaluated before.

    `best` and `before` are Recall@1 after and before training; without training there is no gain.
    """
    print(f"{title}.")
    if before is not None:
        gain = f", best after: {best:.4f}" if is_trained else ""
        print(f"Recall@1 before training: {before:.4f}{gain}.")
    print(f"Best validation Recall@1: {best if is_trained or before is None else before:.2f}.")
