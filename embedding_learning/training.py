"""The loop: epochs, steps, schedules, when to evaluate and when to save."""

from __future__ import annotations

import time
from argparse import Namespace
from collections import deque
from typing import Union

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from embedding_learning import backbones, parameter_files, reporting
from embedding_learning.data import Data, open_data, read_split
from embedding_learning.evaluation import recall_at_k
from embedding_learning.iterators import SequentialBatches
from embedding_learning.losses import MarginLoss
from embedding_learning.model import ImageNormalization, MarginNet
from embedding_learning.options import UsageError

# How many batches Python may queue beyond the one being computed: enough that a device never waits
# for Python, few enough that queued batches do not fill the memory.
_BATCHES_QUEUED = 2
# MXNet's dummy, and one that takes no weight decay.
_NOT_FOR_TRAINING = {"test", "groupadagrad"}
# One learned boundary per class, or one constant.
Beta = Union[gluon.Parameter, float]


def run(options: Namespace) -> None:
    """Everything that train.py does once its flags are read.

    Raises UsageError or DataError if flags and data do not fit, before anything is decoded.
    """
    check_names(options)
    devices = find_devices(options)
    split = read_split(options)
    mx.random.seed(options.seed)
    net = build_network(options, devices)
    data = open_data(split, options)
    try:
        beta = build_beta(options, data.classes, devices)
        train(options, net, beta, devices, data)
    finally:
        # What is queued still reads the batches' memory.
        mx.nd.waitall()
        data.close()


def train(
    options: Namespace,
    net: MarginNet,
    beta: Beta,
    devices: list[mx.Context],
    data: Data,
) -> None:
    """All epochs; saves the network whenever Recall@1 is the best so far."""
    loss = MarginLoss(options.margin, options.nu)
    for block in (net, loss):
        block.hybridize(static_alloc=True, static_shape=True)
    trainers = build_trainers(options, net, beta)

    best, before = 0.0, None
    if options.evaluate_first or options.resume:
        recalls = evaluate(net, devices, data)
        reporting.log_recalls(None, recalls)
        before = recalls[1]
        # A resumed network is replaced by a better one only.
        best = before if options.resume else 0.0

    data.train.seek(options.start_epoch * options.batch_num)
    for epoch in range(options.start_epoch, options.epochs):
        started = time.time()
        set_learning_rates(options, trainers, epoch)
        reporting.log_learning_rates(epoch, [trainer.learning_rate for trainer in trainers])

        interval_losses: list[mx.nd.NDArray] = []
        epoch_loss = 0.0
        for i in reporting.progress(range(options.batch_num), f"Epoch {epoch}"):
            batch = data.train.next()
            seed_step(options.seed, epoch * options.batch_num + i)
            losses = train_step(net, loss, beta, trainers, devices, batch)
            interval_losses += losses
            _wait_for_older(interval_losses, len(devices) * _BATCHES_QUEUED)

            if (i + 1) % options.log_interval == 0:
                interval_loss = _read_sum(interval_losses)
                reporting.log_interval_loss(epoch, i + 1, interval_loss)
                epoch_loss += interval_loss
                interval_losses = []
        epoch_loss += _read_sum(interval_losses)
        reporting.log_epoch_loss(epoch, epoch_loss, time.time() - started)

        recalls = evaluate(net, devices, data)
        reporting.log_recalls(epoch, recalls)
        if recalls[1] > best:
            best = recalls[1]
            reporting.log_saving(options.save_model_prefix)
            parameter_files.save_parameters(net, f"{options.save_model_prefix}.params")
    reporting.print_best(data.title, best, before)


