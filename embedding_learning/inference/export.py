"""Exports a trained network for other programs: symbol and parameters, ONNX, or PyTorch weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from embedding_learning.config import POOLS
from embedding_learning.errors import UsageError
from embedding_learning.model.backbones import names_in_classifier
from embedding_learning.model.net import ImageNormalization, MarginNet
from embedding_learning.model.weights import catalog
from embedding_learning.model.weights.pretrained import expect_pixels_around_zero
from embedding_learning.model.weights.torchvision_names import NameMap, find_name_map, map_names
from embedding_learning.runtime.atomic_files import atomic_write
from embedding_learning.runtime.install_commands import format_install_command

# What a file for PyTorch says of its network, of what `model.description` lists.
_FOR_PYTORCH = (
    *("model", "embed_dim", "image_size", "crop_size", "exif_orientation", "resize", "resize_to"),
    *("bbox", "mean", "deviation", "trained_on", "epoch", "recall_at_1"),
)


def export_symbol(net: MarginNet, prefix: str, crop_size: int, normalize_input: bool) -> None:
    """Writes PREFIX-symbol.json and PREFIX-0000.params, for MXNet without this package.

    ``mx.gluon.SymbolBlock.imports(PREFIX-symbol.json, ["data"], PREFIX-0000.params)`` loads them.
    The graph has no sampling. Its output is the embeddings (n, d) of unit length, for any n.

    Parameters
    ----------
    net : MarginNet
        A network with known shapes: its parameters were loaded, or it has embedded a batch.
    prefix : str
        Both files are written, or neither.
    crop_size : int
        Side of the images in pixels, as in training.
    normalize_input : bool
        If true, the input is RGB pixels, uint8 (n, 3, crop_size, crop_size), and the graph
        subtracts ImageNet's mean and divides by its deviation. Otherwise the input is float32 of
        the same shape, already normalized.

    Raises
    ------
    UsageError
        If the network does not take images of this size, or the files cannot be written.
    """
    symbol = _embedding_symbol(net, crop_size, normalize_input)
    auxiliary = set(symbol.list_auxiliary_states())
    arrays = {
        ("aux:" if name in auxiliary else "arg:") + name: array
        for name, array in _arrays(net, symbol).items()
    }
    with _write_atomically(f"{prefix}-symbol.json", f"{prefix}-0000.params") as (graph, parameters):
        Path(graph).write_text(symbol.tojson(), encoding="utf-8")
        mx.nd.save(parameters, arrays)
        # MXNet does not notice a full disk when it closes a file; reading the file shows it.
        mx.nd.load(parameters)


def export_onnx(net: MarginNet, path: str, crop_size: int, normalize_input: bool) -> None:
    """Writes the network as ONNX: input "data", output "embeddings" (n, d) of unit length, any n.

    The parameters are those of :func:`export_symbol`, and the file's path. Needs the package onnx.

    Raises
    ------
    UsageError
        If the network does not take images of this size or has an operator that cannot be
        translated, onnx is not installed, or the file cannot be written.
    """
    try:
        model = serialize_onnx(net, crop_size, normalize_input)
    except ImportError as error:
        raise UsageError(
            f"{path}: writing ONNX needs the package onnx ({error}); "
            f"{format_install_command('onnx')}"
        ) from error
    with _write_atomically(path) as (partial,):
        Path(partial).write_bytes(model)


def serialize_onnx(net: MarginNet, crop_size: int, normalize_input: bool) -> bytes:
    """Returns the content of the file that `export_onnx` writes.

    Raises ImportError if onnx is not installed, and UsageError if the network does not take images
    of this size or has an operator that cannot be translated.
    """
    # Imported here, since few users need onnx.
    from embedding_learning.inference.onnx_graph import build_model

    symbol = _embedding_symbol(net, crop_size, normalize_input)
    arrays = {name: array.asnumpy() for name, array in _arrays(net, symbol).items()}
    dimension = net.dense.weight.shape[0]
    model = build_model(symbol, arrays, crop_size, dimension, normalize_input)
    return bytes(model.SerializeToString())


def export_pytorch(net: MarginNet, path: str, description: Mapping[str, Any]) -> str:
    """Writes the weights as a .safetensors file for torchvision's or timm's network.

    The names are those of that network with `num_classes` = d: the embedding layer has the place
    of the last layer. In SqueezeNet, whose last layer is a convolution, it is a dense layer on the
    flattened features. The metadata `description` is JSON: the network's library and name
    (`architecture`), and how images become its input. ``--pretrained-params`` reads the file too.

    Parameters
    ----------
    net : MarginNet
        A network with known shapes.
    path : str
    description : mapping
        What `model.description` lists.

    Returns
    -------
    str
        The network that the weights are of, for a message.

    Raises
    ------
    UsageError
        If neither library has a network that computes the same, or the file cannot be written.
    """
    model = catalog.resolve_name(description["model"])
    assert model
    name_map = find_name_map(model)
    if name_map is None:
        raise UsageError(
            f"{path}: PyTorch has no network that is built like {model}; export ONNX instead, to a "
            "name that ends in .onnx"
        )
    library, architecture = catalog.pytorch_network(model)
    if not _pools_like_pytorch(name_map, model, description):
        raise UsageError(
            f"{path}: {library}'s {architecture} pools the last feature map of images of "
            f"{description['crop_size']} pixels differently than --pool {description['pool']}; "
            "export ONNX instead, to a name that ends in .onnx"
        )
    about: dict[str, Any] = {"library": library, "architecture": architecture}
    about.update((key, description[key]) for key in _FOR_PYTORCH)
    arrays = _feature_arrays(net, model)
    if model == "inceptionv3":
        expect_pixels_around_zero(arrays)
        about["mean"] = about["deviation"] = [0.5] * 3
    names = map_names(model, list(arrays))
    tensors = {names[name]: array for name, array in arrays.items()}
    last = name_map.heads[0]
    tensors[f"{last}weight"], tensors[f"{last}bias"] = _embedding_layer(net)
    metadata = {"format": "pt", "description": json.dumps(about)}
    with _write_atomically(path) as (partial,):
        save_file(tensors, partial, metadata=metadata)
    return f"{library}'s {architecture}"


def _feature_arrays(net: MarginNet, model: str) -> dict[str, np.ndarray]:
    """Returns the arrays of the backbone, by their names in a Gluon file of the classifier."""
    names = names_in_classifier(model)
    parameters = net.base_net._collect_params_with_prefix()
    return {names[name]: _values(parameter) for name, parameter in parameters.items()}


def _pools_like_pytorch(name_map: NameMap, model: str, description: Mapping[str, Any]) -> bool:
    """Returns whether PyTorch's network has the same features for images of the crop size."""
    if description["pool"] == name_map.pool:
        return True
    is_designed_for = description["crop_size"] == catalog.ARCHITECTURES[model].crop_size
    return description["pool"] == POOLS[0] and (name_map.takes_any_size or is_designed_for)


