"""A learner's state as named arrays and numbers, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import gluon

from embedding_learning.errors import TrainingError, UsageError
from embedding_learning.model.weights.params_file import set_parameters
from embedding_learning.training.learner import Learner, initialize_kvstore

# What optimizers keep beside their arrays, where they have it: Nadam's schedule, LARS's last rate,
# LBSGD's progress. How often each parameter was updated is kept apart.
_OPTIMIZER_NUMBERS = ("num_update", "m_schedule", "last_lr", "cur_lr", "lbmult", "admult")
# MXNet counts on from there, in 32 bits.
_LARGEST_COUNT = 2**30
# What no machine has.
_MOST_DEVICES = 1024


def gather(learner: Learner) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All that the learner's next step depends on; waits for the steps before it.

    All processes of a job call it, and have the same in the end.

    Returns
    -------
    (dict of str to ndarray, dict)
        ``network/NAME``, ``statistics/DEVICE/NAME`` (what each device counts for itself: batch
        norm's running statistics; the devices of all processes are numbered), ``beta`` and
        ``optimizer/TRAINER/PARAMETER/PLACE``; and as JSON knows it the number of devices, each
        optimizer's counts and, with float16, the scale of the loss.

    Raises TrainingFault if any of it is not finite: even a finite gradient can lead to an infinite
    weight, and nothing could go on from that.
    """
    # oneDNN rearranges weights in place after a forward pass has used them, even when its output is
    # there already; an array read meanwhile would be half of one order and half of the other.
    mx.nd.waitall()
    arrays: dict[str, np.ndarray] = {}
    for name, parameter in _network(learner).items():
        # Float16 weights are the rounded ones; their float32 masters are the optimizer's.
        values = parameter.data(learner.devices[0]).asnumpy()
        arrays[f"network/{name}"] = values.astype(np.float32, copy=False)
    arrays.update(_statistics(learner))
    if isinstance(learner.beta, gluon.Parameter):
        arrays["beta"] = learner.beta.data(learner.devices[0]).asnumpy()
    optimizers = []
    for number, trainer in enumerate(learner.trainers):
        updater = _updaters(trainer)[0]
        for index, state in updater.states.items():
            for place, array in _leaves(state):
                arrays[f"optimizer/{number}/{index}/{place}"] = array.asnumpy()
        counts, numbers = _counts(trainer.optimizer), _numbers(trainer.optimizer)
        optimizers.append({"counts": counts, "numbers": numbers})
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise TrainingError(
                f"{name} is not finite any more; most often --lr or --lr-beta is too high: try a "
                "tenth, from the last checkpoint with --resume"
            )
    told = {"devices": learner.device_count, "optimizers": optimizers}
    if learner.loss_scale:
        told["loss_scale"] = learner.loss_scale.state()
    return arrays, told


def _statistics(learner: Learner) -> dict[str, np.ndarray]:
    """What each device of each process has counted for itself."""
    counted = {
        name: np.stack([data.asnumpy() for data in parameter.list_data()])
        for name, parameter in _network(learner).items()
        if parameter.grad_req == "null"
    }
    if not counted:
        return {}
    # All in one, since each exchange between processes takes its time.
    devices = len(learner.devices)
    rows = np.concatenate([values.reshape(devices, -1) for values in counted.values()], axis=1)
    ends = np.cumsum([values[0].size for values in counted.values()])
    parts = np.split(learner.group.gather(rows), ends[:-1], axis=1)
    return {
        f"statistics/{number}/{name}": part[number].reshape(values.shape[1:])
        for (name, values), part in zip(counted.items(), parts)
        for number in range(learner.device_count)
    }


def restore(
    learner: Learner, arrays: dict[str, np.ndarray], state: dict[str, Any], source: str
) -> None:
    """Makes a new learner what another was when `gather` was called.

    On another number of devices what each had counted for itself is averaged. Raises UsageError,
    which begins with `source`, if arrays or numbers are missing, left over, misshapen or not
    finite.
    """
    left = _loaded(arrays, source)
    set_parameters(_network(learner), _taken(left, "network/"), source, learner.devices)
    if isinstance(learner.beta, gluon.Parameter):
        beta = {"beta": left.pop("beta")} if "beta" in left else {}
        set_parameters({"beta": learner.beta}, beta, source, learner.devices)
    # With several devices a trainer begins by giving all of them what the first one has.
    for trainer in learner.trainers:
        initialize_kvstore(trainer)
    _restore_statistics(learner, left, state, source)
    try:
        for number, trainer in enumerate(learner.trainers):
            told = state["optimizers"][number]
            prefix = f"optimizer/{number}/"
            _restore_optimizer(trainer, _taken(left, prefix), told, learner.devices)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(f"{source}: the optimizer's state does not fit the run") from error
    if learner.loss_scale:
        try:
            learner.loss_scale.restore(state.get("loss_scale"))
        except ValueError as error:
            raise UsageError(f"{source}: tells no scale of the loss") from error
    if left:
        raise UsageError(f"{source}: has {min(left)}, which is no part of this run")


