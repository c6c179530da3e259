"""Converts the state of a learner to named arrays and numbers, and restores it from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import gluon

from embedding_learning.errors import TrainingError, UsageError
from embedding_learning.model.weights.params_file import set_parameters
from embedding_learning.training.health import advise_lower_rate
from embedding_learning.training.learner import Learner, initialize_kvstore

# Attributes that some optimizers have in addition to their arrays: Nadam's schedule, LARS's last
# rate, LBSGD's progress. The number of updates of each parameter is saved separately.
_OPTIMIZER_NUMBERS = ("num_update", "m_schedule", "last_lr", "cur_lr", "lbmult", "admult")
# MXNet continues to count from it, in 32 bits.
_LARGEST_COUNT = 2**30
# More than any machine has.
_MOST_DEVICES = 1024


def gather(learner: Learner) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns all that the learner's next step depends on. Blocks until all steps are done.

    All workers call it, and all get the same.

    Returns
    -------
    (dict of str to ndarray, dict)
        The arrays ``network/NAME``, ``statistics/DEVICE/NAME`` (batch norm's running statistics,
        which each device has for itself; the devices of all workers are numbered), ``beta`` or
        ``proxies``, which the loss learns, and ``optimizer/TRAINER/PARAMETER/INDEX``. And for JSON
        the number of devices, each optimizer's numbers and, with float16, the scale of the loss.

    Raises
    ------
    TrainingError
        If any of it is not finite: even a finite gradient can lead to an infinite weight, and no
        run could resume from that.
    """
    # oneDNN reorders weights in place after a forward pass has used them, even when the output is
    # ready already; an array read meanwhile would be partly in one order, partly in the other.
    mx.nd.waitall()
    arrays: dict[str, np.ndarray] = {}
    for name, parameter in _network(learner).items():
        # Float16 weights are the rounded ones; the optimizer's arrays hold the float32 masters.
        values = parameter.data(learner.devices[0]).asnumpy()
        arrays[f"network/{name}"] = values.astype(np.float32, copy=False)
    arrays.update(_gather_statistics(learner))
    for name, parameter in _parameter_of_loss(learner).items():
        arrays[name] = parameter.data(learner.devices[0]).asnumpy()
    if learner.memory:
        of_memory = learner.memory.arrays().items()
        arrays.update({name: array.asnumpy() for name, array in of_memory})
    optimizers = []
    for number, trainer in enumerate(learner.trainers):
        updater = _updaters(trainer)[0]
        for index, state in updater.states.items():
            for leaf, array in _leaves(state):
                arrays[f"optimizer/{number}/{index}/{leaf}"] = array.asnumpy()
        counts, numbers = _update_counts(trainer.optimizer), _numbers(trainer.optimizer)
        optimizers.append({"counts": counts, "numbers": numbers})
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise TrainingError(
                f"{name} is not finite any more; {advise_lower_rate(learner.learned_name)}"
            )
    state = {"devices": learner.device_count, "optimizers": optimizers}
    if learner.loss_scale:
        state["loss_scale"] = learner.loss_scale.state()
    return arrays, state


def _gather_statistics(learner: Learner) -> dict[str, np.ndarray]:
    """Returns batch norm's running statistics of every device of all workers."""
    statistics = {
        name: np.stack([data.asnumpy() for data in parameter.list_data()])
        for name, parameter in _network(learner).items()
        if parameter.grad_req == "null"
    }
    if not statistics:
        return {}
    # All in one array, since each exchange between workers takes time.
    devices = len(learner.devices)
    rows = np.concatenate([values.reshape(devices, -1) for values in statistics.values()], axis=1)
    ends = np.cumsum([values[0].size for values in statistics.values()])
    parts = np.split(learner.group.gather(rows), ends[:-1], axis=1)
    return {
        f"statistics/{number}/{name}": part[number].reshape(values.shape[1:])
        for (name, values), part in zip(statistics.items(), parts)
        for number in range(learner.device_count)
    }


def restore(
    learner: Learner, arrays: dict[str, np.ndarray], state: dict[str, Any], source: str
) -> None:
    """Gives a new learner the state that `gather` returned.

    If the number of devices differs, all get the mean of the running statistics. Raises UsageError,
    which begins with `source`, if arrays or numbers are missing, left over, misshapen or not
    finite.
    """
    remaining = _load(arrays, source)
    set_parameters(_network(learner), _pop_prefix(remaining, "network/"), source, learner.devices)
    of_loss = _parameter_of_loss(learner)
    saved_of_loss = {name: remaining.pop(name) for name in of_loss if name in remaining}
    # With --negatives batch it is on the first device alone.
    devices = learner.devices[:1] if learner.shares_batch else learner.devices
    set_parameters(of_loss, saved_of_loss, source, devices)
    _restore_memory(learner, remaining, source)
    # With several devices a trainer first copies the arrays of the first one to the others.
    for trainer in learner.trainers:
        initialize_kvstore(trainer)
    _restore_statistics(learner, remaining, state, source)
    try:
        for number, trainer in enumerate(learner.trainers):
            arrays_of_trainer = _pop_prefix(remaining, f"optimizer/{number}/")
            saved = state["optimizers"][number]
            _restore_optimizer(trainer, arrays_of_trainer, saved, learner.devices)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(f"{source}: the optimizer's state does not fit the run") from error
    if learner.loss_scale:
        try:
            learner.loss_scale.restore(state.get("loss_scale"))
        except ValueError as error:
            raise UsageError(f"{source}: holds no valid scale of the loss") from error
    if remaining:
        raise UsageError(f"{source}: holds {min(remaining)}, which does not belong to this run")