def train_step(
    net: MarginNet,
    loss: MarginLoss,
    beta: Beta,
    trainers: list[gluon.Trainer],
    devices: list[mx.Context],
    batch: mx.io.DataBatch,
) -> list[mx.nd.NDArray]:
    """One update from one batch, queued without waiting for any device; each device's loss (1,)."""
    images = gluon.utils.split_and_load(batch.data[0], devices)
    labels = gluon.utils.split_and_load(batch.label[0], devices)
    losses = []
    with autograd.record():
        for x, y in zip(images, labels):
            anchor_rows, anchors, positives, negatives, _ = net(x)
            anchor_labels = y.take(anchor_rows) if isinstance(beta, gluon.Parameter) else None
            losses.append(loss(anchors, positives, negatives, beta, anchor_labels))
    # Only after the forward pass has been queued on every device, so that all compute at once.
    autograd.backward(losses)
    for trainer in trainers:
        trainer.step(batch.data[0].shape[0])
    return losses


def evaluate(net: MarginNet, devices: list[mx.Context], data: Data) -> dict[int, float]:
    """Recall@1, 2, 4, 8, 16 of the test images, among each other or in the gallery."""
    queries, labels = embed_all(net, devices, data.test)
    if data.gallery is None:
        return recall_at_k(queries, labels)
    gallery, gallery_labels = embed_all(net, devices, data.gallery)
    return recall_at_k(queries, labels, gallery=gallery, gallery_labels=gallery_labels)


def embed_all(
    net: MarginNet, devices: list[mx.Context], batches: SequentialBatches
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, d) and labels (n,) of all images of the batches."""
    batches.reset()
    embeddings: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    queued: deque[list[mx.nd.NDArray]] = deque()
    for batch in reporting.progress(batches, "Validation"):
        images = gluon.utils.split_and_load(batch.data[0], devices)
        queued.append([net.embed(x) for x in images])
        real = batches.batch_size - batch.pad
        labels.append(batch.label[0].asnumpy()[:real])
        if len(queued) > _BATCHES_QUEUED:
            embeddings += [part.asnumpy() for part in queued.popleft()]
    embeddings += [part.asnumpy() for parts in queued for part in parts]
    all_labels = np.concatenate(labels)
    all_embeddings = np.concatenate(embeddings)[: len(all_labels)]
    if not np.isfinite(all_embeddings).all():
        raise UsageError("--lr: training diverged, the embeddings are not finite; try a lower one")
    return all_embeddings, all_labels


def build_network(options: Namespace, devices: list[mx.Context]) -> MarginNet:
    """The network with its weights on the devices."""
    if options.resume:
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
    if options.resume:
        arrays = parameter_files.read_parameters(options.resume, "--resume")
        source = f"--resume {options.resume}"
        parameter_files.set_parameters(net._collect_params_with_prefix(), arrays, source, devices)
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


def set_learning_rates(options: Namespace, trainers: list[gluon.Trainer], epoch: int) -> None:
    """Both rates are multiplied by the factor at each epoch listed in the steps."""
    decay = options.factor ** sum(epoch >= step for step in options.steps)
    for trainer, rate in zip(trainers, (options.lr, options.lr_beta)):
        trainer.set_learning_rate(rate * decay)


def seed_step(seed: int, step: int) -> None:
    """Lets a step's random numbers depend on the seed and the step alone.

    MXNet cannot save its random state. Seeding anew for each step makes every run repeatable from
    any step on, and evaluation without influence on what follows.
    """
    state = np.random.SeedSequence((seed, step)).generate_state(1)[0]
    mx.random.seed(int(state >> 1))


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


def _wait_for_older(losses: list[mx.nd.NDArray], newest: int) -> None:
    """Waits for the loss before the newest ones."""
    if len(losses) > newest:
        losses[-newest - 1].wait_to_read()


def _first_line(error: Exception) -> str:
    """What MXNet says, without where in its source it says so."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Check failed" in line or "rror:" in line]
    return (told or lines or [type(error).__name__])[-1]


def _read_sum(losses: list[mx.nd.NDArray]) -> float:
    return sum(loss.asscalar() for loss in losses)
