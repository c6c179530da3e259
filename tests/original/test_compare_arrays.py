"""Norms and differences, against the definition."""

from __future__ import annotations

import math

import mxnet as mx
import numpy as np
import pytest

from embedding_learning.original.compare_arrays import (
    find_largest_difference,
    gradient_norm,
    relative_difference,
)


def test_the_norm_of_all_gradients() -> None:
    numbers = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([-2.0])}
    parameters = []
    for name, values in numbers.items():
        parameter = mx.gluon.Parameter(name, shape=values.shape)
        parameter.initialize(ctx=[mx.cpu(0), mx.cpu(1)])
        for device, gradient in enumerate(parameter.list_grad()):
            gradient[:] = values * (device + 1)
        parameters.append(parameter)
    counted = mx.gluon.Parameter("running_mean", shape=(3,), grad_req="null")
    counted.initialize()
    # The devices' gradients are 1 and 2 times the numbers.
    expected = 3 * math.sqrt(sum(x * x for values in numbers.values() for x in values.ravel()))
    assert gradient_norm([*parameters, counted]) == pytest.approx(expected, rel=1e-6)


def test_relative() -> None:
    assert relative_difference(-4.0, -3.0) == 0.25
    assert relative_difference(0.0, 0.0) == 0.0
    assert relative_difference(0.0, 1e-9) == math.inf
    assert math.isnan(relative_difference(math.nan, 1.0))


def test_the_largest_difference_is_that_of_the_worst_array() -> None:
    a = {"large": np.array([1000.0, -2000.0]), "small": np.array([[0.5], [-0.25]])}
    b = {"large": np.array([1001.0, -2000.0]), "small": np.array([[0.5], [-0.30]])}
    # 1 of 2000 and 0.05 of 0.5.
    value, array = find_largest_difference(a, b)
    assert value == pytest.approx(0.1) and array == "small"
    assert find_largest_difference(a, a).value == 0.0


def test_what_is_not_finite_is_the_worst() -> None:
    a = {"a": np.zeros(2), "b": np.ones(2), "c": np.ones(1)}
    moved = {"a": np.array([0.0, 1e-9]), "b": np.ones(2), "c": np.ones(1)}
    assert find_largest_difference(a, moved) == (math.inf, "a")
    broken = {**a, "c": np.array([np.nan])}
    value, array = find_largest_difference(a, broken)
    assert math.isnan(value) and array == "c"


def test_it_is_not_rounded_to_float32() -> None:
    a, b = np.float32([3.0]), np.float32([-1 / 3])
    expected = (3.0 - float(b[0])) / 3.0
    assert find_largest_difference({"a": a}, {"a": b}).value == expected
    assert expected != float((a[0] - b[0]) / a[0])