def _restore_memory(learner: Learner, remaining: dict[str, mx.nd.NDArray], source: str) -> None:
    if not learner.memory:
        return
    saved = {name: remaining.pop(name) for name in learner.memory.arrays() if name in remaining}
    try:
        learner.memory.restore(saved)
    except ValueError as error:
        raise UsageError(f"{source}: does not hold a fitting memory") from error


def _load(arrays: dict[str, np.ndarray], source: str) -> dict[str, mx.nd.NDArray]:
    """Returns the arrays as MXNet's. Raises UsageError for other types, empty and infinite ones."""
    for name, array in arrays.items():
        if array.dtype != np.float32 or not array.size or not np.isfinite(array).all():
            raise UsageError(f"{source}: {name} is not an array of finite numbers (float32)")
    return {name: mx.nd.array(array) for name, array in arrays.items()}


def _restore_statistics(
    learner: Learner, remaining: dict[str, mx.nd.NDArray], state: dict[str, Any], source: str
) -> None:
    devices = state.get("devices")
    if not isinstance(devices, int) or not 0 < devices <= _MOST_DEVICES:
        raise UsageError(f"{source}: holds no valid number of devices")
    statistics = [_pop_prefix(remaining, f"statistics/{number}/") for number in range(devices)]
    for name, parameter in _network(learner).items():
        if parameter.grad_req != "null":
            continue
        values = [arrays.pop(name, None) for arrays in statistics]
        if any(value is None or value.shape != parameter.shape for value in values):
            raise UsageError(f"{source}: does not hold a fitting {name} for each device")
        if devices != learner.device_count:
            values = [sum(values) / devices] * learner.device_count
        for data, value in zip(parameter.list_data(), values[learner.first_device :]):
            value.copyto(data)
    if any(statistics):
        raise UsageError(f"{source}: holds statistics that do not belong to this run")


def _restore_optimizer(
    trainer: gluon.Trainer,
    arrays: dict[str, mx.nd.NDArray],
    saved: dict[str, Any],
    devices: list[mx.Context],
) -> None:
    """Raises Python's own errors, such as KeyError and ValueError, if something does not fit."""
    optimizer = trainer.optimizer
    counts = {
        _check_count(int(index)): _check_count(count) for index, count in saved["counts"].items()
    }
    for updater in _updaters(trainer):
        remaining = dict(arrays)
        for index in counts:
            parameter = trainer._params[index]
            weight = parameter.list_data()[0]
            state = optimizer.create_state_multi_precision(index, weight)
            for leaf, array in _leaves(state):
                value = remaining.pop(f"{index}/{leaf}")
                if value.shape != array.shape:
                    raise ValueError(f"{index}/{leaf}")
                value.copyto(array)
            updater.states[index] = state
            # At its first use the updater moves the state to the device of the weights.
            updater.states_synced[index] = False
        if remaining:
            raise KeyError(min(remaining))
    ids = {0, *(device.device_id for device in devices)}
    optimizer._all_index_update_counts = {number: dict(counts) for number in ids}
    optimizer._index_update_count = optimizer._all_index_update_counts[0]
    numbers = saved["numbers"]
    if numbers.keys() != _numbers(optimizer).keys():
        raise KeyError("numbers")
    for name, value in numbers.items():
        if name == "num_update":
            _check_count(value)
        elif value is None:  # LARS starts with None.
            if getattr(optimizer, name) is not None:
                raise ValueError(name)
        elif not math.isfinite(value):
            raise ValueError(name)
        setattr(optimizer, name, value)


def _network(learner: Learner) -> dict[str, gluon.Parameter]:
    parameters: dict[str, gluon.Parameter] = learner.net._collect_params_with_prefix()
    return parameters


def _parameter_of_loss(learner: Learner) -> dict[str, gluon.Parameter]:
    """Returns what the loss learns, beta or proxies, by its name; empty if it learns nothing."""
    return {learner.learned_name: learner.parameter} if learner.learned_name else {}


def _updaters(trainer: gluon.Trainer) -> list[mx.optimizer.Updater]:
    """Returns the holders of the optimizer's arrays, as `Trainer.save_states` finds them."""
    initialize_kvstore(trainer)
    return [trainer._kvstore._updater] if trainer._update_on_kvstore else trainer._updaters


def _update_counts(optimizer: mx.optimizer.Optimizer) -> dict[str, int]:
    """Returns how often each parameter was updated, which is the same on all devices."""
    counts: dict[str, int] = {}
    for of_device in optimizer._all_index_update_counts.values():
        for index, count in of_device.items():
            counts[str(index)] = max(count, counts.get(str(index), 0))
    return counts


def _numbers(optimizer: mx.optimizer.Optimizer) -> dict[str, Any]:
    """Returns the numbers of the optimizer's state, except the counts of updates."""
    return {
        name: getattr(optimizer, name) for name in _OPTIMIZER_NUMBERS if hasattr(optimizer, name)
    }


def _check_count(value: Any) -> int:
    """Returns the value. Raises ValueError if it is not a count."""
    if not isinstance(value, int) or not 0 <= value < _LARGEST_COUNT:
        raise ValueError(value)
    return value


def _leaves(state: Any, index: str = "0") -> Iterator[tuple[str, mx.nd.NDArray]]:
    """Iterates over the arrays of an optimizer's state: none, one, or nested lists of them."""
    if isinstance(state, mx.nd.NDArray):
        yield index, state
    elif isinstance(state, (list, tuple)):
        for number, part in enumerate(state):
            yield from _leaves(part, f"{index}.{number}")


def _pop_prefix(arrays: dict[str, mx.nd.NDArray], prefix: str) -> dict[str, mx.nd.NDArray]:
    """Removes the arrays whose names begin with the prefix; returns them by the rest."""
    names = [name for name in arrays if name.startswith(prefix)]
    return {name[len(prefix) :]: arrays.pop(name) for name in names}
