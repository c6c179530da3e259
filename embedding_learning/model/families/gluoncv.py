"""The classifiers of gluoncv's model zoo."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from mxnet.gluon import HybridBlock, nn

from embedding_learning.errors import UsageError


def build(name: str) -> HybridBlock:
    """Returns an uninitialized classifier.

    Raises UsageError if gluoncv does not work in this environment.
    """
    # Imported only here, since it takes seconds.
    try:
        from gluoncv import model_zoo
        from gluoncv.nn.dropblock import set_drop_prob
    except RuntimeError as error:
        # It refuses PyTorch 2 if it was imported before this program, see runtime/mxnet_compat.py.
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--model: {name} comes from gluoncv, which refuses this environment ({reason}); "
            "install this program into an environment of its own"
        ) from error
    # NASNet's second output is for training classifiers.
    settings = {"use_aux": False} if name.startswith("nasnet") else {}
    classifier = model_zoo.get_model(name, pretrained=False, **settings)
    # In pruned ResNets, even the number of dimensions of batch norm's parameters is not set.
    for parameter in classifier._collect_params_with_prefix().values():
        if parameter.shape is None:
            parameter.shape = (0,)
    # DropBlock checks whether it trains only when the graph is built, so it could stay active in
    # evaluation.
    classifier.apply(partial(set_drop_prob, 0.0))
    return classifier


def take_features(classifier: HybridBlock, name: str) -> HybridBlock:
    """Returns the classifier without its last layer. The classifier may lose it too."""
    if hasattr(classifier, "features"):
        layers = list(classifier.features._children.values())
        if name != "darknet53":
            return classifier.features
        # Its pooling is not a layer.
        layers.append(nn.GlobalAvgPool2D())
    elif re.match(r"resne(t|st)\d", name):
        # These ResNets hold their layers in order.
        *layers, _ = classifier._children.values()
    else:
        _replace(classifier, _find_last_layer(classifier), _Identity())
        return classifier
    features = nn.HybridSequential(prefix="")
    features.add(*layers)
    return features


def _find_last_layer(classifier: HybridBlock) -> HybridBlock:
    """Returns the layer whose outputs are the classes."""
    for name in ("output", "fc", "classifier"):
        if hasattr(classifier, name):
            return getattr(classifier, name)
    return classifier.out[-1]


class _Identity(HybridBlock):
    """Takes the place of a removed layer."""

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return F.identity(x)


def _replace(block: HybridBlock, layer: HybridBlock, replacement: HybridBlock) -> None:
    """Replaces the layer anywhere inside of the block, as a child and as an attribute."""
    for name, child in block._children.items():
        if child is not layer:
            _replace(child, layer, replacement)
            continue
        block._children[name] = replacement
        if getattr(block, name, None) is layer:
            # Gluon does not let an attribute become a block of another type.
            object.__setattr__(block, name, replacement)
