"""What a run trains: the network, the boundaries beta, the loss and their optimizers."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Union

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from embedding_learning import backbones, gpus, mixed_precision
from embedding_learning.job import Job
from embedding_learning.losses import MarginLoss, distances
from embedding_learning.mixed_precision import LossScale, finiteness
from embedding_learning.model import ImageNormalization, MarginNet
from embedding_learning.options import UsageError, resumes_network
from embedding_learning.parameter_files import read_parameters, set_parameters

# MXNet's dummy, and one that takes no weight decay.
_NOT_FOR_TRAINING = {"test", "groupadagrad"}
# One learned boundary per class, or one constant.
Beta = Union[gluon.Parameter, float]


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
        Each device's anchors, positives, negatives (m, d) and the anchors' labels (m,), or None
        if beta is one constant.
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
    beta : Parameter (classes,) or float
        One boundary for each training class, or the constant if it is not learned.
    loss : MarginLoss
    trainers : list of Trainer
        The network's and, where beta is learned, beta's.
    devices : list of Context
        Of this process.
    skip_nonfinite : bool
        Do without the updates of batches whose loss, embeddings or gradients are not finite.
    job : Job
        The processes that learn together.
    loss_scale : LossScale, optional
        Of a network in float16. All processes have the same.
    """

    net: MarginNet
    beta: Beta
    loss: MarginLoss
    trainers: list[gluon.Trainer]
    devices: list[mx.Context]
    skip_nonfinite: bool = False
    job: Job = field(default_factory=Job)
    loss_scale: LossScale | None = None

    @property
    def shares(self) -> int:
        """Devices of all processes; each has one share of a batch."""
        return len(self.devices) * self.job.size

    @property
    def first_share(self) -> int:
        """The number of the first device here among them."""
        return len(self.devices) * self.job.rank if self.job.size > 1 else 0

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
                learned = isinstance(self.beta, gluon.Parameter)
                anchor_labels = y.take(anchor_rows) if learned else None
                losses.append(self.loss(anchors, positives, negatives, self.beta, anchor_labels))
                embeddings.append(embedded)
                triples.append((anchors, positives, negatives, anchor_labels))
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
        step = Step(self.job.queue_total(signals), embeddings, triples)
        if self.loss_scale:
            step.overflowed = self.loss_scale.see(step.is_finite())
        if step.overflowed or (self.skip_nonfinite and not step.is_finite()):
            for statistics, copy in former:
                copy.copyto(statistics)
            return step
        for trainer in self.trainers:
            update = trainer.update if self.loss_scale else trainer.step
            update(batch.data[0].shape[0] * self.job.size * scale)
        return step

    def measure(self, step: Step) -> dict[str, np.ndarray]:
        """The step's pairs, all devices', (m,) each; waits for the step.

        `positive_distances` and `negative_distances`, and `active`: whether each pair has a loss,
        positive ones first.
        """
        positive, negative, active = [], [], []
        for anchors, positives, negatives, labels in step.triples:
            positive.append(distances(mx.nd, anchors, positives).asnumpy())
            negative.append(distances(mx.nd, anchors, negatives).asnumpy())
            losses = self.loss.pair_losses(anchors, positives, negatives, self.beta, labels)
            active += [pair_loss.asnumpy() > 0 for pair_loss in losses]
        return {
            "positive_distances": np.concatenate(positive),
            "negative_distances": np.concatenate(negative),
            "active": np.concatenate(active),
        }

    def boundaries(self) -> np.ndarray | float:
        """Beta of each class, (classes,), or the constant; waits for the steps before."""
        if isinstance(self.beta, gluon.Parameter):
            return self.beta.data(self.devices[0]).asnumpy()
        return self.beta

    def start(self, batch_size: int) -> None:
        """Gives all devices of all processes the first one's weights.

        `batch_size` is that of a step, over all devices of the processes that make it. Raises
        TrainingFault if the weights differ afterwards.
        """
        for trainer in self.trainers:
            # Servers that update have to know it before the first step.
            trainer.optimizer.rescale_grad = 1 / batch_size
            connect(trainer)
        mx.nd.waitall()
        # What batch norm has counted may differ: a run may go on from within an epoch.
        weights = (data.asnumpy().tobytes() for p in self._learned() for data in p.list_data())
        self.job.check_equal("the first weights", weights)

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
        mean = self.job.total(np.concatenate(own)) / np.float32(self.shares)
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


def build(
    options: Namespace,
    classes: int,
    net: MarginNet,
    devices: list[mx.Context],
    job: Job | None = None,
) -> Learner:
    """Beta, loss and optimizers for a network and a number of training classes."""
    job = job or Job()
    beta = build_beta(options, classes, devices)
    loss = MarginLoss(options.margin, options.nu)
    for block in (net, loss):
        block.hybridize(static_alloc=True, static_shape=True)
    trainers = build_trainers(options, net, beta, job)
    loss_scale = LossScale() if options.dtype == "float16" else None
    skip = options.on_nonfinite == "skip"
    return Learner(net, beta, loss, trainers, devices, skip, job, loss_scale)


