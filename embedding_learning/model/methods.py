"""The losses and samplings that the flags can name. Imports no MXNet, so --help is quick.

A new method is a class in `losses` or `sampling` and one row here. Everything that another module
needs to know about a method is in its row; no other module compares the names.
"""

from __future__ import annotations

from typing import NamedTuple


class LossRow(NamedTuple):
    """A loss.

    Attributes
    ----------
    class_name : str
        Its class in `losses`. The class takes the margin, and nu after it if the loss has a beta.
    margin : float
        The default of --margin.
    has_beta : bool
        Whether the loss also takes beta and each anchor's rows of beta, as `MarginLoss` does.
    """

    class_name: str
    margin: float
    has_beta: bool = False


class SamplingRow(NamedTuple):
    """A sampling.

    Attributes
    ----------
    class_name : str
        Its class in `sampling`. The class takes the number of images per class.
    takes : tuple of str
        The settings that are parameters of the class, by their keys in `config.FLAGS`.
    """

    class_name: str
    takes: tuple[str, ...] = ()


# The first of each is the default, which is the original's.
LOSSES = {
    "margin": LossRow("MarginLoss", margin=0.2, has_beta=True),
    "contrastive": LossRow("ContrastiveLoss", margin=1.0),
    "triplet": LossRow("TripletLoss", margin=0.2),
    "triplet-euclidean": LossRow("EuclideanTripletLoss", margin=0.2),
}
SAMPLINGS = {
    "distance-weighted": SamplingRow(
        "DistanceWeightedSampling", takes=("cutoff", "nonzero_loss_cutoff", "normalize_weights")
    ),
    "random": SamplingRow("RandomSampling"),
    "semi-hard": SamplingRow("SemiHardSampling"),
    "hard": SamplingRow("HardSampling"),
}
