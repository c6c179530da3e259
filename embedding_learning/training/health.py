"""Notices when training goes wrong, and says what usually causes it."""

from __future__ import annotations

import logging

import numpy as np

from embedding_learning.errors import TrainingError
from embedding_learning.evaluation import pair_distances

# In a row; fewer happen by chance late in a successful training.
_BATCHES_WITHOUT_PAIRS = 20
_SKIPPED_IN_A_ROW = 20
# A distance: the default cutoff of distance weighted sampling, which treats nearer pairs alike.
_COLLAPSED = 0.5


def advise_lower_rate(learned_name: str | None) -> str:
    """Returns the end of a message about values that are not finite.

    `learned_name`: what the loss learns, beta or proxies, which has a learning rate of its own.
    """
    rates = f"--lr or --lr-{learned_name}" if learned_name else "--lr"
    return f"most often {rates} is too high: try a tenth, from the last checkpoint with --resume"


class HealthMonitor:
    """Examines what training computes, and warns once of each thing that is wrong.

    Parameters
    ----------
    stop_on_nonfinite : bool
        Whether a batch that is not finite ends the run; otherwise it was skipped.
    learned_name : str, optional
        What the loss learns: beta or proxies.
    """

    def __init__(self, stop_on_nonfinite: bool, learned_name: str | None = None) -> None:
        self._stop_on_nonfinite = stop_on_nonfinite
        self._learned_name = learned_name
        self._batches_without_pairs = 0
        self._skipped_in_a_row = 0
        self._warned: set[str] = set()

    def check_batch(self, epoch: int, batch: int, is_finite: bool, loss: float) -> None:
        """Checks the loss of a batch, summed over the devices. `batch` counts from 1 in its epoch.

        Raises TrainingError if the batch is not finite and that ends the run.
        """
        if not is_finite:
            self._handle_nonfinite(epoch, batch)
            return
        self._skipped_in_a_row = 0
        # A loss is exactly 0 where no pair violates the margin, and only there.
        self._batches_without_pairs = 0 if loss else self._batches_without_pairs + 1
        if self._batches_without_pairs >= _BATCHES_WITHOUT_PAIRS:
            self._warn(
                "no pairs",
                f"No pair has had a loss for {_BATCHES_WITHOUT_PAIRS} batches: nothing is learned "
                "from them. Either all is learned (a larger --margin asks for more), or --margin, "
                "and --beta where the loss has one, let every pair pass.",
            )

    def _handle_nonfinite(self, epoch: int, batch: int) -> None:
        fault = f"epoch {epoch}, batch {batch}: the loss or a gradient is not finite"
        if self._stop_on_nonfinite:
            raise TrainingError(f"{fault}; {advise_lower_rate(self._learned_name)}")
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row == _SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{fault}, as in the {_SKIPPED_IN_A_ROW - 1} batches before, which were skipped; "
                "try a lower --lr, from the last checkpoint with --resume"
            )
        logging.warning("%s; it is skipped.", fault.capitalize())

    def check_embeddings(self, embeddings: np.ndarray) -> None:
        """Checks the embeddings (n, d) of one device's batch."""
        farthest = pair_distances.pairwise_distances(embeddings).max()
        if farthest < _COLLAPSED:
            self._warn(
                "collapse",
                f"The embedding has collapsed: no two images of a batch are farther apart than "
                f"{farthest:.2g}, where random points are 1.4 apart. Most often "
                "--lr is too high; pretrained weights help too.",
            )

    def check_beta(self, beta: np.ndarray | float) -> None:
        """Checks all values of beta, or the constant."""
        values = np.atleast_1d(beta)
        outside = np.sum((values <= 0) | (values >= pair_distances.MAX_DISTANCE))
        if outside:
            self._warn(
                "beta",
                f"Beta has left (0, {pair_distances.MAX_DISTANCE:g}), the range of distances, for "
                f"{outside} of {len(values)} values: they separate no pairs any "
                "more. Most often --lr-beta is too high, or --nu or --beta unfit.",
            )

    def _warn(self, subject: str, text: str) -> None:
        """Logs a warning, once for each subject."""
        if subject not in self._warned:
            self._warned.add(subject)
            logging.warning(text)