def _loaded(arrays: dict[str, np.ndarray], source: str) -> dict[str, mx.nd.NDArray]:
    """The arrays as MXNet's; it knows no other types and no empty ones."""
    for name, array in arrays.items():
        if array.dtype != np.float32 or not array.size or not np.isfinite(array).all():
            raise UsageError(f"{source}: {name} is no array of finite numbers (float32)")
    return {name: mx.nd.array(array) for name, array in arrays.items()}


def _restore_statistics(
    learner: Learner, left: dict[str, mx.nd.NDArray], state: dict[str, Any], source: str
) -> None:
    devices = state.get("devices")
    if not isinstance(devices, int) or not 0 < devices <= _MOST_DEVICES:
        raise UsageError(f"{source}: tells no number of devices")
    counted = [_taken(left, f"statistics/{number}/") for number in range(devices)]
    for name, parameter in _network(learner).items():
        if parameter.grad_req != "null":
            continue
        values = [arrays.pop(name, None) for arrays in counted]
        if any(value is None or value.shape != parameter.shape for value in values):
            raise UsageError(f"{source}: has no fitting {name} for each device")
        if devices != learner.device_count:
            values = [sum(values) / devices] * learner.device_count
        for data, value in zip(parameter.list_data(), values[learner.first_device :]):
            value.copyto(data)
    if any(counted):
        raise UsageError(f"{source}: has statistics that are no part of this run")


def _restore_optimizer(
    trainer: gluon.Trainer,
    arrays: dict[str, mx.nd.NDArray],
    told: dict[str, Any],
    devices: list[mx.Context],
) -> None:
    """Raises some of Python's own errors if something does not fit."""
    optimizer = trainer.optimizer
    counts = {_count(int(index)): _count(count) for index, count in told["counts"].items()}
    for updater in _updaters(trainer):
        remaining = dict(arrays)
        for index in counts:
            parameter = trainer._params[index]
            weight = parameter.list_data()[0]
            state = optimizer.create_state_multi_precision(index, weight)
            for place, array in _leaves(state):
                value = remaining.pop(f"{index}/{place}")
                if value.shape != array.shape:
                    raise ValueError(f"{index}/{place}")
                value.copyto(array)
            updater.states[index] = state
            # Its first use puts the state on the device of the weights.
            updater.states_synced[index] = False
        if remaining:
            raise KeyError(min(remaining))
    ids = {0, *(device.device_id for device in devices)}
    optimizer._all_index_update_counts = {number: dict(counts) for number in ids}
    optimizer._index_update_count = optimizer._all_index_update_counts[0]
    numbers = told["numbers"]
    if numbers.keys() != _numbers(optimizer).keys():
        raise KeyError("numbers")
    for name, value in numbers.items():
        if name == "num_update":
            _count(value)
        elif value is None:  # LARS begins so.
            if getattr(optimizer, name) is not None:
                raise ValueError(name)
        elif not math.isfinite(value):
            raise ValueError(name)
        setattr(optimizer, name, value)


def _network(learner: Learner) -> dict[str, gluon.Parameter]:
    parameters: dict[str, gluon.Parameter] = learner.net._collect_params_with_prefix()
    return parameters


def _updaters(trainer: gluon.Trainer) -> list[mx.optimizer.Updater]:
    """Where a trainer keeps its optimizer's arrays, as `Trainer.save_states` finds them."""
    initialize_kvstore(trainer)
    return [trainer._kvstore._updater] if trainer._update_on_kvstore else trainer._updaters


def _counts(optimizer: mx.optimizer.Optimizer) -> dict[str, int]:
    """How often each parameter was updated; all devices count the same."""
    counts: dict[str, int] = {}
    for of_device in optimizer._all_index_update_counts.values():
        for index, count in of_device.items():
            counts[str(index)] = max(count, counts.get(str(index), 0))
    return counts


def _numbers(optimizer: mx.optimizer.Optimizer) -> dict[str, Any]:
    """What the optimizer keeps beside arrays and counts."""
    return {
        name: getattr(optimizer, name) for name in _OPTIMIZER_NUMBERS if hasattr(optimizer, name)
    }


def _count(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < _LARGEST_COUNT:
        raise ValueError(value)
    return value


def _leaves(state: Any, place: str = "0") -> Iterator[tuple[str, mx.nd.NDArray]]:
    """The arrays of an optimizer's state: none, one, or nested lists of them."""
    if isinstance(state, mx.nd.NDArray):
        yield place, state
    elif isinstance(state, (list, tuple)):
        for number, part in enumerate(state):
            yield from _leaves(part, f"{place}.{number}")


def _taken(arrays: dict[str, mx.nd.NDArray], prefix: str) -> dict[str, mx.nd.NDArray]:
    """Removes the arrays whose names begin with the prefix; their names go on without it."""
    names = [name for name in arrays if name.startswith(prefix)]
    return {name[len(prefix) :]: arrays.pop(name) for name in names}
