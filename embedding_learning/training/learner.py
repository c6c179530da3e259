"""The learner, which a run trains: network, sampling, loss, its parameter and the optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Union

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from mxnet.gluon import HybridBlock

from embedding_learning.distributed.worker_group import WorkerGroup
from embedding_learning.model.losses import rowwise_distance
from embedding_learning.model.net import MarginNet
from embedding_learning.model.sampling import Sampling
from embedding_learning.training.memory import Memory
from embedding_learning.training.mixed_precision import LossScale, finiteness

# What the loss learns, named beta or proxies; a constant beta; or None where the loss has neither.
LossParameter = Union[gluon.Parameter, float, None]
# The numbers that a step packs into one array, so that workers add them up in one exchange.
_LOSS, _FINITE, _STOP = range(3)


@dataclass
class Step:
    """A training step that was queued; its values can be read once the devices have computed it.

    Attributes
    ----------
    packed : list of NDArray (3,)
        They add up to the loss of all devices; a number that is finite if their losses, embeddings
        and gradients all are; and how many workers have been asked to stop.
    embeddings : list of NDArray (n, d)
        Those that each loss was computed from: of each device, or of all together.
    triplets : list of tuple
        What each loss was computed from: anchors, positives, negatives (m, d) and, where
        the loss has one, beta as it was before the step's update and the anchors' rows of it, or
        None if beta is constant. Empty if the loss takes no triplets.
    has_overflowed : bool
        Its gradients were not finite for the scale of the loss, and its update was left out.
    """

    packed: list[mx.nd.NDArray]
    embeddings: list[mx.nd.NDArray]
    triplets: list[tuple[Any, ...]]
    has_overflowed: bool = False

    def wait(self) -> None:
        """Blocks until the step is done."""
        self.packed[0].wait_to_read()

    @property
    def loss(self) -> float:
        """The loss summed over all devices. Blocks until the step is done."""
        return self._sum(_LOSS)

    @property
    def is_finite(self) -> bool:
        """Whether all losses, embeddings and gradients are finite. Blocks until it is done."""
        return math.isfinite(self._sum(_FINITE))

    @property
    def is_stop_requested(self) -> bool:
        """Whether any worker had been asked to stop. Blocks until the step is done."""
        return self._sum(_STOP) > 0

    def _sum(self, index: int) -> float:
        return sum(float(of_device.asnumpy()[index]) for of_device in self.packed)


@dataclass
class Learner:
    """The network, sampling, loss, its parameter and optimizers, on the devices of this process.

    Attributes
    ----------
    net : MarginNet
        From images to embeddings.
    parameter : Parameter, float or None
        What the loss learns: beta (b,) or proxies (classes, d); a constant beta; or None.
    loss : HybridBlock
        One of `losses` or `label_losses`.
    trainers : list of Trainer
        The trainer of the network and, if the loss learns a parameter, that of it.
    devices : list of Context
        The devices of this process.
    sampling : Sampling, optional
        Makes triplets of embeddings. None: the loss takes the embeddings and their classes.
    skip_nonfinite : bool
        Skip the updates of batches whose loss, embeddings or gradients are not finite.
    group : WorkerGroup
        The workers that train together.
    loss_scale : LossScale, optional
        For a network in float16. All workers have the same.
    beta_terms : ndarray of int (values, j), optional
        The entries of a learned beta that add up to each class's or image's value (equation 7 of
        Wu et al., 2017); by default each entry is a value by itself.
    memory : Memory, optional
        Earlier images, of which the sampling takes negatives too.
    shares_batch : bool
        The loss sees the embeddings of all devices and workers together, on the first device. It
        is the same in all workers, which must draw the same random numbers for it.
    """

    net: MarginNet
    parameter: LossParameter
    loss: HybridBlock
    trainers: list[gluon.Trainer]
    devices: list[mx.Context]
    sampling: Sampling | None = None
    skip_nonfinite: bool = False
    group: WorkerGroup = field(default_factory=WorkerGroup)
    loss_scale: LossScale | None = None
    beta_terms: np.ndarray | None = None
    memory: Memory | None = None
    shares_batch: bool = False

    @property
    def loss_count(self) -> int:
        """How many losses add up to that of a step: one for each device, or one for all."""
        return 1 if self.shares_batch else self.device_count

    @property
    def _copies_of_loss(self) -> int:
        """How many workers compute the same loss."""
        return self.group.size if self.shares_batch else 1

    @property
    def device_count(self) -> int:
        """Devices of all workers; each has an equal part of a batch."""
        return len(self.devices) * self.group.size

    @property
    def first_device(self) -> int:
        """The number of the first device of this process among those of all workers."""
        return len(self.devices) * self.group.rank if self.group.size > 1 else 0

    def step(self, batch: mx.io.DataBatch, is_stop_requested: bool = False) -> Step:
        """Makes one update from this worker's part of a batch, queued without waiting.

        The batch has the images, their classes and, if beta is not one per class, the rows of beta
        that belong to them. All workers learn `is_stop_requested`. With `skip_nonfinite` or
        `loss_scale` the step blocks until it is done: only then can an update be left out.
        """
        scale = self.loss_scale.value if self.loss_scale else 1.0
        former = self._copy_statistics() if self.skip_nonfinite or self.loss_scale else []
        losses, labeled, triplets = self._forward(batch)
        embeddings = [part[0] for part in labeled]
        # Only after the forward pass has been queued on every device, so that all compute at once.
        autograd.backward(
            losses,
            self.loss_scale.initial_gradients(self.devices[: len(losses)])
            if self.loss_scale
            else None,
        )
        if self.loss_scale:
            # Before they are examined, since their sum over the devices may overflow, too.
            for trainer in self.trainers:
                trainer.allreduce_grads()
        packed = [
            self._pack(*of_device, is_stop_requested)
            for of_device in zip_longest(self.devices, losses, embeddings)
        ]
        step = Step(self.group.queue_sum(packed), embeddings, triplets)
        if self.loss_scale:
            step.has_overflowed = self.loss_scale.update(step.is_finite)
        if step.has_overflowed or (self.skip_nonfinite and not step.is_finite):
            for statistics, copy in former:
                copy.copyto(statistics)
            return step
        if self.memory:
            # With `shares_batch` it has all rows already.
            joined = labeled[0] if self.shares_batch else self._join(labeled)
            self.memory.push(*joined[:2])
        self._update(batch.data[0].shape[0] * self.group.size * scale)
        return step

    def _forward(
        self, batch: mx.io.DataBatch
    ) -> tuple[list[mx.nd.NDArray], list[tuple[mx.nd.NDArray, ...]], list[tuple[Any, ...]]]:
        """Computes the losses of this worker's part of a batch, recorded for the backward pass.

        Returns, for each loss: the loss (1,); what it was computed from, embeddings (n, d), classes
        (n,) and rows of beta; and the triplets as in `Step`. Does not block.
        """
        images = gluon.utils.split_and_load(batch.data[0], self.devices)
        classes, beta_rows = (
            gluon.utils.split_and_load(labels, self.devices)
            for labels in (batch.label[0], batch.label[-1])
        )
        losses, labeled, triplets = [], [], []
        with autograd.record():
            # One device after the other, as random numbers are drawn in this order.
            parts = ((self.net(x), *labels) for x, *labels in zip(images, classes, beta_rows))
            for part in [self._join(list(parts))] if self.shares_batch else parts:
                arguments = self._loss_arguments(*part)
                losses.append(self.loss(*arguments))
                labeled.append(part)
                if self.sampling:
                    triplets.append(self._with_beta_copied(arguments))
        return losses, labeled, triplets

    def _update(self, divisor: float) -> None:
        """Updates what is learned with its gradients, divided by images and loss scale."""
        for trainer, copies in zip(self.trainers, (1, self._copies_of_loss)):
            update = trainer.update if self.loss_scale else trainer.step
            # What the loss learns has its whole gradient in each worker that computes this loss.
            update(divisor * copies)

    def _join(self, parts: list[tuple[mx.nd.NDArray, ...]]) -> tuple[mx.nd.NDArray, ...]:
        """Returns the rows of all devices and workers, in order, on the first device.

        Each part has arrays of as many rows: embeddings (n, d), classes (n,) and rows of beta.
        Gradients flow to the embeddings of this worker. Does not block.
        """
        device = self.devices[0]
        arrays = zip(*(tuple(array.as_in_context(device) for array in part) for part in parts))
        joined = tuple(mx.nd.concat(*of_devices, dim=0) for of_devices in arrays)
        return joined if self.group.size == 1 else self._join_workers(*joined)

    def _join_workers(
        self, embeddings: mx.nd.NDArray, *labels: mx.nd.NDArray
    ) -> tuple[mx.nd.NDArray, ...]:
        """Returns the rows of all workers; those of the others carry no gradient."""
        count, dimension = embeddings.shape
        with autograd.pause():
            columns = [embeddings, *(array.reshape((count, -1)) for array in labels)]
            # In one array, since each exchange between workers takes time.
            rows = self.group.queue_gather(mx.nd.concat(*columns, dim=1))
            ends = np.cumsum([array.shape[1] for array in columns])
            all_labels = [
                rows[:, int(begin) : int(end)].reshape((-1, *array.shape[1:]))
                for begin, end, array in zip(ends, ends[1:], labels)
            ]
            parts = [
                rows[count * rank : count * (rank + 1), :dimension]
                for rank in range(self.group.size)
            ]
        parts[self.group.rank] = embeddings
        return (mx.nd.concat(*parts, dim=0), *all_labels)

    def _loss_arguments(
        self, embeddings: mx.nd.NDArray, classes: mx.nd.NDArray, beta_rows: mx.nd.NDArray
    ) -> tuple[Any, ...]:
        """Returns what the loss takes: triplets or labeled embeddings, and what it learns.

        `embeddings` (n, d), with their `classes` (n,) and rows of beta (n,) or (n, j).
        """
        parameter: mx.nd.NDArray | float | None = self.parameter
        is_learned = isinstance(parameter, gluon.Parameter)
        if isinstance(parameter, gluon.Parameter):
            parameter = parameter.data(embeddings.context)
        if self.sampling is None:
            return (embeddings, classes) if parameter is None else (embeddings, classes, parameter)
        anchor_rows, *triplets, _ = self.sampling(embeddings, *self._memory_arguments(classes))
        if parameter is None:
            return tuple(triplets)
        return (*triplets, parameter, beta_rows.take(anchor_rows) if is_learned else None)

    def _memory_arguments(self, classes: mx.nd.NDArray) -> tuple[mx.nd.NDArray, ...]:
        """Returns what the sampling takes of the memory, on the device of the classes."""
        if not self.memory:
            return ()
        memory = self.memory.embeddings, self.memory.labels
        return (*(array.as_in_context(classes.context) for array in memory), classes)

    def _with_beta_copied(self, triplets: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the triplets with a copy of a learned beta, which the update changes in place."""
        if not self.learned_name:
            return triplets
        anchors, positives, negatives, beta, beta_rows = triplets
        with autograd.pause():
            return anchors, positives, negatives, beta.copy(), beta_rows

    def measure(self, step: Step) -> dict[str, np.ndarray]:
        """Returns the distances of the step's pairs on all devices, (m,) each. Blocks until done.

        `positive_distances` and `negative_distances`, and `active`: whether each term of the loss
        is above zero, those of positive pairs first where it has such. Without a sampling there are
        no such pairs, and all are empty.
        """
        positive, negative, active = [], [], []
        for triplet in step.triplets:
            anchors, positives, negatives = triplet[:3]
            positive.append(rowwise_distance(mx.nd, anchors, positives).asnumpy())
            negative.append(rowwise_distance(mx.nd, anchors, negatives).asnumpy())
            active += [term.asnumpy() > 0 for term in self.loss.terms(*triplet)]
        return {
            name: np.concatenate(arrays) if arrays else np.empty(0)
            for name, arrays in (
                ("positive_distances", positive),
                ("negative_distances", negative),
                ("active", active),
            )
        }

    @property
    def learned_name(self) -> str | None:
        """The name of what the loss learns, beta or proxies; None if it learns nothing."""
        return self.parameter.name if isinstance(self.parameter, gluon.Parameter) else None

    def beta_values(self) -> np.ndarray | float | None:
        """Returns beta of each class or image, the constant, or None. Blocks until it is there."""
        if not isinstance(self.parameter, gluon.Parameter):
            return self.parameter
        if self.learned_name != "beta":
            return None
        values: np.ndarray = self.parameter.data(self.devices[0]).asnumpy()
        return values if self.beta_terms is None else values[self.beta_terms].sum(axis=1)

    def start(self) -> None:
        """Gives all devices of all workers the weights of the first one.

        Raises TrainingError if the weights differ afterwards.
        """
        for trainer in self.trainers:
            initialize_kvstore(trainer)
        mx.nd.waitall()
        # Running statistics may differ: a run may be resumed within an epoch.
        weights = (
            data.asnumpy().tobytes()
            for parameter in self._learned_parameters()
            for data in parameter.list_data()
        )
        self.group.check_equal("the first weights", weights)

    def _pack(
        self,
        device: mx.Context,
        loss: mx.nd.NDArray | None,
        embeddings: mx.nd.NDArray | None,
        is_stop_requested: bool,
    ) -> mx.nd.NDArray:
        """Returns a device's part of `Step.packed`. Not every device computes a loss."""
        gradients = [p.grad(device) for p in self._learned_parameters() if device in p.list_ctx()]
        halves = [gradient for gradient in gradients if gradient.dtype == np.float16]
        arrays = [loss, embeddings, *(g for g in gradients if g.dtype != np.float16)]
        arrays = [array for array in arrays if array is not None]
        # Whatever is not finite shows in them; multi_all_finite takes twenty times as long.
        finite = mx.nd.multi_sum_sq(*arrays, num_arrays=len(arrays)).sum()
        if halves:
            finite = finite + finiteness(halves)
        stop = mx.nd.full((1,), float(is_stop_requested), device)
        share = mx.nd.zeros((1,), device) if loss is None else loss
        if self._copies_of_loss > 1:
            share = share / self._copies_of_loss
        return mx.nd.concat(share, finite, stop, dim=0)

    def _learned_parameters(self) -> Iterator[gluon.Parameter]:
        """Iterates over the parameters that the trainers update."""
        for trainer in self.trainers:
            yield from (p for p in trainer._params if p.grad_req != "null")

    def average_running_statistics(self) -> None:
        """Gives every device the mean of batch norm's running statistics. Blocks until done.

        The network that is evaluated and saved is then one and the same.
        """
        if self.device_count == 1:
            return
        mx.nd.waitall()
        statistics = self._running_statistics()
        if not statistics:
            return
        own = [sum(data.asnumpy() for data in arrays).ravel() for arrays in statistics]
        mean = self.group.sum(np.concatenate(own)) / np.float32(self.device_count)
        ends = np.cumsum([part.size for part in own])
        for arrays, values in zip(statistics, np.split(mean, ends[:-1])):
            for data in arrays:
                data[:] = values.reshape(data.shape)

    def _running_statistics(self) -> list[list[mx.nd.NDArray]]:
        """Batch norm's running statistics, on each device."""
        parameters = self.net.collect_params().values()
        return [p.list_data() for p in parameters if p.grad_req == "null"]

    def _copy_statistics(self) -> list[tuple[mx.nd.NDArray, mx.nd.NDArray]]:
        """Batch norm's running statistics on each device, and copies of them."""
        return [(data, data.copy()) for arrays in self._running_statistics() for data in arrays]


def initialize_kvstore(trainer: gluon.Trainer) -> None:
    """Gives all devices the first one's parameters now, not only at the trainer's first step."""
    if not trainer._kv_initialized:
        trainer._init_kvstore()
    if trainer._params_to_init:
        trainer._init_params()
