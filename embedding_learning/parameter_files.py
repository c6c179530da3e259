"""Files of named parameters: written whole or not at all, read without trust."""

from __future__ import annotations

import os

import mxnet as mx
import numpy as np

from embedding_learning.options import UsageError

_OTHER = "it belongs to a network of other flags (--model, --embed-dim, --feat-dim)"


def save_parameters(net: mx.gluon.Block, path: str) -> None:
    """Writes the network's parameters; the file's former content stays until the new is complete.

    The names in the file are those of the original example's network, which loads it too.
    """
    partial = f"{path}.{os.getpid()}.partial"
    try:
        net.save_parameters(partial)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def read_parameters(path: str, flag: str) -> dict[str, mx.nd.NDArray]:
    """The named arrays of a Gluon parameter file.

    Raises UsageError that names the flag if the file is missing or is no such file.
    """
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        raise UsageError(f"{flag} {path}: no such file, or it cannot be read")
    try:
        arrays = mx.nd.load(path)
    except (mx.base.MXNetError, UnicodeDecodeError, ValueError):
        arrays = None
    if not isinstance(arrays, dict):
        raise UsageError(f"{flag} {path}: is damaged or not a Gluon parameter file")
    return arrays


def set_parameters(
    parameters: dict[str, mx.gluon.Parameter],
    arrays: dict[str, mx.nd.NDArray],
    source: str,
    devices: list[mx.Context],
) -> None:
    """Gives every parameter the array of its name, on all devices.

    Raises UsageError that names the first parameter without a finite array of its shape, or the
    first array without a parameter, and changes nothing then. `source` (flag and file) begins the
    message.
    """
    surplus = arrays.keys() - parameters.keys()
    if surplus:
        raise UsageError(f"{source}: has {min(surplus)}, which the network lacks; {_OTHER}")
    for name, parameter in parameters.items():
        if name not in arrays:
            raise UsageError(f"{source}: has no {name}; {_OTHER}")
        # A size of 0 is not known before the first batch.
        wanted, found = parameter.shape, arrays[name].shape
        fits = len(wanted) == len(found) and all(w in (0, f) for w, f in zip(wanted, found))
        if not fits:
            raise UsageError(
                f"{source}: {name} has the shape {found}, the network needs {wanted}; {_OTHER}"
            )
        if not np.isfinite(arrays[name].asnumpy()).all():
            raise UsageError(f"{source}: {name} holds values that are not finite")
    for name, parameter in parameters.items():
        parameter.shape = arrays[name].shape
        parameter.initialize(mx.init.Zero(), ctx=devices, force_reinit=True)
        parameter.set_data(arrays[name].astype(parameter.dtype))
