"""Files of ImageNet weights: Gluon's, and PyTorch's of the networks that are built like Gluon's.

Which kind a file is, its first bytes tell: a Gluon .params file, a .safetensors, or what torch.save
wrote of a state dictionary (.pth). None of them can run code.
"""

from __future__ import annotations

import json
import logging
import math
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import mxnet as mx
import numpy as np
from safetensors import SafetensorError, safe_open

from embedding_learning.errors import UsageError
from embedding_learning.model.weights.catalog import DEVIATION, MEAN
from embedding_learning.model.weights.params_file import open_file, read_parameters, set_parameters
from embedding_learning.model.weights.torch_file import (
    LEGACY_START,
    ZIP_START,
    read_state_dictionary,
    read_values,
)
from embedding_learning.model.weights.torchvision_names import (
    Family,
    family_of,
    in_torchvision_spelling,
    torch_names,
)

Parameters = dict[str, mx.gluon.Parameter]

_SAFETENSORS_DTYPES = {"F16": "float16", "F32": "float32", "F64": "float64"}
_LONGEST_HEADER = 2**20  # bytes
_LONGEST_NAME = 1000  # characters
# timm's names of weights, beside which it has a config.json.
_TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
# Batch norm's count of training steps, of no use here.
_COUNT = ".num_batches_tracked"


class _Stored(NamedTuple):
    """A tensor in a file."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def load_weights(
    path: str,
    flag: str,
    model: str,
    features: Parameters,
    head: set[str],
    devices: list[mx.Context],
) -> None:
    """Gives the features of a classifier the weights in a file.

    What float16 values and which normalisation of pixels the file holds is logged.

    Parameters
    ----------
    path, flag : str
        The file, and the flag that named it.
    model : str
        As Gluon or gluoncv names it.
    features : dict of Parameter
        By their names in a file of the whole classifier; all shapes known.
    head : set of str
        The classifier's other parameters, which are passed over.
    devices : list of Context

    Raises
    ------
    UsageError
        If the file cannot be read or is of another network: names the first parameter that is
        missing, surplus or of another shape. Nothing is changed then.
    """
    source = f"{flag} {path}"
    with open_file(path, flag) as file:
        start = file.read(max(len(LEGACY_START), 9))
    if start.startswith(ZIP_START) or start == LEGACY_START:
        opened = _torch_file
    elif start[8:9] == b"{":
        opened = _safetensors_file
    else:
        arrays = read_parameters(path, flag)
        arrays = {name: array for name, array in arrays.items() if name not in head}
        if any(array.dtype == np.float16 for array in arrays.values()):
            _say_half_precision(source)
        set_parameters(features, arrays, source, devices)
        return
    with opened(path, flag) as tensors:
        family = family_of(model)
        if family is None:
            raise UsageError(
                f"{source}: is a PyTorch file, and torchvision has no network that is built like "
                f"{model}; give a Gluon .params file, or name torchvision's with --model"
            )
        places = _places(source, model, family, tensors, list(features))
        arrays = {
            name: _values(source, theirs, tensors[theirs], features[name].shape)
            for name, theirs in places.items()
        }
        if any(tensors[theirs].dtype == "float16" for theirs in places.values()):
            _say_half_precision(source)
    if _is_of_pixels_around_zero(path, source, model):
        _take_over_normalization(arrays)
        logging.info("%s: the first layer takes over that its pixels are in [-1, 1].", source)
    set_parameters(
        features, {name: mx.nd.array(array) for name, array in arrays.items()}, source, devices
    )


def _say_half_precision(source: str) -> None:
    logging.info("%s: holds float16 values, which become float32.", source)


def _places(
    source: str, model: str, family: Family, tensors: dict[str, _Stored], features: list[str]
) -> dict[str, str]:
    """The name in the file of each parameter. Raises UsageError unless all are accounted for."""
    wanted = torch_names(model, features)
    theirs_wanted = set(wanted.values())
    in_file: dict[str, str] = {}
    surplus = []
    for name, theirs in in_torchvision_spelling(family, list(tensors)).items():
        is_count = theirs.endswith(_COUNT) and _statistics(theirs) in theirs_wanted
        if theirs in theirs_wanted and theirs not in in_file:
            in_file[theirs] = name
        elif not is_count and not theirs.startswith(family.heads):
            surplus.append(name)
    missing = [theirs for theirs in wanted.values() if theirs not in in_file]
    if missing or surplus:
        faults = [
            f"{verb} {names[0][:100]}{f' and {len(names) - 1} more' if names[1:] else ''}"
            for verb, names in (("lacks", missing), ("has besides", surplus))
            if names
        ]
        raise UsageError(f"{source}: is not of {model}: it {', '.join(faults)}; see --model")
    return {name: in_file[theirs] for name, theirs in wanted.items()}


def _statistics(count: str) -> str:
    """A statistic that is beside a batch norm's count of steps."""
    return f"{count[: -len(_COUNT)]}.running_mean"


