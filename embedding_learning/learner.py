"""What a run trains: the network, the boundaries beta, the loss and their optimizers."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any, Union

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from embedding_learning import backbones
from embedding_learning.losses import MarginLoss, distances
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
    losses : list of NDArray (1,)
        Each device's.
    squares : list of NDArray (arrays,)
        The sum of the squares of each device's loss, embeddings and every gradient.
    embeddings : list of NDArray (n, d)
        Each device's.
    triples : list of tuple
        Each device's anchors, positives, negatives (m, d) and the anchors' labels (m,), or None
        if beta is one constant.
    """

    losses: list[mx.nd.NDArray]
    squares: list[mx.nd.NDArray]
    embeddings: list[mx.nd.NDArray]
    triples: list[tuple[Any, ...]]

    def is_finite(self) -> bool:
        """Whether loss, embeddings and gradients are; waits for the step."""
        return all(np.isfinite(squares.asnumpy()).all() for squares in self.squares)


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
    skip_nonfinite : bool
        Do without the updates of batches whose loss, embeddings or gradients are not finite.
    """

    net: MarginNet
    beta: Beta
    loss: MarginLoss
    trainers: list[gluon.Trainer]
    devices: list[mx.Context]
    skip_nonfinite: bool = False

    def step(self, batch: mx.io.DataBatch) -> Step:
        """One update from one batch, queued without waiting for any device.

        With `skip_nonfinite` it has to wait: only then can an update be left out.
        """
        images = gluon.utils.split_and_load(batch.data[0], self.devices)
        labels = gluon.utils.split_and_load(batch.label[0], self.devices)
        former = self._statistics() if self.skip_nonfinite else []
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
        autograd.backward(losses)
        squares = [self._squares(*parts) for parts in zip(self.devices, losses, embeddings)]
        step = Step(losses, squares, embeddings, triples)
        if self.skip_nonfinite and not step.is_finite():
            for statistics, copy in former:
                copy.copyto(statistics)
            return step
        for trainer in self.trainers:
            trainer.step(batch.data[0].shape[0])
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

    def _squares(
        self, device: mx.Context, loss: mx.nd.NDArray, embeddings: mx.nd.NDArray
    ) -> mx.nd.NDArray:
        gradients = [
            parameter.grad(device)
            for trainer in self.trainers
            for parameter in trainer._params
            if parameter.grad_req != "null"
        ]
        arrays = [loss, embeddings, *gradients]
        # Whatever is not finite shows in them; multi_all_finite takes twenty times as long.
        return mx.nd.multi_sum_sq(*arrays, num_arrays=len(arrays))

    def _statistics(self) -> list[tuple[mx.nd.NDArray, mx.nd.NDArray]]:
        """Batch norm's running statistics on each device, and copies of them."""
        return [
            (statistics, statistics.copy())
            for parameter in self.net.collect_params().values()
            if parameter.grad_req == "null"
            for statistics in parameter.list_data()
        ]


def build(options: Namespace, classes: int, net: MarginNet, devices: list[mx.Context]) -> Learner:
    """Beta, loss and optimizers for a network and a number of training classes."""
    beta = build_beta(options, classes, devices)
    loss = MarginLoss(options.margin, options.nu)
    for block in (net, loss):
        block.hybridize(static_alloc=True, static_shape=True)
    return Learner(
        net,
        beta,
        loss,
        build_trainers(options, net, beta),
        devices,
        skip_nonfinite=options.on_nonfinite == "skip",
    )


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
        raise UsageError(
            f"--crop-size {options.crop_size}: {options.model} does not run with images of this "
            f"size; try another ({_first_line(error)})"
        ) from error
    try:
        net.embed(image).wait_to_read()
    except mx.base.MXNetError as error:
        raise UsageError(
            f"--embed-dim, --feat-dim: layers of this size do not run ({_first_line(error)})"
        ) from error
    if resumes_network(options):
        arrays = read_parameters(options.resume, "--resume")
        source = f"--resume {options.resume}"
        set_parameters(net._collect_params_with_prefix(), arrays, source, devices)
    return net


def build_beta(options: Namespace, classes: int, devices: list[mx.Context]) -> Beta:
    """One boundary per training class, learned, or the constant if its learning rate is 0."""
    if not options.lr_beta:
        return float(options.beta)
    beta = gluon.Parameter("beta", shape=(classes,))
    beta.initialize(mx.init.Constant(options.beta), ctx=devices)
    return beta


def build_trainers(options: Namespace, net: MarginNet, beta: Beta) -> list[gluon.Trainer]:
    """The network's trainer and, where beta is learned, beta's."""
    settings = {"learning_rate": options.lr, "wd": options.wd}
    if options.optimizer == "sgd":
        settings["momentum"] = options.momentum
    if options.optimizer == "adam":
        settings["epsilon"] = 1e-7
    trainers = [
        gluon.Trainer(net.collect_params(), options.optimizer, settings, kvstore=options.kvstore)
    ]
    if isinstance(beta, gluon.Parameter):
        settings = {"learning_rate": options.lr_beta, "momentum": 0.9}
        trainers.append(gluon.Trainer([beta], "sgd", settings, kvstore=options.kvstore))
    return trainers


def find_devices(options: Namespace) -> list[mx.Context]:
    """The GPUs asked for, or CPU contexts. Raises UsageError if a GPU is not there."""
    if not options.gpus:
        return [mx.cpu(number) for number in range(options.cpu_contexts)]
    try:
        count = mx.context.num_gpus()
    except mx.base.MXNetError:
        count = 0
    if max(options.gpus) >= count:
        there = f"has {count} GPUs, numbered from 0" if count else "shows MXNet no GPU"
        cuda = mx.runtime.Features().is_enabled("CUDA")
        remedy = "" if cuda else "install MXNet's GPU build, pip install -r requirements-gpu.txt; "
        raise UsageError(
            f"--gpus {','.join(map(str, options.gpus))}: this machine {there}; {remedy}"
            "name others, or leave --gpus out to train on the CPU"
        )
    return [mx.gpu(number) for number in options.gpus]


def check_names(options: Namespace) -> None:
    """Raises UsageError if there is no such backbone or optimizer, or no NCCL in this MXNet."""
    backbones.check_name(options.model)
    optimizers = sorted(set(mx.optimizer.Optimizer.opt_registry) - _NOT_FOR_TRAINING)
    if options.optimizer.lower() not in optimizers:
        raise UsageError(
            f"--optimizer {options.optimizer}: unknown; choose of {', '.join(optimizers)}"
        )
    if options.kvstore == "nccl" and not mx.runtime.Features().is_enabled("NCCL"):
        raise UsageError("--kvstore nccl: this build of MXNet has no NCCL; use device or local")


def _first_line(error: Exception) -> str:
    """What MXNet says, without where in its source it says so."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Check failed" in line or "rror:" in line]
    return (told or lines or [type(error).__name__])[-1]
