"""MobileNet v2 as torchvision builds it: the first block has no expansion, unlike Gluon's."""

from __future__ import annotations

from mxnet.gluon import HybridBlock
from mxnet.gluon.model_zoo import vision


def build(name: str) -> HybridBlock:
    """Returns the uninitialized classifier."""
    classifier = vision.get_model("mobilenetv2_1.0")
    # The expansion of the first block: convolution, batch norm, activation.
    for layer in ("0", "1", "2"):
        del classifier.features[3].out._children[layer]
    return classifier
