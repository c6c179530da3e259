"""What two programs are compared by: parameters and gradients, of either."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import mxnet as mx
import numpy as np


class ArrayDifference(NamedTuple):
    """The largest one, and the array where it is."""

    value: float
    array: str


def read_values(parameters: Mapping[str, mx.gluon.Parameter]) -> dict[str, np.ndarray]:
    """The first device's values, by name; the devices before must be done."""
    return {name: p.list_data()[0].asnumpy() for name, p in parameters.items()}


def gradient_norm(parameters: Iterable[mx.gluon.Parameter]) -> float:
    """The Euclidean norm of all gradients as one vector, summed over the devices.

    Before they are divided by the batch size.
    """
    total = 0.0
    for parameter in parameters:
        if parameter.grad_req != "null":
            gradient = sum(array.asnumpy().astype(np.float64) for array in parameter.list_grad())
            total += float(np.sum(np.square(gradient)))
    return math.sqrt(total)


def relative_difference(a: float, b: float) -> float:
    """|a - b| / |a|; 0 for equal ones."""
    if a == b:
        return 0.0
    return abs(a - b) / abs(a) if a else math.inf


def find_largest_difference(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]
) -> ArrayDifference:
    """The largest max |a - b| / max |a| of all arrays: 0 where they are equal, NaN if any is."""
    found = [ArrayDifference(_relative_difference(a[name], b[name]), name) for name in a]
    return max(found, key=lambda one: math.inf if math.isnan(one.value) else one.value)


def _relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    difference = float(np.max(np.abs(a.astype(np.float64) - b)))
    if difference == 0:
        return 0.0
    scale = float(np.max(np.abs(a)))
    return difference / scale if scale else math.inf
