"""The log lines of the original example, which a run prints too."""

from __future__ import annotations

import logging

# Parsers of the original's output read the lines below: their text must not change.


def log_learning_rates(epoch: int, learning_rates: list[float], parameter: str = "beta") -> None:
    """Logs the rates of an epoch: the network's and, if the loss learns a parameter, that one's."""
    for name, rate in zip(("", f"{parameter} "), learning_rates):
        logging.info("Epoch %d %slearning rate=%f", epoch, name, rate)


def log_interval_loss(epoch: int, batches: int, loss: float) -> None:
    """Logs the sum of the losses since the last such line."""
    logging.info("[Epoch %d, Iter %d] training loss=%f", epoch, batches, loss)


def log_epoch_loss(epoch: int, loss: float, seconds: float) -> None:
    """Logs the sum of the losses over the epoch, and its time."""
    logging.info("[Epoch %d] training loss=%f", epoch, loss)
    logging.info("[Epoch %d] time cost: %f", epoch, seconds)


def log_metrics(epoch: int | None, metrics: dict[str, float]) -> None:
    """Logs metrics, named as in `evaluate`; `epoch` is None before training."""
    when = "Before training" if epoch is None else f"Epoch {epoch}"
    for name, value in metrics.items():
        # The original writes Recall@1.
        logging.info("[%s] validation: %s=%f", when, name.replace("recall", "Recall"), value)


def log_saving(prefix: str) -> None:
    """Logs that a better model is written."""
    logging.info("Saving %s.", prefix)


def print_best(
    title: str, best: float, before: float | None = None, is_trained: bool = True
) -> None:
    """Prints the data set, the gain if the network was evaluated before, and the closing line.

    `best` and `before` are Recall@1 after and before training; without training there is no gain.
    """
    print(f"{title}.")
    if before is not None:
        gain = f", best after: {best:.4f}" if is_trained else ""
        print(f"Recall@1 before training: {before:.4f}{gain}.")
    print(f"Best validation Recall@1: {best if is_trained or before is None else before:.2f}.")
