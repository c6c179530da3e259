"""Exports a trained network for other programs: as symbol and parameters, or as ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import mxnet as mx

from embedding_learning.errors import UsageError
from embedding_learning.model.net import ImageNormalization, MarginNet
from embedding_learning.runtime.atomic_files import atomic_write


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
        # Imported here, since few users need onnx.
        from embedding_learning.inference.onnx_graph import build_model
    except ImportError as error:
        raise UsageError(
            f"{path}: writing ONNX needs the package onnx ({error}); "
            "pip install -r requirements-onnx.txt"
        ) from error
    symbol = _embedding_symbol(net, crop_size, normalize_input)
    arrays = {name: array.asnumpy() for name, array in _arrays(net, symbol).items()}
    dimension = net.dense.weight.shape[0]
    model = build_model(symbol, arrays, crop_size, dimension, normalize_input)
    with _write_atomically(path) as (partial,):
        Path(partial).write_bytes(model.SerializeToString())


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
    except (OSError, mx.base.MXNetError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the disk is full"
        raise UsageError(f"{paths[0]}: cannot be written: {reason}; name another file") from error
