"""The flags of loss and sampling, and the settings that go by a name."""

from __future__ import annotations

import argparse
from typing import Any

from embedding_learning.cli.parser import add_choice
from embedding_learning.config import BETA_PER
from embedding_learning.model.methods import LOSSES, SAMPLINGS

# Of the paper, and of those who read it: 128 dimensions and Adam (Musgrave et al., A Metric
# Learning Reality Check, supplement); whole images, without boxes (hudengjunai/DeepEmbeding,
# issue 1); images of 256 pixels cut to 224, and beta 1.2 with those of classes and images beginning
# at 0 (section 5, "Setting"). Batches, rates and epochs are not known, and stay the original's.
_PAPER = {
    "embed_dim": 128, "optimizer": "adam", "bbox": False, "beta": 1.2, "beta_per": "image",
}  # fmt: skip
# By name, what replaces the flags' defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # train.py and data.py of MXNet 1.9.1's example/gluon/embedding_learning are the defaults.
    "original": {},
    "paper-cub": _PAPER,
    "paper-cars": _PAPER,
    # Its table 1 shows these recalls. Half of the data set's classes have fewer than six images;
    # 2 of a class in a batch of 80 are from hudengjunai/DeepEmbeding, train_In_classEbay.sh, which
    # runs the original on this data set.
    "paper-sop": {
        **_PAPER, "batch_k": 2, "batch_size": 80,
        "metrics": "recall@1,recall@10,recall@100,recall@1000",
    },
}  # fmt: skip


def add_flags(group: argparse._ArgumentGroup) -> None:
    """With none given the original's run results."""
    add_choice(group, "--loss", tuple(LOSSES), "what is minimised")
    add_choice(group, "--sampling", tuple(SAMPLINGS), "which negatives an anchor is compared with")
    text = "a learned beta is one per class, or a common one plus one per class and per image"
    add_choice(group, "--beta-per", BETA_PER, text)
    text = f"defaults of another source, which flags replace: {', '.join(PRESETS)}"
    group.add_argument("--preset", choices=[*PRESETS], metavar="NAME", help=text)


def defaults(options: argparse.Namespace) -> dict[str, Any]:
    """What replaces the flags' defaults, from the flags as read with these."""
    return {"margin": LOSSES[options.loss].margin, **PRESETS.get(options.preset, {})}
