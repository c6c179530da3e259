"""Operators that are compiled when they are first called."""

from __future__ import annotations

import inspect

import mxnet as mx
import numpy as np
import pytest

from embedding_learning.runtime import lazy_operators

CODE = '''
def add(a, b=2, **named):
    """Adds."""
    calls.append(a)
    return a + b + c
'''


def test_the_function_is_compiled_when_it_is_first_called_and_then_no_more() -> None:
    scope = {"c": 10, "calls": []}
    defined = {}
    lazy_operators.define(scope, CODE, None, defined)
    assert [*defined] == ["add"]
    # Running code adds this name to the scope.
    assert "__builtins__" not in scope
    add = defined["add"]
    assert add(1) == 13
    assert scope.pop("__builtins__")
    assert add(2, b=3, other=4) == 15
    assert "__builtins__" not in scope
    assert scope["calls"] == [1, 2]
    assert "add" not in scope
    with pytest.raises(TypeError, match=r"^add\(\) missing 1 required positional argument: 'a'$"):
        add()


@pytest.mark.parametrize("module", [mx.nd, mx.sym], ids=["arrays", "symbols"])
@pytest.mark.parametrize(
    "place, name", [("", "Convolution"), ("contrib", "boolean_mask"), ("_internal", "_plus_scalar")]
)
def test_operators_of_mxnet_are_lazy_and_keep_name_place_and_documentation(
    module: object, place: str, name: str
) -> None:
    operator = getattr(getattr(module, place) if place else module, name)
    # The first call has not replaced it.
    assert inspect.getsourcefile(operator) == lazy_operators.__file__
    assert operator.__name__ == operator.__qualname__ == name
    kind = module.__name__.partition(".")[2]
    assert operator.__module__ in (kind, f"{module.__name__}.{place}")
    assert operator.__doc__.count("\n") > 5


def test_an_operator_computes_and_explains_a_mistake_as_before() -> None:
    x = mx.nd.array([[3.0, -1.0]])
    np.testing.assert_array_equal(mx.nd.relu(x).asnumpy(), [[3, 0]])
    np.testing.assert_array_equal(mx.nd.concat(x, x, dim=0).asnumpy(), [[3, -1]] * 2)
    assert mx.sym.concat(mx.sym.var("a"), mx.sym.var("b")).list_arguments() == ["a", "b"]
    with pytest.raises(TypeError, match=r"^relu\(\) takes "):
        mx.nd.relu(x, x, x, x, x)
