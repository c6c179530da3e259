"""Translates an MXNet graph to an ONNX model, one operator after another.

This is the only module that imports onnx. `mxnet.onnx.export_model` of MXNet 1.9.1 cannot be used:
it refuses the L2Normalization of the embeddings ("channel mode only"), does not know
_image_normalize, and needs `onnx.mapping`, which the releases of onnx for Python 3.14 do not have.
The backbones of Gluon need fourteen operators, and MobileNet v3 and squeeze-and-excitation seven
more. These are translated here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Optional

import mxnet as mx
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from embedding_learning.errors import UsageError

# Old enough for every current onnxruntime. The translations below are written for this version.
_OPSET, _IR_VERSION = 13, 7

Attributes = dict[str, str]
# (name, inputs, attributes) -> nodes, of which the last has the output `name`; None if these
# attributes cannot be translated.
Translation = Callable[[str, list[str], Attributes], Optional[list[NodeProto]]]


def build_model(
    symbol: mx.sym.Symbol,
    arrays: dict[str, np.ndarray],
    crop_size: int,
    dimension: int,
    pixels: bool,
) -> ModelProto:
    """Translates a graph from "data" to embeddings.

    Parameters
    ----------
    symbol : Symbol
        Has one output, (n, dimension).
    arrays : dict of ndarray
        The parameters, by their names in the graph.
    crop_size : int
        Side of the images in pixels.
    dimension : int
        Dimension of the embedding.
    pixels : bool
        Whether the input is uint8 pixels; otherwise it is normalized float32.

    Returns
    -------
    ModelProto
        Input "data" (batch, 3, crop_size, crop_size), output "embeddings" (batch, dimension).

    Raises
    ------
    UsageError
        If an operator has no translation; the message names it.
    """
    graph = json.loads(symbol.tojson())
    names = [node["name"] for node in graph["nodes"]]
    names[graph["heads"][0][0]] = "embeddings"
    # With fix_gamma the operator replaces gamma by 1, so the file holds 1.
    arrays = {**arrays, **{name: np.ones_like(arrays[name]) for name in _fixed_gammas(graph)}}

    nodes: list[NodeProto] = []
    for name, node in zip(names, graph["nodes"]):
        if node["op"] == "null":
            continue
        inputs = [names[source] for source, *_ in node["inputs"]]
        nodes += _translate(name, node["op"], inputs, node.get("attrs", {}))

    shape: list[Any] = ["batch", 3, crop_size, crop_size]
    element_type, description = (
        (TensorProto.UINT8, "RGB pixels, 0 to 255")
        if pixels
        else (TensorProto.FLOAT, "RGB of 0 to 1, less ImageNet's mean, divided by its deviation")
    )
    outputs = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", dimension])
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "embedding",
            [helper.make_tensor_value_info("data", element_type, shape, doc_string=description)],
            [outputs],
            [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="embedding_learning",
    )
    checker.check_model(model, full_check=True)
    return model


def _translate(
    name: str, operator: str, inputs: list[str], attributes: Attributes
) -> list[NodeProto]:
    translation = _TRANSLATIONS.get(operator)
    nodes = translation(name, inputs, attributes) if translation else None
    if nodes is None:
        settings = ", ".join(f"{key}={value}" for key, value in attributes.items())
        raise UsageError(
            f"the network's {name}: there is no translation of {operator}({settings}) to ONNX; "
            "export symbol and parameters instead"
        )
    return nodes


def _fixed_gammas(graph: dict) -> list[str]:
    nodes = graph["nodes"]
    return [
        nodes[node["inputs"][1][0]]["name"]
        for node in nodes
        if node["op"] == "BatchNorm" and _is_true(node["attrs"], "fix_gamma", "True")
    ]


def _is_true(attributes: Attributes, key: str, default: str = "False") -> bool:
    return attributes.get(key, default) in ("True", "1")


def _parse_integers(text: str) -> list[int]:
    """Parses a tuple as MXNet writes it: "(3, 3)" -> [3, 3], "()" -> []."""
    return [int(part) for part in text.strip("()[]").split(",") if part.strip()]


def _constant(name: str, values: object, dtype: type = np.float32) -> NodeProto:
    tensor = numpy_helper.from_array(np.asarray(values, dtype), name)
    return helper.make_node("Constant", [], [name], value=tensor)


def _same_as(operator: str) -> Translation:
    """Returns a translation to an operator with the same inputs and no attributes."""
    return lambda name, inputs, attributes: [helper.make_node(operator, inputs, [name])]


def _with_scalar(operator: str) -> Translation:
    """Returns a translation to an operator whose second input is the number `scalar`."""

    def translate(name: str, inputs: list[str], attributes: Attributes) -> list[NodeProto]:
        scalar = f"{name}_scalar"
        return [
            _constant(scalar, float(attributes["scalar"])),
            helper.make_node(operator, [*inputs, scalar], [name]),
        ]

    return translate


def _activation(name: str, inputs: list[str], attributes: Attributes) -> list[NodeProto] | None:
    operator = {"relu": "Relu", "sigmoid": "Sigmoid"}.get(attributes["act_type"])
    return [helper.make_node(operator, inputs, [name])] if operator else None


def _batch_norm(name: str, inputs: list[str], attributes: Attributes) -> list[NodeProto] | None:
    if attributes.get("axis", "1") != "1":
        return None
    epsilon = float(attributes.get("eps", 1e-3))
    return [helper.make_node("BatchNormalization", inputs, [name], epsilon=epsilon)]


def _cast(name: str, inputs: list[str], attributes: Attributes) -> list[NodeProto] | None:
    if attributes["dtype"] != "float32":
        return None
    return [helper.make_node("Cast", inputs, [name], to=TensorProto.FLOAT)]


def _clip(name: str, inputs: list[str], attributes: Attributes) -> list[NodeProto]:
    low, high = f"{name}_low", f"{name}_high"
    return [
        _constant(low, float(attributes["a_min"])),
        _constant(high, float(attributes["a_max"])),
        helper.make_node("Clip", [*inputs, low, high], [name]),
    ]


def _concat(name: str, inputs: list[str], attributes: Attributes) -> list[NodeProto]:
    return [helper.make_node("Concat", inputs, [name], axis=int(attributes.get("dim", 1)))]


def _convolution(name: str, inputs: list[str], attributes: Attributes) -> list[NodeProto] | None:
    kernel = _parse_integers(attributes["kernel"])
    if len(kernel) != 2 or attributes.get("layout", "NCHW") not in ("NCHW", "None"):
        return None
    return [
        helper.make_node(
            "Conv",
            inputs,
            [name],
            kernel_shape=kernel,
            strides=_parse_integers(attributes.get("stride", "")) or [1, 1],
            pads=2 * (_parse_integers(attributes.get("pad", "")) or [0, 0]),
            dilations=_parse_integers(attributes.get("dilate", "")) or [1, 1],
            group=int(attributes.get("num_group", 1)),
        )
    ]


def _fully_connected(
    name: str, inputs: list[str], attributes: Attributes
) -> list[NodeProto] | None:
    if not _is_true(attributes, "flatten", "True"):
        return None
    data, *weights = inputs
    rows = f"{name}_rows"
    return [
        helper.make_node("Flatten", [data], [rows]),
        helper.make_node("Gemm", [rows, *weights], [name], transB=1),
    ]


def _l2_normalization(
    name: str, inputs: list[str], attributes: Attributes
) -> list[NodeProto] | None:
    if attributes.get("mode", "instance") != "instance":
        return None
    squares, floor, sum_, length = (
        f"{name}_{part}" for part in ("squares", "floor", "sum", "length")
    )
    # ONNX's own LpNormalization divides a row of zeros by 0.
    return [
        helper.make_node("ReduceSumSquare", inputs, [squares], axes=[1]),
        _constant(floor, float(attributes.get("eps", 1e-10))),
        helper.make_node("Add", [squares, floor], [sum_]),
        helper.make_node("Sqrt", [sum_], [length]),
        helper.make_node("Div", [*inputs, length], [name]),
    ]


def _normalize(name: str, inputs: list[str], attributes: Attributes) -> list[NodeProto]:
    """Normalizes each channel with its mean and deviation: (n, 3, h, w) -> the same shape."""
    mean, deviation, centered = (f"{name}_{part}" for part in ("mean", "deviation", "centered"))

    def by_channel(text: str) -> np.ndarray:
        return np.array([float(part) for part in text.strip("()").split(",")])[:, None, None]

    return [
        _constant(mean, by_channel(attributes["mean"])),
        _constant(deviation, by_channel(attributes["std"])),
        helper.make_node("Sub", [*inputs, mean], [centered]),
        helper.make_node("Div", [centered, deviation], [name]),
    ]


def _pooling(name: str, inputs: list[str], attributes: Attributes) -> list[NodeProto] | None:
    operators = {"max": "MaxPool", "avg": "AveragePool"}
    operator = operators.get(attributes.get("pool_type", "max"))
    if operator and _is_true(attributes, "global_pool"):
        return [helper.make_node(f"Global{operator}", inputs, [name])]
    kernel = _parse_integers(attributes["kernel"])
    strides = _parse_integers(attributes.get("stride", "")) or [1] * len(kernel)
    padding = _parse_integers(attributes.get("pad", "")) or [0] * len(kernel)
    # With "full", windows may reach beyond the image. ONNX leaves out those that begin outside, and
    # onnxruntime averages cut ones in another way than MXNet.
    begin_inside = all(s + p <= k for s, p, k in zip(strides, padding, kernel))
    convention = attributes.get("pooling_convention", "valid")
    full = convention == "full" and operator == "MaxPool" and begin_inside
    if operator is None or not (full or convention == "valid"):
        return None
    settings: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": strides,
        "pads": 2 * padding,
        "ceil_mode": int(full),
    }
    if operator == "AveragePool":
        settings["count_include_pad"] = int(_is_true(attributes, "count_include_pad", "True"))
    return [helper.make_node(operator, inputs, [name], **settings)]


def _adaptive_pooling(
    name: str, inputs: list[str], attributes: Attributes
) -> list[NodeProto] | None:
    if set(_parse_integers(attributes.get("output_size", ""))) != {1}:
        return None
    return [helper.make_node("GlobalAveragePool", inputs, [name])]


def _expand_dims(name: str, inputs: list[str], attributes: Attributes) -> list[NodeProto]:
    axes = f"{name}_axes"
    return [
        _constant(axes, [int(attributes["axis"])], np.int64),
        helper.make_node("Unsqueeze", [*inputs, axes], [name]),
    ]


_TRANSLATIONS: dict[str, Translation] = {
    "Activation": _activation,
    "BatchNorm": _batch_norm,
    "Cast": _cast,
    "Concat": _concat,
    "Convolution": _convolution,
    # It changes nothing outside of training.
    "Dropout": _same_as("Identity"),
    "Flatten": _same_as("Flatten"),
    "FullyConnected": _fully_connected,
    "L2Normalization": _l2_normalization,
    "Pooling": _pooling,
    "_contrib_AdaptiveAvgPooling2D": _adaptive_pooling,
    "_div_scalar": _with_scalar("Div"),
    "_image_normalize": _normalize,
    "_mul_scalar": _with_scalar("Mul"),
    "_plus_scalar": _with_scalar("Add"),
    "broadcast_mul": _same_as("Mul"),
    "clip": _clip,
    "elemwise_add": _same_as("Add"),
    "elemwise_mul": _same_as("Mul"),
    "expand_dims": _expand_dims,
}
