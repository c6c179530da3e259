"""Compiles MXNet's operators when they are first called, not all of them during its import.

MXNet writes the code of 2,500 Python functions when it is imported, two for each operator, and runs
it with `exec`. That is a third of the time of the import, and a program calls a few dozen of them.
"""

from __future__ import annotations

import re
from functools import partial
from types import ModuleType
from typing import Any

# The modules of MXNet that define the operators.
MODULES = frozenset({"mxnet.ndarray.register", "mxnet.symbol.register"})


def prepare(module: ModuleType) -> None:
    """Makes a module of `MODULES` that is not yet run define its operators by `define`."""
    # The module finds this name before Python's own function.
    vars(module)["exec"] = partial(define, vars(module))


def define(scope: dict[str, Any], code: str, _: None, defined: dict[str, Any]) -> None:
    """Puts a function into `defined` that compiles itself when it is first called.

    The code defines one function, which looks names up in `scope`.
    """
    found = re.search(r"^def (\w+)\(", code, re.M)
    assert found
    name = found[1]
    function = None

    def operator(*args: Any, **kwargs: Any) -> Any:
        nonlocal function
        # Two threads may both compile it. Their functions are equal.
        if function is None:
            compiled: dict[str, Any] = {}
            exec(code, scope, compiled)
            function = compiled[name]
        return function(*args, **kwargs)

    # The caller sets its other names and its documentation.
    operator.__qualname__ = name
    defined[name] = operator