def _values(source: str, name: str, tensor: _Stored, shape: tuple[int, ...]) -> np.ndarray:
    """float32. Raises UsageError unless they are numbers of the shape.

    timm has a convolution over the whole image where others flatten it for a dense layer.
    """
    is_flattened = (
        len(shape) == 2
        and len(tensor.shape) == 4
        and tensor.shape[0] == shape[0]
        and math.prod(tensor.shape[1:]) == shape[1]
    )
    if tensor.shape != shape and not is_flattened:
        raise UsageError(
            f"{source}: {name} has the shape {tensor.shape}, the network needs {shape}; is it of "
            "another --model?"
        )
    if tensor.dtype not in _SAFETENSORS_DTYPES.values():
        raise UsageError(f"{source}: {name} is of {tensor.dtype}; save it as float32 first")
    with np.errstate(over="ignore"):  # of float64; it is refused as not finite
        return tensor.read().astype(np.float32).reshape(shape)


@contextmanager
def _torch_file(path: str, flag: str) -> Iterator[dict[str, _Stored]]:
    with open_file(path, flag, "file of torch.save") as file:
        try:
            state = read_state_dictionary(file)
        except ValueError as error:
            raise UsageError(f"{flag} {path}: {error}") from error
        yield {
            name: _Stored(
                tensor.storage.dtype, tensor.shape, partial(read_values, file, state, name)
            )
            for name, tensor in state.tensors.items()
        }


@contextmanager
def _safetensors_file(path: str, flag: str) -> Iterator[dict[str, _Stored]]:
    with open_file(path, flag) as file:
        (length,) = struct.unpack("<Q", file.read(8))
    try:
        if length > _LONGEST_HEADER:
            raise ValueError("longer than any network's")
        with safe_open(path, framework="numpy") as file:
            tensors = {}
            names = file.keys()
            for name in names:
                if not name.isprintable() or len(name) > _LONGEST_NAME:
                    raise ValueError("no name of a tensor")
                stored = file.get_slice(name)
                dtype = stored.get_dtype()
                tensors[name] = _Stored(
                    _SAFETENSORS_DTYPES.get(dtype, dtype),
                    tuple(stored.get_shape()),
                    partial(file.get_tensor, name),
                )
            yield tensors
    except (SafetensorError, ValueError, OSError) as error:
        raise UsageError(f"{flag} {path}: is cut off, damaged or no safetensors file") from error


def _is_of_pixels_around_zero(path: str, source: str, model: str) -> bool:
    """Whether the weights were trained on pixels in [-1, 1], not normalised as usual.

    timm distributes a file of that name with another that tells; without it, Inception v3 was, as
    all of torchvision's and the first of timm's.
    """
    folder, name = os.path.split(path)
    config = os.path.join(folder, "config.json")
    if name not in _TIMM_FILES or not os.path.isfile(config):
        return model == "inceptionv3"
    try:
        with open(config, "rb") as file:
            told = json.loads(file.read(_LONGEST_HEADER))["pretrained_cfg"]
        statistics = np.array([told["mean"], told["std"]], np.float64)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{source}: {config} beside it does not tell mean and std of pixels as timm's do; give "
            "the file another name to have it passed over"
        ) from error
    if statistics.shape == (2, 3) and np.allclose(statistics, [MEAN, DEVIATION]):
        return False
    if statistics.shape == (2, 3) and np.allclose(statistics, 0.5) and model == "inceptionv3":
        return True
    raise UsageError(f"{source}: {config} tells of pixels that are normalised otherwise than here")


def _take_over_normalization(arrays: dict[str, np.ndarray]) -> None:
    """Lets an Inception v3 that was trained on pixels in [-1, 1] take them normalised as usual.

    The first convolution, which pads nothing, absorbs the scale; what is added to every output, the
    batch norm that follows subtracts with its mean.
    """
    mean, deviation = np.array(MEAN, np.float32), np.array(DEVIATION, np.float32)
    weight = arrays["features.0.0.weight"]  # (32, 3, 3, 3)
    shift = np.einsum("oihw,i->o", weight, 2 * mean - 1)
    arrays["features.0.0.weight"] = weight * (2 * deviation)[:, None, None]
    arrays["features.0.1.running_mean"] = arrays["features.0.1.running_mean"] - shift
