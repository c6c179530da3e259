"""Backbones of two convolutions, for tests that start runs and do not test the network.

Such a run takes a quarter of the time that one with SqueezeNet takes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import embedding_learning  # noqa: F401
from embedding_learning.model.weights.catalog import ARCHITECTURES, Architecture
from tests.helpers.paths import ROOT

FAMILY = "embedding_learning.model.families.tiny"
# The second has batch norm.
ROWS = {
    "tiny": Architecture(parameters=1392, features=16, crop_size=32, family="tiny"),
    "tiny-norm": Architecture(parameters=1440, features=16, crop_size=32, family="tiny"),
}
# In a process with this variable Python imports `tiny_site/sitecustomize.py`, which registers them.
PYTHONPATH = os.pathsep.join([str(Path(__file__).with_name("tiny_site")), str(ROOT)])


def build(name: str) -> Any:
    """Returns the classifier of a row."""
    # Not at the top, since a process that is refused does not import MXNet.
    from mxnet.gluon import HybridBlock, nn

    classifier = HybridBlock()
    with classifier.name_scope():
        classifier.features = nn.HybridSequential()
        for channels in (8, 16):
            classifier.features.add(nn.Conv2D(channels, 3, strides=2))
            if name == "tiny-norm":
                classifier.features.add(nn.BatchNorm())
            classifier.features.add(nn.Activation("relu"))
        classifier.features.add(nn.Dropout(0.5), nn.GlobalAvgPool2D())
        classifier.output = nn.Dense(10)
    return classifier


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Adds the backbones to the table."""
    family: Any = ModuleType(FAMILY)
    family.build = build
    sys.modules[FAMILY] = family
    ARCHITECTURES.update(ROWS)
    try:
        yield
    finally:
        del sys.modules[FAMILY]
        for name in ROWS:
            del ARCHITECTURES[name]