def build_network(
    options: Namespace, devices: list[mx.Context], is_resumed: bool = False
) -> MarginNet:
    """The network with the weights it starts from, on the devices.

    `is_resumed`: its weights will be those of a checkpoint.
    """
    if is_resumed or resumes_network(options):
        # Its weights replace the pretrained ones, but not the rate at which these learn.
        backbone = backbones.create(options.model, devices)
        if options.use_pretrained or options.pretrained_params:
            backbones.slow_down_convolutions(backbone)
    else:
        backbone = backbones.create(
            options.model, devices, options.use_pretrained, options.pretrained_params
        )
    normalize = ImageNormalization()
    net = MarginNet(
        backbone,
        options.embed_dim,
        options.batch_k,
        options.feat_dim,
        normalize_weights=options.normalize_weights,
        preprocess=normalize,
    )
    # What came with the backbone is initialized already and stays.
    fresh = [p for p in net.collect_params().values() if p._data is None]
    for parameter in fresh:
        parameter.initialize(ctx=devices, default_init=mx.init.Xavier(magnitude=2))
    # The first image settles the sizes that depend on the crop.
    image = mx.nd.zeros((1, 3, options.crop_size, options.crop_size), devices[0], np.uint8)
    try:
        backbone(normalize(image)).wait_to_read()
    except mx.base.MXNetError as error:
        if gpus.is_out_of_memory(error):
            raise
        raise UsageError(
            f"--crop-size {options.crop_size}: {options.model} does not run with images of this "
            f"size; try another ({_first_line(error)})"
        ) from error
    try:
        net.embed(image).wait_to_read()
    except mx.base.MXNetError as error:
        if gpus.is_out_of_memory(error):
            raise
        raise UsageError(
            f"--embed-dim, --feat-dim: layers of this size do not run ({_first_line(error)})"
        ) from error
    if resumes_network(options):
        arrays = read_parameters(options.resume, "--resume")
        source = f"--resume {options.resume}"
        set_parameters(net._collect_params_with_prefix(), arrays, source, devices)
    if options.dtype != "float32":
        net.cast(options.dtype)
    return net


def build_beta(options: Namespace, classes: int, devices: list[mx.Context]) -> Beta:
    """One boundary per training class, learned, or the constant if its learning rate is 0."""
    if not options.lr_beta:
        return float(options.beta)
    beta = gluon.Parameter("beta", shape=(classes,))
    beta.initialize(mx.init.Constant(options.beta), ctx=devices)
    return beta


def build_trainers(
    options: Namespace, net: MarginNet, beta: Beta, job: Job | None = None
) -> list[gluon.Trainer]:
    """The network's trainer and, where beta is learned, beta's."""
    job = job or Job()
    settings = {"learning_rate": options.lr, "wd": options.wd}
    if options.optimizer == "sgd":
        settings["momentum"] = options.momentum
    if options.optimizer == "adam":
        settings["epsilon"] = 1e-7
    at = {}
    if options.dtype == "float16":
        settings["multi_precision"] = True
        # The gradients have to be looked at between their sum and the update.
        at["update_on_kvstore"] = False
    kvstore = job.kvstore(options.kvstore, trainer=0)
    parameters = net.collect_params()
    trainers = [gluon.Trainer(parameters, options.optimizer, settings, kvstore=kvstore, **at)]
    if isinstance(beta, gluon.Parameter):
        settings = {"learning_rate": options.lr_beta, "momentum": 0.9}
        kvstore = job.kvstore(options.kvstore, trainer=1)
        trainers.append(gluon.Trainer([beta], "sgd", settings, kvstore=kvstore, **at))
    return trainers


def connect(trainer: gluon.Trainer) -> None:
    """Before its first step a trainer gives all devices what the first one has; here and now."""
    if not trainer._kv_initialized:
        trainer._init_kvstore()
    if trainer._params_to_init:
        trainer._init_params()


def find_devices(options: Namespace) -> list[mx.Context]:
    """The GPUs asked for, or CPU contexts. Raises UsageError if a GPU is not there."""
    if not options.gpus:
        return [mx.cpu(number) for number in range(options.cpu_contexts)]
    if not mx.runtime.Features().is_enabled("CUDA"):
        raise UsageError(
            f"--gpus {','.join(map(str, options.gpus))}: this machine shows MXNet no GPU; install "
            "MXNet's GPU build, pip install -r requirements-gpu.txt, or leave --gpus out to train "
            "on the CPU"
        )
    gpus.check(options.gpus)
    return [mx.gpu(number) for number in options.gpus]


def check_names(options: Namespace) -> None:
    """Raises UsageError if there is no such backbone or optimizer, or no NCCL or float16 here."""
    backbones.check_name(options.model)
    optimizers = sorted(set(mx.optimizer.Optimizer.opt_registry) - _NOT_FOR_TRAINING)
    if options.optimizer.lower() not in optimizers:
        raise UsageError(
            f"--optimizer {options.optimizer}: unknown; choose of {', '.join(optimizers)}"
        )
    if options.kvstore == "nccl" and not mx.runtime.Features().is_enabled("NCCL"):
        raise UsageError("--kvstore nccl: this build of MXNet has no NCCL; use device or local")
    mixed_precision.check(options)


def _first_line(error: Exception) -> str:
    """What MXNet says, without where in its source it says so."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Check failed" in line or "rror:" in line]
    return (told or lines or [type(error).__name__])[-1]
