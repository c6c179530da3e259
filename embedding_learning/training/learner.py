"""What a run trains: the network, the boundaries beta, the loss and their optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Union

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from mxnet.gluon import HybridBlock

from embedding_learning.distributed.worker_group import WorkerGroup
from embedding_learning.model.losses import distances
from embedding_learning.model.net import MarginNet
from embedding_learning.training.mixed_precision import LossScale, finiteness

# What boundaries are made of, learned, or one constant; None where the loss has no boundary.
Beta = Union[gluon.Parameter, float, None]


@dataclass
class Step:
    """What a training step leaves to be read once the devices have come to it.

    Attributes
    ----------
    signals : list of NDArray (3,)
        They add up to the loss of all devices; a number that is finite if their losses, embeddings
        and gradients all are; and how many processes have been asked to stop.
    embeddings : list of NDArray (n, d)
        Each device's.
    triples : list of tuple
        What each device's loss was computed of: anchors, positives, negatives (m, d) and, where
        there is one, beta as it was before the step's update and the anchors' labels, or None if it
        is one constant.
    overflowed : bool
        Its gradients were not finite for the scale of the loss, and its update was left out.
    """

    signals: list[mx.nd.NDArray]
    embeddings: list[mx.nd.NDArray]
    triples: list[tuple[Any, ...]]
    overflowed: bool = False

    def _signal(self, place: int) -> float:
        """Waits for the step."""
        return sum(float(signals.asnumpy()[place]) for signals in self.signals)

    @property
    def loss(self) -> float:
        """Of all devices, added up; waits for the step."""
        return self._signal(0)

    def is_finite(self) -> bool:
        """Whether all losses, embeddings and gradients are; waits for the step."""
        return math.isfinite(self._signal(1))

    def is_to_stop(self) -> bool:
        """Whether any process had been asked to stop; waits for the step."""
        return self._signal(2) > 0


@dataclass
class Learner:
    """All that learns, on its devices.

    Attributes
    ----------
    net : MarginNet
    beta : Parameter (b,), float or None
        What the loss's boundaries are made of, the constant if it is not learned, or None if the
        loss has none.
    loss : HybridBlock
        One of `losses`.
    trainers : list of Trainer
        The network's and, where beta is learned, beta's.
    devices : list of Context
        Of this process.
    skip_nonfinite : bool
        Do without the updates of batches whose loss, embeddings or gradients are not finite.
    group : WorkerGroup
        The processes that learn together.
    loss_scale : LossScale, optional
        Of a network in float16. All processes have the same.
    beta_terms : ndarray of int (boundaries, j), optional
        The entries of a learned beta that add up to each boundary; else each is one by itself.
    """

    net: MarginNet
    beta: Beta
    loss: HybridBlock
    trainers: list[gluon.Trainer]
    devices: list[mx.Context]
    skip_nonfinite: bool = False
    group: WorkerGroup = field(default_factory=WorkerGroup)
    loss_scale: LossScale | None = None
    beta_terms: np.ndarray | None = None

    @property
    def shares(self) -> int:
        """Devices of all processes; each has one share of a batch."""
        return len(self.devices) * self.group.size

    @property
    def first_share(self) -> int:
        """The number of the first device here among them."""
        return len(self.devices) * self.group.rank if self.group.size > 1 else 0

    def step(self, batch: mx.io.DataBatch, is_to_stop: bool = False) -> Step:
        """One update from this process's part of a batch, queued without waiting for any device.

        `is_to_stop` is told to all processes. With `skip_nonfinite` or `loss_scale` the step has to
        wait: only then can an update be left out.
        """
        images = gluon.utils.split_and_load(batch.data[0], self.devices)
        labels = gluon.utils.split_and_load(batch.label[0], self.devices)
        scale = self.loss_scale.value if self.loss_scale else 1.0
        former = self._statistics() if self.skip_nonfinite or self.loss_scale else []
        losses, embeddings, triples = [], [], []
        with autograd.record():
            for x, y in zip(images, labels):
                anchor_rows, anchors, positives, negatives, embedded = self.net(x)
                triple = (anchors, positives, negatives, *self._boundary(y, anchor_rows))
                losses.append(self.loss(*triple))
                embeddings.append(embedded)
                triples.append(self._kept(triple, x.context))
        # Only after the forward pass has been queued on every device, so that all compute at once.
        autograd.backward(
            losses, self.loss_scale.head_gradients(self.devices) if self.loss_scale else None
        )
        if self.loss_scale:
            # Before they are looked at, since their sum over the devices may overflow, too.
            for trainer in self.trainers:
                trainer.allreduce_grads()
        signals = [
            self._signals(*parts, is_to_stop) for parts in zip(self.devices, losses, embeddings)
        ]
        step = Step(self.group.queue_sum(signals), embeddings, triples)
        if self.loss_scale:
            step.overflowed = self.loss_scale.see(step.is_finite())
        if step.overflowed or (self.skip_nonfinite and not step.is_finite()):
            for statistics, copy in former:
                copy.copyto(statistics)
            return step
        for trainer in self.trainers:
            update = trainer.update if self.loss_scale else trainer.step
            update(batch.data[0].shape[0] * self.group.size * scale)
        return step

    def _boundary(self, labels: mx.nd.NDArray, anchor_rows: mx.nd.NDArray) -> tuple[Any, ...]:
        """What the loss takes beside triples: beta and, where it is learned, whose it is."""
        if self.beta is None:
            return ()
        is_learned = isinstance(self.beta, gluon.Parameter)
        return self.beta, labels.take(anchor_rows) if is_learned else None

    def _kept(self, triple: tuple[Any, ...], device: mx.Context) -> tuple[Any, ...]:
        """The triple with a copy of a learned beta, which the step's update changes in place."""
        if not isinstance(self.beta, gluon.Parameter):
            return triple
        anchors, positives, negatives, beta, labels = triple
        with autograd.pause():
            return anchors, positives, negatives, beta.data(device).copy(), labels

    def measure(self, step: Step) -> dict[str, np.ndarray]:
        """The step's pairs, all devices', (m,) each; waits for the step.

        `positive_distances` and `negative_distances`, and `active`: whether each term of the loss
        is above zero, those of positive pairs first where it has such.
        """
        positive, negative, active = [], [], []
        for triple in step.triples:
            anchors, positives, negatives = triple[:3]
            positive.append(distances(mx.nd, anchors, positives).asnumpy())
            negative.append(distances(mx.nd, anchors, negatives).asnumpy())
            active += [term.asnumpy() > 0 for term in self.loss.terms(*triple)]
        return {
            "positive_distances": np.concatenate(positive),
            "negative_distances": np.concatenate(negative),
            "active": np.concatenate(active),
        }

    def boundaries(self) -> np.ndarray | float | None:
        """All boundaries, or the constant, or None; waits for the steps before."""
        if not isinstance(self.beta, gluon.Parameter):
            return self.beta
        values = self.beta.data(self.devices[0]).asnumpy()
        return values if self.beta_terms is None else values[self.beta_terms].sum(axis=1)

    def start(self) -> None:
        """Gives all devices of all processes the first one's weights.

        Raises TrainingFault if the weights differ afterwards.
        """
        for trainer in self.trainers:
            connect(trainer)
        mx.nd.waitall()
        # What batch norm has counted may differ: a run may go on from within an epoch.
        weights = (data.asnumpy().tobytes() for p in self._learned() for data in p.list_data())
        self.group.check_equal("the first weights", weights)

    def _signals(
        self, device: mx.Context, loss: mx.nd.NDArray, embeddings: mx.nd.NDArray, is_to_stop: bool
    ) -> mx.nd.NDArray:
        """A device's share of a step's signals."""
        gradients = [parameter.grad(device) for parameter in self._learned()]
        halves = [gradient for gradient in gradients if gradient.dtype == np.float16]
        arrays = [loss, embeddings, *(g for g in gradients if g.dtype != np.float16)]
        # Whatever is not finite shows in them; multi_all_finite takes twenty times as long.
        finite = mx.nd.multi_sum_sq(*arrays, num_arrays=len(arrays)).sum()
        if halves:
            finite = finite + finiteness(halves)
        stop = mx.nd.full((1,), float(is_to_stop), device)
        return mx.nd.concat(loss, finite, stop, dim=0)

    def _learned(self) -> Iterator[gluon.Parameter]:
        """What the trainers update."""
        for trainer in self.trainers:
            yield from (p for p in trainer._params if p.grad_req != "null")

    def unite_statistics(self) -> None:
        """Gives every device the mean of what batch norm has counted on each; waits for the steps.

        The network that is evaluated and saved is then one and the same.
        """
        if self.shares == 1:
            return
        mx.nd.waitall()
        counted = self._counted()
        if not counted:
            return
        own = [sum(data.asnumpy() for data in arrays).ravel() for arrays in counted]
        mean = self.group.sum(np.concatenate(own)) / np.float32(self.shares)
        ends = np.cumsum([part.size for part in own])
        for arrays, values in zip(counted, np.split(mean, ends[:-1])):
            for data in arrays:
                data[:] = values.reshape(data.shape)

    def _counted(self) -> list[list[mx.nd.NDArray]]:
        """Batch norm's running statistics, on each device."""
        parameters = self.net.collect_params().values()
        return [p.list_data() for p in parameters if p.grad_req == "null"]

    def _statistics(self) -> list[tuple[mx.nd.NDArray, mx.nd.NDArray]]:
        """Batch norm's running statistics on each device, and copies of them."""
        return [(data, data.copy()) for arrays in self._counted() for data in arrays]


def connect(trainer: gluon.Trainer) -> None:
    """Before its first step a trainer gives all devices what the first one has; here and now."""
    if not trainer._kv_initialized:
        trainer._init_kvstore()
    if trainer._params_to_init:
        trainer._init_params()
