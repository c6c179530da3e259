"""The classifiers of Gluon's model zoo."""

from __future__ import annotations

from mxnet.gluon import HybridBlock
from mxnet.gluon.model_zoo import vision


def build(name: str) -> HybridBlock:
    """Returns an uninitialized classifier."""
    return vision.get_model(name)
