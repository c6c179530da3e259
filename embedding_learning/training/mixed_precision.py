"""Mixed precision: layers in float16, weights updated in float32, the loss scaled.

After Micikevicius et al., Mixed Precision Training (ICLR 2018), section 3.
"""

from __future__ import annotations

import logging
from typing import Any

import mxnet as mx
from mxnet.gluon import nn

from embedding_learning.config import TrainConfig
from embedding_learning.errors import UsageError

# The first value, the growth and the largest value are those of MXNet's scaler, mxnet.contrib.amp;
# PyTorch's GradScaler starts and grows likewise.
_FIRST, _LEAST, _MOST = 2.0**16, 1.0, 2.0**24
_GOOD_STEPS_TO_GROW = 2000
# multi_all_finite has room for so many arrays, and does not check their number.
_CHECKED_AT_ONCE = 200
# LARS computes the norms of gradients and weights in float16, where MXNet's CPU code lets the
# squares overflow: its results could not be tested. All others compute in float32 alone.
_WITHOUT_MASTER_WEIGHTS = {"lars"}


class LossScale:
    """Dynamic loss scaling for float16: small gradients survive since the loss is multiplied.

    It halves whenever a gradient is not finite, and doubles after 2000 steps in which all were
    (section 3.2 of the paper). A power of two, so that dividing by it rounds nothing.

    Attributes
    ----------
    value : float
        Between 1 and 2**24.
    good_steps : int
        Finite steps since the value changed last.
    """

    def __init__(self) -> None:
        self.value = _FIRST
        self.good_steps = 0

    def initial_gradients(self, devices: list[mx.Context]) -> list[mx.nd.NDArray]:
        """Returns the initial gradient of each device's backward pass, (1,), instead of ones."""
        return [mx.nd.full((1,), self.value, device) for device in devices]

    def update(self, is_finite: bool) -> bool:
        """Adapts the scale after a backward pass; returns whether to skip the step's update.

        The update is skipped if the scale was too high. At the smallest scale a step that is not
        finite has another cause.
        """
        if is_finite:
            self.good_steps += 1
            if self.good_steps == _GOOD_STEPS_TO_GROW:
                self.value, self.good_steps = min(_MOST, 2 * self.value), 0
            return False
        self.good_steps = 0
        if self.value == _LEAST:
            return False
        self.value /= 2
        logging.info(
            "A gradient was not finite in float16: the batch is skipped, and the loss is scaled "
            "by %d from now on.",
            self.value,
        )
        return True

    def state(self) -> dict[str, Any]:
        """Returns a JSON-serializable state."""
        return {"value": self.value, "good_steps": self.good_steps}

    def restore(self, state: Any) -> None:
        """Restores what `state` returned. Raises ValueError for anything else."""
        fits = isinstance(state, dict) and state.keys() == self.state().keys()
        if not fits or type(state["value"]) is not float or type(state["good_steps"]) is not int:
            raise ValueError(state)
        powers = {2.0**exponent for exponent in range(25)}
        if state["value"] not in powers or not 0 <= state["good_steps"] < _GOOD_STEPS_TO_GROW:
            raise ValueError(state)
        self.value, self.good_steps = state["value"], state["good_steps"]


def check(config: TrainConfig) -> None:
    """Raises UsageError if the flags ask for float16 where it does not work."""
    if config.model.dtype != "float16":
        return
    if config.optimizer.name in _WITHOUT_MASTER_WEIGHTS:
        raise UsageError(
            f"--dtype float16: not with --optimizer {config.optimizer.name}, which reads float16 "
            "gradients; use another, such as sgd or adam"
        )
    if config.devices.kvstore == "dist_async":
        raise UsageError(
            "--dtype float16: not with --kvstore dist_async, where servers update and no worker "
            "sees the sum of the gradients first; use dist_sync"
        )
    if not config.devices.gpus and not _has_cpu_convolution():
        raise UsageError(
            "--dtype float16: MXNet has no convolution in float16 for CPUs; train on GPUs with "
            "--gpus, or leave --dtype out"
        )


def _has_cpu_convolution() -> bool:
    """Whether MXNet can compute a convolution in float16 on the CPU."""
    layer = nn.Conv2D(1, 1, in_channels=1)
    layer.initialize(ctx=mx.cpu())
    layer.cast("float16")
    try:
        layer(mx.nd.zeros((1, 1, 1, 1), mx.cpu(), "float16")).wait_to_read()
    except mx.base.MXNetError:
        return False
    return True


def finiteness(arrays: list[mx.nd.NDArray]) -> mx.nd.NDArray:
    """Returns a number, (1,) in float32, that is finite if all float16 arrays are. Does not block.

    The sum of squares, which serves float32 arrays, would overflow.
    """
    begins = range(0, len(arrays), _CHECKED_AT_ONCE)
    parts = [arrays[begin : begin + _CHECKED_AT_ONCE] for begin in begins]
    finite = [mx.nd.multi_all_finite(*part, num_arrays=len(part)) for part in parts]
    # Each is 1 or 0.
    return (1.0 / mx.nd.concat(*finite, dim=0)).sum()
