"""The losses and samplings that flags can name. Imports no MXNet, so --help is quick."""

from __future__ import annotations

from typing import NamedTuple


class Loss(NamedTuple):
    """A class of `losses`: its margin where --margin is not given, and whether it has a beta."""

    class_name: str
    margin: float
    has_beta: bool = False


# The first of each is the default, which is the original's.
LOSSES = {
    "margin": Loss("MarginLoss", 0.2, has_beta=True),
    "contrastive": Loss("ContrastiveLoss", 1.0),
    "triplet": Loss("TripletLoss", 0.2),
    "triplet-euclidean": Loss("EuclideanTripletLoss", 0.2),
}
# Classes of `sampling`.
SAMPLINGS = {
    "distance-weighted": "DistanceWeightedSampling",
    "random": "RandomSampling",
    "semi-hard": "SemiHardSampling",
    "hard": "HardSampling",
}
