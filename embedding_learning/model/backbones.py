"""Backbones by name: classifiers without their last layer, with or without weights."""

from __future__ import annotations

import importlib
import logging
import os
from typing import NamedTuple

import mxnet as mx
from mxnet.gluon import HybridBlock, nn

from embedding_learning.config import POOLS
from embedding_learning.errors import UsageError
from embedding_learning.model.weights import catalog, model_zoo
from embedding_learning.model.weights.catalog import ARCHITECTURES
from embedding_learning.model.weights.params_file import (
    read_description,
    read_names,
    save_parameters,
)
from embedding_learning.model.weights.pretrained import load_weights
from embedding_learning.runtime.environment import is_onednn_enabled

# As in the original, pretrained convolutions learn at a hundredth of the rate.
PRETRAINED_CONVOLUTION_LR_MULT = 0.01
_FAMILIES = "embedding_learning.model.families"
# oneDNN fails where a feature map is split whose channels are not a multiple of 16.
_NOT_TRAINED_BY_ONEDNN = ("nasnet_4_1056", "nasnet_7_1920", "nasnet_6_4032")
# Layers that can follow the last feature map.
_LAYERS_AFTER_MAP = (nn.GlobalAvgPool2D, nn.AvgPool2D, nn.Flatten, nn.Dropout)


