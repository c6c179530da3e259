"""The losses and samplings that flags can name. Imports no MXNet, so --help is quick."""

from __future__ import annotations

from typing import NamedTuple


class Loss(NamedTuple):
    """A class of `losses`, and its margin where --margin is not given."""

    class_name: str
    margin: float


# The first of each is the default, which is the original's.
LOSSES = {
    "margin": Loss("MarginLoss", 0.2),
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
