"""The losses and samplings that the flags can name. Imports no MXNet, so --help is quick.

A new method is a class in `losses` or `sampling` and one row here. Everything that another module
needs to know about a method is in its row; no other module compares the names.
"""

from __future__ import annotations

from typing import NamedTuple


class LossRow(NamedTuple):
    """A row of `LOSSES`: all that other modules need to know about a loss.

    Attributes
    ----------
    class_name : str
        Its class in `module`.
    margin : float
        The default of --margin.
    takes : tuple of str
        The settings that are parameters of the class, by their keys in `config.FLAGS`.
    module : str
        A module of `model`.
    samples : bool
        Whether the loss takes the triplets of a sampling: anchors, positives and negatives.
        Otherwise it takes the embeddings of a batch and their classes.
    parameter : str, optional
        The array that the loss learns and takes as its next argument: "beta", followed by each
        anchor's rows of it, as `MarginLoss` has it, or "proxies", one row for each class.
        ``--lr-beta`` and ``--lr-proxies`` are the learning rates.
    scale : float, optional
        The default of --scale.
    """

    class_name: str
    margin: float = 0.0
    takes: tuple[str, ...] = ("margin",)
    module: str = "losses"
    samples: bool = True
    parameter: str | None = None
    scale: float | None = None

    @property
    def has_beta(self) -> bool:
        """Whether the loss takes beta."""
        return self.parameter == "beta"

    @property
    def has_proxies(self) -> bool:
        """Whether the loss learns a proxy of each class."""
        return self.parameter == "proxies"


class SamplingRow(NamedTuple):
    """A row of `SAMPLINGS`: all that other modules need to know about a sampling.

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
    "margin": LossRow("MarginLoss", margin=0.2, takes=("margin", "nu"), parameter="beta"),
    "contrastive": LossRow("ContrastiveLoss", margin=1.0),
    "triplet": LossRow("TripletLoss", margin=0.2),
    "triplet-euclidean": LossRow("EuclideanTripletLoss", margin=0.2),
    "proxy-nca": LossRow(
        "ProxyNCALoss",
        module="label_losses.proxy_nca",
        takes=("scale",),
        samples=False,
        parameter="proxies",
        scale=1.0,
    ),
    "normalized-softmax": LossRow(
        "NormalizedSoftmaxLoss",
        module="label_losses.normalized_softmax",
        takes=("margin", "scale"),
        samples=False,
        parameter="proxies",
        scale=20.0,
    ),
    "arcface": LossRow(
        "NormalizedSoftmaxLoss",
        margin=0.5,
        module="label_losses.normalized_softmax",
        takes=("margin", "scale"),
        samples=False,
        parameter="proxies",
        scale=64.0,
    ),
    "proxy-anchor": LossRow(
        "ProxyAnchorLoss",
        margin=0.1,
        module="label_losses.proxy_anchor",
        takes=("margin", "scale"),
        samples=False,
        parameter="proxies",
        scale=32.0,
    ),
    "multi-similarity": LossRow(
        "MultiSimilarityLoss",
        margin=0.1,
        module="label_losses.multi_similarity",
        takes=("margin", "scale"),
        samples=False,
        scale=50.0,
    ),
}
SAMPLINGS = {
    "distance-weighted": SamplingRow(
        "DistanceWeightedSampling", takes=("cutoff", "nonzero_loss_cutoff", "normalize_weights")
    ),
    "random": SamplingRow("RandomSampling"),
    "semi-hard": SamplingRow("SemiHardSampling"),
    "hard": SamplingRow("HardSampling"),
}