def _embedding_layer(net: MarginNet) -> tuple[np.ndarray, np.ndarray]:
    """Returns weight (d, features) and bias (d,) of all layers after the features as one layer.

    There is no activation between an additional layer (``--feat-dim``) and the embedding layer.
    """
    weight, bias = _values(net.dense.weight), _values(net.dense.bias)
    if net.feature is None:
        return weight, bias
    exact = weight.astype(np.float64)
    bias = exact @ _values(net.feature.bias) + bias
    weight = exact @ _values(net.feature.weight)
    return weight.astype(np.float32), bias.astype(np.float32)


def _values(parameter: mx.gluon.Parameter) -> np.ndarray:
    """Returns float32 values, the mean over the devices."""
    return np.ascontiguousarray(parameter._reduce().asnumpy(), np.float32)


def _embedding_symbol(net: MarginNet, crop_size: int, normalize_input: bool) -> mx.sym.Symbol:
    """Returns the graph of `net.embed`, with the input "data"."""
    # Loaders do not need shape and type, but people read them; 0 is any number of images.
    shape, dtype = (3, crop_size, crop_size), "uint8" if normalize_input else "float32"
    z = mx.sym.var("data", shape=(0, *shape), dtype=dtype)
    if normalize_input:
        z = ImageNormalization()(z)
    z = net.base_net(z)
    if net.feature is not None:
        z = net.feature(z)
    symbol = net.normalize(net.dense(z))
    shapes = {name: array.shape for name, array in _arrays(net, symbol).items()}
    try:
        symbol.infer_shape(data=(1, *shape), **shapes)
    except mx.base.MXNetError as error:
        raise UsageError(
            f"--crop-size {crop_size}: the network was not made for images of this size"
        ) from error
    return symbol


def _arrays(net: MarginNet, symbol: mx.sym.Symbol) -> dict[str, mx.nd.NDArray]:
    """Returns the parameters of the graph, by their names in it."""
    used = set(symbol.list_inputs())
    parameters = net.collect_params().items()
    # The mean over the devices, as save_parameters writes it.
    return {name: parameter._reduce() for name, parameter in parameters if name in used}


@contextmanager
def _write_atomically(*paths: str) -> Iterator[list[str]]:
    """Yields temporary names to write to; all files get their final names at the end, or none.

    Raises UsageError if a file cannot be written; the former files then stay.
    """
    try:
        with ExitStack() as stack:
            yield [stack.enter_context(atomic_write(path)) for path in paths]
    except SafetensorError as error:
        raise UsageError(f"{paths[0]}: cannot be written: {error}; name another file") from error
    except (OSError, mx.base.MXNetError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the disk is full"
        raise UsageError(f"{paths[0]}: cannot be written: {reason}; name another file") from error
