"""The names that the package promises, and its commands."""

from __future__ import annotations

import re

import embedding_learning
from embedding_learning.__main__ import VERBS
from tests.helpers.paths import ROOT

NAMES = {
    *("MarginNet", "Sampling", "DistanceWeightedSampling", "RandomSampling", "SemiHardSampling"),
    *(
        "HardSampling",
        "TripletLossBase",
        "MarginLoss",
        "ContrastiveLoss",
        "TripletLoss",
        "EuclideanTripletLoss",
    ),
    *("ImageSet", "Split", "BalancedBatches", "load_model", "EmbeddingModel", "embed", "search"),
    *("UsageError", "DataError", "TrainingError"),
}


def test_the_promised_names_are_there() -> None:
    assert set(embedding_learning.__all__) >= NAMES
    for name in embedding_learning.__all__:
        assert getattr(embedding_learning, name).__name__ == name


def test_the_promised_verbs_are_there() -> None:
    assert VERBS.keys() >= {
        *("train", "check", "evaluate", "embed", "search", "plot", "report", "convert", "export"),
        *("compare", "launch", "compare-original"),
    }


def test_the_version_is_one() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.*)"$', project, re.M)[1] == embedding_learning.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(.*?)\]", changes, re.M)[1] == embedding_learning.__version__
