"""Backbones by name: the layers of a classifier up to its features."""

from __future__ import annotations

import logging
import os
import re
from functools import partial
from typing import Any, NamedTuple

import mxnet as mx
from mxnet.gluon import HybridBlock, nn
from mxnet.gluon.model_zoo import vision

from embedding_learning.config import POOLS
from embedding_learning.errors import UsageError
from embedding_learning.model.weights import catalog, model_zoo
from embedding_learning.model.weights.catalog import ARCHITECTURES, GLUON_NAMES
from embedding_learning.model.weights.params_file import read_description, save_parameters
from embedding_learning.model.weights.pretrained import load_weights

# What the original does with pretrained weights: these layers learn at a hundredth of the rate.
PRETRAINED_CONVOLUTION_LR_MULT = 0.01
# It fails where maps of features are taken apart whose channels are no multiple of 16.
_NOT_TRAINED_BY_ONEDNN = ("nasnet_4_1056", "nasnet_7_1920", "nasnet_6_4032")
# What may come behind the last map of features.
_TAIL = (nn.GlobalAvgPool2D, nn.AvgPool2D, nn.Flatten, nn.Dropout)


class Backbone(NamedTuple):
    """A classifier without its last layer.

    Attributes
    ----------
    features : HybridBlock
        (n, 3, height, width) to features.
    parameters : dict of Parameter
        Those of the features, by their names in a file of the whole classifier.
    head : set of str
        The names of the classifier's others.
    """

    features: HybridBlock
    parameters: dict[str, mx.gluon.Parameter]
    head: set[str]


def create(
    name: str,
    devices: list[mx.Context],
    use_pretrained: bool = False,
    pretrained_params: str | None = None,
    pool: str = POOLS[0],
) -> HybridBlock:
    """The layers of a classifier up to its features.

    Parameters
    ----------
    name : str
        One of ARCHITECTURES or of TORCHVISION_NAMES, in any case.
    devices : list of Context
        Where pretrained weights are put; without them the layers are left uninitialized.
    use_pretrained : bool
        Take the weights of the model zoo, from its cache or its address.
    pretrained_params : str, optional
        Take the weights from this file instead: Gluon's, or one of PyTorch's.
    pool : str
        One of POOLS: what becomes of the last map of features.

    Returns
    -------
    HybridBlock
        (n, 3, height, width) to features. With pretrained weights its convolutions have an
        `lr_mult` of 0.01.

    Raises
    ------
    UsageError
        If the name is unknown, the weights cannot be had, or the features are no map to be pooled.
    """
    name = _own_name(name)
    backbone = build_uninitialized(name)
    if pretrained_params:
        _load(backbone, name, pretrained_params, "--pretrained-params", devices)
    elif use_pretrained:
        _load(backbone, name, model_zoo.fetch_weights(name), "--use-pretrained", devices)
    if use_pretrained or pretrained_params:
        slow_down_convolutions(backbone.features)
    return backbone.features if pool == POOLS[0] else _pooled(backbone.features, name, pool)


def convert(name: str, path: str, output: str) -> None:
    """Writes the weights in a file as Gluon's file of the classifier, less its last layer.

    Raises UsageError if the name is unknown, the file cannot be read or is of another network, or
    the output cannot be written, is a trained network or a file of another kind.
    """
    name = _own_name(name)
    _check_output(output)
    backbone = build_uninitialized(name)
    _load(backbone, name, path, "IN", [mx.cpu()])
    # A block whose parameters have these names.
    holder = mx.gluon.Block()
    holder._reg_params.update(backbone.parameters)
    try:
        save_parameters(holder, output)
    except OSError as error:
        raise UsageError(f"OUT {output}: cannot be written ({error.strerror})") from error


def _check_output(path: str) -> None:
    """Raises UsageError if a file would be lost that `convert` has not written."""
    if not os.path.exists(path):
        return
    try:
        kind = "a trained network" if read_description(path, "OUT") else None
    except UsageError:
        kind = "a file of another kind"
    if kind:
        raise UsageError(f"OUT {path}: is {kind}, which would be lost; name another file")


def slow_down_convolutions(features: HybridBlock) -> None:
    """Lets pretrained convolutions learn at a hundredth of the rate, as the original does."""
    for parameter in features.collect_params().values():
        if "conv" in parameter.name:
            parameter.lr_mult = PRETRAINED_CONVOLUTION_LR_MULT


def check_name(name: str) -> None:
    """Raises UsageError with the nearest names if there is no such backbone."""
    if catalog.resolve_name(name) is None:
        near = ", ".join(catalog.suggest_names(name))
        raise UsageError(
            f"--model {name}: unknown; the nearest names are {near}; --list-models prints all"
        )


def check_trainable(name: str, on_cpu: bool) -> None:
    """Raises UsageError if MXNet cannot train this network there."""
    if (
        on_cpu
        and catalog.resolve_name(name) in _NOT_TRAINED_BY_ONEDNN
        and os.environ.get("MXNET_MKLDNN_ENABLED") != "0"
    ):
        raise UsageError(
            f"--model {name}: the oneDNN in MXNet fails in its backward pass; set the environment "
            "variable MXNET_MKLDNN_ENABLED=0, which is slower, or use --gpus"
        )