class Backbone(NamedTuple):
    """A classifier without its last layer.

    Attributes
    ----------
    features : HybridBlock
        From (n, 3, height, width) to features.
    parameters : dict of Parameter
        The parameters of the features, by their names in a file of the whole classifier.
    head : set of str
        The names of the classifier's other parameters.
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
    """Returns a classifier without its last layer.

    Parameters
    ----------
    name : str
        One of ARCHITECTURES or of TORCHVISION_NAMES, in upper or lower case.
    devices : list of Context
        The devices of pretrained weights; without weights the layers stay uninitialized.
    use_pretrained : bool
        Take the weights of the model zoo, from its cache or by download.
    pretrained_params : str, optional
        Take the weights from this file instead: Gluon's or PyTorch's.
    pool : str
        One of POOLS: the pooling of the last feature map.

    Returns
    -------
    HybridBlock
        From (n, 3, height, width) to features. With pretrained weights its convolutions have an
        `lr_mult` of 0.01.

    Raises
    ------
    UsageError
        If the name is unknown, the weights are not available, or the features are no map that can
        be pooled.
    """
    name = _resolve_name(name)
    backbone = build_uninitialized(name)
    if pretrained_params:
        _load(backbone, name, pretrained_params, "--pretrained-params", devices)
    elif use_pretrained:
        _load(backbone, name, model_zoo.fetch_weights(name), "--use-pretrained", devices)
    if use_pretrained or pretrained_params:
        slow_down_convolutions(backbone.features)
    return backbone.features if pool == POOLS[0] else _change_pooling(backbone.features, name, pool)


def convert(name: str, path: str, output: str) -> None:
    """Converts weights to a Gluon parameter file of the classifier without its last layer.

    Raises UsageError if the name is unknown, the file cannot be read or is of another network, or
    if the output cannot be written or is a file that must not be lost.
    """
    name = _resolve_name(name)
    backbone = build_uninitialized(name)
    _check_output(output, backbone)
    _load(backbone, name, path, "IN", [mx.cpu()])
    # A block whose parameters have the names that they have in the file.
    holder = mx.gluon.Block()
    holder._reg_params.update(backbone.parameters)
    try:
        save_parameters(holder, output)
    except OSError as error:
        raise UsageError(f"OUT {output}: cannot be written ({error.strerror})") from error


def _check_output(path: str, backbone: Backbone) -> None:
    """Raises UsageError if a file would be lost that `convert` has not written."""
    if not os.path.exists(path):
        return
    content = None
    try:
        if read_description(path, "OUT"):
            content = "a trained network"
        # A whole classifier, another backbone, or a network that the original has trained.
        elif not read_names(path, "OUT") <= backbone.parameters.keys():
            content = "a file of other layers than the features of this backbone"
    except UsageError:
        content = "a file of another kind"
    if content:
        raise UsageError(f"OUT {path}: is {content}, which would be lost; name another file")


def slow_down_convolutions(features: HybridBlock) -> None:
    """Makes pretrained convolutions learn at a hundredth of the rate, as the original does."""
    for parameter in features.collect_params().values():
        if "conv" in parameter.name:
            parameter.lr_mult = PRETRAINED_CONVOLUTION_LR_MULT


def check_name(name: str) -> None:
    """Raises UsageError with the most similar names if the name is unknown."""
    if catalog.resolve_name(name) is None:
        near = ", ".join(catalog.suggest_names(name))
        raise UsageError(
            f"--model {name}: unknown; the nearest names are {near}; --list-models prints all"
        )


def check_trainable(name: str, on_cpu: bool) -> None:
    """Raises UsageError if MXNet cannot train this network on that device."""
    if on_cpu and catalog.resolve_name(name) in _NOT_TRAINED_BY_ONEDNN and is_onednn_enabled():
        raise UsageError(
            f"--model {name}: the oneDNN in MXNet fails in its backward pass; set the environment "
            "variable MXNET_MKLDNN_ENABLED=0, which is slower, or use --gpus"
        )


def _resolve_name(name: str) -> str:
    """Returns the name in Gluon or gluoncv. Raises UsageError if it is unknown."""
    check_name(name)
    resolved = catalog.resolve_name(name)
    assert resolved
    return resolved


def _load(backbone: Backbone, name: str, path: str, flag: str, devices: list[mx.Context]) -> None:
    """Sets the features to the weights in a file, and ignores those of the last layer."""
    side = ARCHITECTURES[name].crop_size
    # Determines the shapes, with which those in the file are compared.
    backbone.features.infer_shape(mx.nd.zeros((1, 3, side, side)))
    load_weights(path, flag, name, backbone.parameters, backbone.head, devices)
    logging.info("The backbone starts from %s.", path)


def build_uninitialized(name: str) -> Backbone:
    """Returns a backbone without weights, by its name in Gluon or gluoncv."""
    family = importlib.import_module(f"{_FAMILIES}.{ARCHITECTURES[name].family}")
    classifier = family.build(name)
    named = classifier._collect_params_with_prefix()
    if hasattr(family, "take_features"):
        features = family.take_features(classifier, name)
    else:
        features = classifier.features
    kept = {id(parameter) for parameter in features._collect_params_with_prefix().values()}
    parameters = {key: parameter for key, parameter in named.items() if id(parameter) in kept}
    return Backbone(features, parameters, named.keys() - parameters.keys())


def names_in_classifier(name: str) -> dict[str, str]:
    """Returns the names that parameters have in a file of the classifier, by those in the features.

    `name` is Gluon's or gluoncv's. The features are those that :func:`create` returns: a parameter
    has the same name in them with every pooling.
    """
    backbone = build_uninitialized(name)
    names = {id(parameter): key for key, parameter in backbone.parameters.items()}
    own = backbone.features._collect_params_with_prefix()
    return {key: names[id(parameter)] for key, parameter in own.items()}


def _change_pooling(features: HybridBlock, name: str, pool: str) -> HybridBlock:
    """Returns the features with another pooling of the last feature map, or with none."""
    is_sequential = isinstance(features, nn.HybridSequential)
    layers = list(features._children.values()) if is_sequential else []
    dropouts = []
    while layers and isinstance(layers[-1], _LAYERS_AFTER_MAP):
        layer = layers.pop()
        dropouts += [layer] if isinstance(layer, nn.Dropout) else []
    if not layers or isinstance(layers[-1], nn.Dense):
        raise UsageError(f"--pool {pool}: {name} does not end in a feature map; leave it out")
    pools = {"avg": nn.GlobalAvgPool2D, "max": nn.GlobalMaxPool2D}
    pooled = nn.HybridSequential(prefix="")
    pooled.add(*layers, *([pools[pool](), nn.Flatten()] if pool in pools else []), *dropouts)
    return pooled
