"""Differences between the parameters and gradients of two programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import mxnet as mx
import numpy as np


class ArrayDifference(NamedTuple):
    """A relative difference, and the name of the array that it was found in."""

    value: float
    array: str


def read_values(parameters: Mapping[str, mx.gluon.Parameter]) -> dict[str, np.ndarray]:
    """Returns the values on the first device, by name. All devices must have finished computing."""
    return {name: p.list_data()[0].asnumpy() for name, p in parameters.items()}


def gradient_norm(parameters: Iterable[mx.gluon.Parameter]) -> float:
    """Returns the Euclidean norm of all gradients as one vector, summed over the devices.

    The gradients are not divided by the batch size.
    """
    total = 0.0
    for parameter in parameters:
        if parameter.grad_req != "null":
            gradient = sum(array.asnumpy().astype(np.float64) for array in parameter.list_grad())
            total += float(np.sum(np.square(gradient)))
    return math.sqrt(total)


def relative_difference(a: float, b: float) -> float:
    """Returns |a - b| / |a|; 0 for equal numbers, infinity if only `a` is 0."""
    if a == b:
        return 0.0
    return abs(a - b) / abs(a) if a else math.inf


def find_largest_difference(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]
) -> ArrayDifference:
    """Returns the largest max |a - b| / max |a| of all arrays; it is NaN if one of them is NaN."""
    differences = [ArrayDifference(_relative_difference(a[name], b[name]), name) for name in a]
    return max(differences, key=lambda d: math.inf if math.isnan(d.value) else d.value)


def _relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    difference = float(np.max(np.abs(a.astype(np.float64) - b)))
    if difference == 0:
        return 0.0
    scale = float(np.max(np.abs(a)))
    return difference / scale if scale else math.inf