def _own_name(name: str) -> str:
    """As Gluon or gluoncv spells it. Raises UsageError if it is unknown."""
    check_name(name)
    found = catalog.resolve_name(name)
    assert found
    return found


def _load(backbone: Backbone, name: str, path: str, flag: str, devices: list[mx.Context]) -> None:
    """Gives the features their weights; the last layer, in the file or not, gets none."""
    side = ARCHITECTURES[name].crop_size
    # Settles the shapes, against which those in the file are held.
    backbone.features.infer_shape(mx.nd.zeros((1, 3, side, side)))
    load_weights(path, flag, name, backbone.parameters, backbone.head, devices)
    logging.info("The backbone starts from %s.", path)


def build_uninitialized(name: str) -> Backbone:
    """A network, uninitialized, by Gluon's or gluoncv's name."""
    classifier = _classifier(name)
    named = classifier._collect_params_with_prefix()
    features = _features(classifier, name)
    kept = {id(parameter) for parameter in features.collect_params().values()}
    parameters = {key: parameter for key, parameter in named.items() if id(parameter) in kept}
    return Backbone(features, parameters, named.keys() - parameters.keys())


def _classifier(name: str) -> HybridBlock:
    if name in GLUON_NAMES:
        return vision.get_model(name)
    if name == "mobilenet_v2":
        classifier = vision.get_model("mobilenetv2_1.0")
        # The first block's expansion: convolution, batch norm, activation.
        for layer in ("0", "1", "2"):
            del classifier.features[3].out._children[layer]
        return classifier
    # Only here, since importing gluoncv takes seconds.
    try:
        from gluoncv import model_zoo
        from gluoncv.nn.dropblock import set_drop_prob
    except RuntimeError as error:
        # It refuses to work where a PyTorch is installed that is younger than itself.
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--model: {name} comes from gluoncv, which refuses this environment ({reason}); "
            "install the requirements into an environment of their own"
        ) from error
    # NASNet's second output is for training classifiers.
    settings = {"use_aux": False} if name.startswith("nasnet") else {}
    classifier = model_zoo.get_model(name, pretrained=False, **settings)
    # Pruned ResNets leave open even that batch norm's parameters are vectors.
    for parameter in classifier.collect_params().values():
        if parameter.shape is None:
            parameter.shape = (0,)
    # DropBlock asks whether it trains only when the graph is made: it might go on in evaluation.
    classifier.apply(partial(set_drop_prob, 0.0))
    return classifier


def _features(classifier: HybridBlock, name: str) -> HybridBlock:
    """The classifier without its last layer."""
    if hasattr(classifier, "features"):
        layers = list(classifier.features._children.values())
        if name != "darknet53":
            return classifier.features
        # Its pooling is no layer.
        layers.append(nn.GlobalAvgPool2D())
    elif re.match(r"resne(t|st)\d", name):
        # gluoncv's ResNets hold their layers in order.
        *layers, _ = classifier._children.values()
    else:
        _replace(classifier, _last(classifier), _Identity())
        return classifier
    features = nn.HybridSequential(prefix="")
    features.add(*layers)
    return features


def _last(classifier: HybridBlock) -> HybridBlock:
    """The layer that tells classes."""
    for name in ("output", "fc", "classifier"):
        if hasattr(classifier, name):
            return getattr(classifier, name)
    return classifier.out[-1]


class _Identity(HybridBlock):
    """Stands where a layer was."""

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return F.identity(x)


def _replace(block: HybridBlock, layer: HybridBlock, other: HybridBlock) -> None:
    """Wherever the layer is inside of the block, as a child and as an attribute."""
    for name, child in block._children.items():
        if child is not layer:
            _replace(child, layer, other)
            continue
        block._children[name] = other
        if getattr(block, name, None) is layer:
            # Gluon does not let an attribute become a block of another type.
            object.__setattr__(block, name, other)


def _pooled(features: HybridBlock, name: str, pool: str) -> HybridBlock:
    """With its last map of features pooled over all places, or not at all."""
    is_ordered = isinstance(features, nn.HybridSequential)
    layers = list(features._children.values()) if is_ordered else []
    dropouts = []
    while layers and isinstance(layers[-1], _TAIL):
        layer = layers.pop()
        dropouts += [layer] if isinstance(layer, nn.Dropout) else []
    if not layers or isinstance(layers[-1], nn.Dense):
        raise UsageError(f"--pool {pool}: {name} ends in no map of features; leave it out")
    pools = {"avg": nn.GlobalAvgPool2D, "max": nn.GlobalMaxPool2D}
    pooled = nn.HybridSequential(prefix="")
    pooled.add(*layers, *([pools[pool](), nn.Flatten()] if pool in pools else []), *dropouts)
    return pooled
