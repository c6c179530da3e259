"""Loads ImageNet weights: Gluon's files, and PyTorch's of networks that are built like Gluon's.

The first bytes of a file decide its format: a Gluon .params file, a .safetensors file, or a state
dictionary that torch.save wrote (.pth). None of them can run code.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import mxnet as mx
import numpy as np
from safetensors import SafetensorError, safe_open

from embedding_learning.errors import UsageError
from embedding_learning.model.weights.binary_reader import (
    LONGEST_NAME,
    BinaryReader,
    open_untrusted,
)
from embedding_learning.model.weights.catalog import DEVIATION, MEAN
from embedding_learning.model.weights.params_file import (
    PARAMS_START,
    read_parameters,
    set_parameters,
)
from embedding_learning.model.weights.torch_file import (
    LEGACY_START,
    ZIP_START,
    read_state_dictionary,
    read_tensor,
)
from embedding_learning.model.weights.torchvision_names import (
    NameMap,
    find_name_map,
    map_names,
    normalize_names,
)

Parameters = dict[str, mx.gluon.Parameter]

_SAFETENSORS_DTYPES = {"F16": "float16", "F32": "float32", "F64": "float64"}
_LONGEST_HEADER = 2**20  # bytes
# What Git has in the place of a large file that was not fetched.
_LFS_START = b"version https://git-lfs"
_START_BYTES = 32
# timm's names of files with weights; its config.json lies next to them.
_TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
# Batch norm's number of training steps, which is not needed here.
_STEP_COUNT = ".num_batches_tracked"


class _LazyTensor(NamedTuple):
    """A tensor in a file; `read` returns its values."""

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
    """Sets the parameters of a classifier's features to the weights in a file.

    Logs that the file has float16 values, and that its pixels are normalized in another way.

    Parameters
    ----------
    path, flag : str
        The file, and the flag that named it.
    model : str
        The name in Gluon or gluoncv.
    features : dict of Parameter
        By their names in a file of the whole classifier; all shapes are known.
    head : set of str
        The names of the classifier's other parameters, which are ignored.
    devices : list of Context

    Raises
    ------
    UsageError
        If the file cannot be read or is of another network. Names the first parameter that is
        missing, surplus or of another shape. Then nothing is changed.
    """
    source = f"{flag} {path}"
    with open_untrusted(path, flag) as file:
        start = file.read(_START_BYTES)
    if start.startswith((ZIP_START, LEGACY_START)):
        open_tensors = _open_torch_file
    elif start[8:9] == b"{":
        open_tensors = _open_safetensors_file
    elif start.startswith(_LFS_START):
        raise UsageError(
            f"{source}: is not the weights but a pointer of Git LFS to them; fetch them with "
            "git lfs pull"
        )
    elif not start.startswith(PARAMS_START):
        raise UsageError(
            f"{source}: is damaged, or neither a Gluon parameter file, a .safetensors file nor a "
            "file of torch.save; name a file with the weights"
        )
    else:
        arrays = read_parameters(path, flag)
        arrays = {name: array for name, array in arrays.items() if name not in head}
        if any(array.dtype == np.float16 for array in arrays.values()):
            _log_half_precision(source)
        set_parameters(features, arrays, source, devices)
        return
    with open_tensors(path, flag) as tensors:
        name_map = find_name_map(model)
        if name_map is None:
            raise UsageError(
                f"{source}: is a PyTorch file, and torchvision has no network that is built like "
                f"{model}; give a Gluon .params file, or name torchvision's with --model"
            )
        names = _match_names(source, model, name_map, tensors, list(features))
        arrays = {
            name: _read_values(source, theirs, tensors[theirs], features[name].shape)
            for name, theirs in names.items()
        }
        if any(tensors[theirs].dtype == "float16" for theirs in names.values()):
            _log_half_precision(source)
    if _expects_pixels_around_zero(path, source, model):
        _adapt_first_layer(arrays)
        logging.info("%s: the first layer takes over that its pixels are in [-1, 1].", source)
    set_parameters(
        features, {name: mx.nd.array(array) for name, array in arrays.items()}, source, devices
    )


def _log_half_precision(source: str) -> None:
    logging.info("%s: holds float16 values, which become float32.", source)


def _match_names(
    source: str,
    model: str,
    name_map: NameMap,
    tensors: dict[str, _LazyTensor],
    features: list[str],
) -> dict[str, str]:
    """Returns the name in the file of each parameter of the features.

    Raises UsageError unless each parameter has one tensor, and each tensor one parameter, apart
    from the head and the step counts.
    """
    needed = map_names(model, features)
    theirs_needed = set(needed.values())
    in_file: dict[str, str] = {}
    surplus = []
    for name, theirs in normalize_names(name_map, list(tensors)).items():
        is_count = theirs.endswith(_STEP_COUNT) and _running_mean(theirs) in theirs_needed
        if theirs in theirs_needed and theirs not in in_file:
            in_file[theirs] = name
        elif not is_count and not theirs.startswith(name_map.heads):
            surplus.append(name)
    missing = [theirs for theirs in needed.values() if theirs not in in_file]
    if missing or surplus:
        faults = [
            f"{verb} {names[0][:100]}{f' and {len(names) - 1} more' if names[1:] else ''}"
            for verb, names in (("lacks", missing), ("also has", surplus))
            if names
        ]
        raise UsageError(f"{source}: is not of {model}: it {', '.join(faults)}; see --model")
    return {name: in_file[theirs] for name, theirs in needed.items()}


def _running_mean(count: str) -> str:
    """Returns the name of the running mean of the batch norm that a step count belongs to."""
    return f"{count[: -len(_STEP_COUNT)]}.running_mean"


def _read_values(source: str, name: str, tensor: _LazyTensor, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 values of the shape. Raises UsageError if the tensor has others.

    timm has a convolution over the whole image in place of a flattened image and a dense layer.
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
    with np.errstate(over="ignore"):  # of float64; set_parameters refuses it as not finite
        return tensor.read().astype(np.float32).reshape(shape)


@contextmanager
def _open_torch_file(path: str, flag: str) -> Iterator[dict[str, _LazyTensor]]:
    with open_untrusted(path, flag, "file of torch.save") as file:
        try:
            state = read_state_dictionary(file)
        except ValueError as error:
            raise UsageError(f"{flag} {path}: {error}") from error
        yield {
            name: _LazyTensor(
                tensor.storage.dtype, tensor.shape, partial(read_tensor, file, state, name)
            )
            for name, tensor in state.tensors.items()
        }


@contextmanager
def _open_safetensors_file(path: str, flag: str) -> Iterator[dict[str, _LazyTensor]]:
    with open_untrusted(path, flag) as file:
        (length,) = BinaryReader(file, "has no header").read_integers("Q")
    try:
        if length > _LONGEST_HEADER:
            raise ValueError("a header longer than any network's")
        with safe_open(path, framework="numpy") as file:
            tensors = {}
            names = file.keys()
            for name in names:
                if not name.isprintable() or len(name) > LONGEST_NAME:
                    raise ValueError("not the name of a tensor")
                tensor = file.get_slice(name)
                dtype = tensor.get_dtype()
                tensors[name] = _LazyTensor(
                    _SAFETENSORS_DTYPES.get(dtype, dtype),
                    tuple(tensor.get_shape()),
                    partial(file.get_tensor, name),
                )
            yield tensors
    except (SafetensorError, ValueError, OSError) as error:
        raise UsageError(f"{flag} {path}: is cut off, damaged or no safetensors file") from error


def _expects_pixels_around_zero(path: str, source: str, model: str) -> bool:
    """Returns whether the weights were trained on pixels in [-1, 1], not on normalized ones.

    timm distributes the file with a config.json that says so. Without it, only the weights of
    Inception v3 were: all of torchvision's and the first of timm's.
    """
    folder, name = os.path.split(path)
    config = os.path.join(folder, "config.json")
    if name not in _TIMM_FILES or not os.path.isfile(config):
        return model == "inceptionv3"
    try:
        with open(config, "rb") as file:
            settings = json.loads(file.read(_LONGEST_HEADER))["pretrained_cfg"]
        statistics = np.array([settings["mean"], settings["std"]], np.float64)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{source}: {config} next to it has no mean and std of pixels as timm writes them; "
            "rename the weights to ignore it"
        ) from error
    if statistics.shape == (2, 3) and np.allclose(statistics, [MEAN, DEVIATION]):
        return False
    if statistics.shape == (2, 3) and np.allclose(statistics, 0.5) and model == "inceptionv3":
        return True
    raise UsageError(f"{source}: {config} describes pixels that are normalized in another way")


def _adapt_first_layer(arrays: dict[str, np.ndarray]) -> None:
    """Lets an Inception v3 that was trained on pixels in [-1, 1] take normalized ones.

    The first convolution, which has no padding, includes the scale. The shift is a constant added
    to each output channel; the batch norm that follows subtracts it with its mean.
    """
    mean, deviation = np.array(MEAN, np.float32), np.array(DEVIATION, np.float32)
    weight = arrays["features.0.0.weight"]  # (32, 3, 3, 3)
    shift = np.einsum("oihw,i->o", weight, 2 * mean - 1)
    arrays["features.0.0.weight"] = weight * (2 * deviation)[:, None, None]
    arrays["features.0.1.running_mean"] = arrays["features.0.1.running_mean"] - shift


def expect_pixels_around_zero(arrays: dict[str, np.ndarray]) -> None:
    """Lets an Inception v3 for normalized pixels take pixels in [-1, 1], as PyTorch's files do.

    The inverse of :func:`_adapt_first_layer`, up to rounding.
    """
    mean, deviation = np.array(MEAN, np.float32), np.array(DEVIATION, np.float32)
    weight = arrays["features.0.0.weight"] / (2 * deviation)[:, None, None]
    shift = np.einsum("oihw,i->o", weight, 2 * mean - 1)
    arrays["features.0.0.weight"] = weight
    arrays["features.0.1.running_mean"] = arrays["features.0.1.running_mean"] + shift
