"""The commands that install what the program needs, as messages name them.

Imports only the standard library: the messages are about packages that are missing.
"""

from __future__ import annotations

import sys

from embedding_learning.runtime.startup import find_checkout

# The name of pyproject.toml.
_PACKAGE = "embedding-learning"


def format_install_command(extra: str = "") -> str:
    """Returns the command that installs the program's requirements on this Python.

    In a checkout it reads the lists of exact releases. An installed package comes without these;
    there, pip finds what the package declares.

    Parameters
    ----------
    extra : str
        "gpu" for MXNet's GPU build in place of the one for CPUs, "onnx" for what ONNX needs in
        addition.
    """
    # MXNet declares that it does not work with the numpy of these Pythons, so pip must ignore that.
    is_mxnet_separate = sys.version_info >= (3, 13) and extra != "onnx"
    if find_checkout():
        file = f"requirements-{extra}.txt" if extra else "requirements.txt"
        if not is_mxnet_separate:
            return f"pip install -r {file}"
        return f"pip install -r requirements-common.txt && pip install --no-deps -r {file}"
    commands = [f'pip install "{_PACKAGE}[{extra}]"' if extra else f"pip install {_PACKAGE}"]
    if extra == "gpu":
        # Both builds occupy the same folder, and the package declares the other one.
        commands.append("pip uninstall mxnet")
        commands.append("pip install --no-deps --force-reinstall mxnet-cu112==1.9.1")
    elif is_mxnet_separate:
        commands.append("pip install --no-deps mxnet==1.9.1")
    return " && ".join(commands)
