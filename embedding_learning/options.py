"""The flags of train.py and the checks that need no data. Imports no MXNet, so --help is quick."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from typing import Any

from embedding_learning import architectures, backbone_flags, dmlc, method_flags, user_folders
from embedding_learning.datasets import NAMES
from embedding_learning.flags import (
    Parser,
    UsageError,
    add,
    add_choice,
    add_count,
    as_flag,
    integers,
)

DATA_PATH, WORKERS = "data/CUB_200_2011", 4
# Images that a saved model embeds at once.
BATCH_SIZE = 64
KVSTORES = ("local", "device", "nccl", "dist_sync", "dist_device_sync", "dist_async")
# The first of each is the default.
SMALL_CLASSES = ("error", "drop", "repeat")
CACHES = ("pixels", "none")
ON_NONFINITE = ("stop", "skip")
SAVED_EPOCHS = ("best", "last")
DTYPES = ("float32", "float16")

LARGEST_IMAGE = 4096  # pixels; a batch of such images takes 3.5 GB already


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads and checks the flags.

    Beside the flags the result holds `steps` as a list of epochs, `gpus` as a list of device
    numbers, `processes`, how many train together, and `total_batch_size` over all their devices.

    Raises
    ------
    UsageError
        If a flag is unknown, cannot be read, or contradicts another.
    """
    parser = _parser()
    # What is typed replaces what comes with a preset or a loss.
    parser.set_defaults(**method_flags.defaults(parser.parse_args(arguments)))
    options = parser.parse_args(arguments)
    _check_methods(options)
    set_sizes(options)
    options.gpus = integers("--gpus", options.gpus, "different")
    options.steps = integers("--steps", options.steps, "increasing")
    _check_ranges(options)
    _check_start(options)
    _check_devices(options)
    _check_batch(options)
    folder, name = os.path.split(options.save_model_prefix)
    folder = folder or "."
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UsageError(
            f"--save-model-prefix {options.save_model_prefix}: the folder {folder} is not there or "
            "cannot be written to; create it first"
        )
    if not name or os.path.isdir(f"{options.save_model_prefix}.params"):
        raise UsageError(
            f"--save-model-prefix {options.save_model_prefix}: is no prefix of a file's name, such "
            "as models/birds"
        )
    if 0 < options.epochs <= options.start_epoch:
        raise UsageError(
            f"--start-epoch {options.start_epoch}: nothing is left of {options.epochs} epochs; "
            "raise --epochs"
        )
    return options


def given(arguments: Sequence[str]) -> dict[str, Any]:
    """The flags that stand among the arguments, by attribute; read, but not checked.

    Raises UsageError if one is unknown or cannot be read.
    """
    parser, absent = _parser(), object()
    everything = argparse.Namespace(**{action.dest: absent for action in parser._actions})
    found = vars(parser.parse_args(arguments, everything))
    return {name: value for name, value in found.items() if value is not absent}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="train.py",
        description="Train an image embedding with the margin-based loss and distance weighted "
        "sampling (Wu et al., Sampling Matters in Deep Embedding Learning, ICCV 2017).",
    )
    _add_original_flags(parser)
    _add_port_flags(parser.add_argument_group("flags of the PyTorch port"))
    method_flags.add_flags(parser.add_argument_group("loss and sampling"))
    backbone_flags.add_flags(parser.add_argument_group("the backbone and its weights"))
    _add_further_flags(parser.add_argument_group("further flags"))
    return parser


def _add_alias(group: argparse._ActionsContainer, name: str, of: str, kind: type) -> None:
    """Another name of a flag."""
    dest = of.lstrip("-").replace("-", "_")
    default = argparse.SUPPRESS
    group.add_argument(name, dest=dest, type=kind, default=default, help=f"another name of {of}")


def _add_original_flags(parser: argparse.ArgumentParser) -> None:
    """Names, types and defaults of MXNet's example embedding_learning; none may change."""
    add(parser, "--data-path", DATA_PATH, "folder of the images; glyphs: a drawn set")
    add(parser, "--embed-dim", 128, "dimensionality of the image embedding")
    add(parser, "--batch-size", 70, "training batch size per device (CPU/GPU)")
    add(parser, "--batch-k", 5, "number of images per class in a batch")
    add(parser, "--gpus", "", "list of gpus to use, e.g. 0 or 0,2,5; empty means using cpu")
    add(parser, "--epochs", 20, "number of training epochs")
    add(parser, "--optimizer", "adam", "optimizer of MXNet")
    add(parser, "--lr", 0.0001, "learning rate")
    add(parser, "--lr-beta", 0.1, "learning rate for beta, one per class; 0: beta is constant")
    add(parser, "--margin", 0.2, "margin of the margin-based loss")
    add(parser, "--beta", 1.2, "initial value of beta")
    add(parser, "--nu", 0.0, "regularization parameter for beta")
    add(parser, "--factor", 0.5, "learning rate schedule factor")
    add(parser, "--steps", "12,14,16,18", "epochs that multiply the learning rates by the factor")
    add(parser, "--wd", 0.0001, "weight decay rate")
    add(parser, "--seed", 123, "random seed; it fixes the whole run")
    add(parser, "--model", "resnet50_v2", "backbone, as Gluon's model zoo or torchvision names it")
    add(parser, "--save-model-prefix", "margin_loss_model", "the best model's file less .params")
    text = "start from the ImageNet weights of Gluon's model zoo"
    parser.add_argument("--use-pretrained", action="store_true", help=text)
    add(parser, "--kvstore", "device", f"how devices exchange gradients: {', '.join(KVSTORES)}")
    add(parser, "--log-interval", 20, "number of batches between log lines")


def _add_port_flags(group: argparse._ArgumentGroup) -> None:
    """What suruoxi/DistanceWeightedSampling adds; with none given the original's run results."""
    add(group, "--start-epoch", 0, "number of the first epoch")
    add(group, "--workers", WORKERS, "threads that decode images; 0: the trainer's own")
    add_count(group, "--feat-dim", "add a fully connected layer of N units before the embedding")
    add_count(group, "--classes", "number of training classes; read from the data and checked")
    add(group, "--batch-num", 200, "number of batches in an epoch")
    add_count(group, "--total-batch-size", "the port's --batch-size: images over all devices")
    add(group, "--momentum", 0.9, "momentum of sgd")
    text = "go on with a run: its folder, a checkpoint, or auto; or start from a .params file"
    group.add_argument("--resume", metavar="WHAT", help=text)
    _add_alias(group, "--print-freq", "--log-interval", int)
    text = "scale the log weights of the sampling to [0, 1]"
    group.add_argument("--normalize-weights", action="store_true", help=text)
    _add_alias(group, "--save-prefix", "--save-model-prefix", str)


def _add_further_flags(group: argparse._ArgumentGroup) -> None:
    add_data_flags(group)
    text = "share of the training classes that is kept out, and tested in place of the test classes"
    add(group, "--held-out", 0.0, text)
    add_choice(group, "--small-classes", SMALL_CLASSES, "training classes of fewer than --batch-k")
    text = "leave out images that cannot be decoded"
    group.add_argument("--skip-bad-images", action="store_true", help=text)
    text = "pixels of the square that each image is resized to (default: by model, mostly 256)"
    add_count(group, "--image-size", text)
    text = "pixels of the square that is cut out of it (default: by model, mostly 224)"
    add_count(group, "--crop-size", text)
    add_count(group, "--checkpoint-interval", "save the state every N batches, beside each epoch")
    add(group, "--keep", 2, "number of checkpoints that are kept, the latest")
    text = "the epoch whose network is saved, if not the best by Recall@1"
    add_choice(group, "--saved-epoch", SAVED_EPOCHS, text)
    text = "what a loss or gradient that is not finite does to the run or the batch"
    add_choice(group, "--on-nonfinite", ON_NONFINITE, text)
    text = "what the layers compute in; float16: mixed precision, for GPUs"
    add_choice(group, "--dtype", DTYPES, text)
    add_choice(group, "--cache", CACHES, "what is kept of images once they are decoded")
    text = "print the recalls before training too"
    group.add_argument("--evaluate-first", action="store_true", help=text)
    text = "what to log of each epoch: recall@K for any K, map@r, r-precision, nmi, ami"
    add(group, "--metrics", "recall@1,recall@2,recall@4,recall@8,recall@16", text)
    text = "write scalars, histograms and a projection for TensorBoard into a folder"
    group.add_argument("--tensorboard", metavar="DIR", type=os.path.expanduser, help=text)
    add(group, "--cpu-contexts", 1, "without --gpus: CPU contexts that act as devices, for trials")


def add_data_flags(group: argparse._ActionsContainer) -> None:
    """Which images, and where their like is kept."""
    text = f"what --data-path holds, where its files do not tell: {', '.join(NAMES)}"
    group.add_argument("--dataset", choices=NAMES, metavar="NAME", help=text)
    text = "crop images to their bounding boxes where there are any"
    group.add_argument("--bbox", action=argparse.BooleanOptionalAction, default=True, help=text)
    add_count(group, "--train-classes", "the first N classes train (default: half of them)")
    add_cache_dir(group, "where decoded and drawn images are kept")


def add_cache_dir(group: argparse._ActionsContainer, text: str) -> None:
    """Adds --cache-dir."""
    # A shell leaves the "~" of --cache-dir=~/folder as it is; a folder named "~" would be made.
    group.add_argument(
        "--cache-dir",
        default=user_folders.cache_folder(),
        type=os.path.expanduser,
        help=f"{text} (default: %(default)s)",
    )


def resumes_network(options: argparse.Namespace) -> bool:
    """Whether --resume names a network alone, not the state of a run."""
    return bool(options.resume) and options.resume.endswith(".params")


def set_sizes(options: argparse.Namespace) -> None:
    """Fills in the sizes that were not given: those that the backbone was designed for."""
    image_size, crop_size = architectures.sizes(options.model)
    if options.crop_size is None:
        options.crop_size = crop_size
    if options.image_size is None:
        options.image_size = image_size


def _check_ranges(options: argparse.Namespace) -> None:
    for name, value in vars(options).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{as_flag(name)} {value}: must be a finite number")
    at_least = {
        "embed_dim": 1, "batch_size": 1, "batch_k": 2, "epochs": 0, "lr": 0, "lr_beta": 0,
        "margin": 0, "nu": 0, "factor": 0, "wd": 0, "seed": 0, "log_interval": 1,
        "start_epoch": 0, "workers": 0, "feat_dim": 1, "classes": 1, "batch_num": 1,
        "total_batch_size": 1, "momentum": 0, "train_classes": 1, "image_size": 1,
        "crop_size": 1, "cpu_contexts": 1, "checkpoint_interval": 1, "keep": 1,
        "lr_mult_backbone": 0, "warm_up_epochs": 0,
    }  # fmt: skip
    for name, least in at_least.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"{as_flag(name)} {value}: must be at least {least}")
    if not 0 <= options.held_out < 1:
        raise UsageError(f"--held-out {options.held_out}: must be at least 0 and below 1")
    if options.grad_clip is not None and options.grad_clip <= 0:
        raise UsageError(f"--grad-clip {options.grad_clip}: must be above 0")
    if options.image_size > LARGEST_IMAGE:
        raise UsageError(f"--image-size {options.image_size}: {LARGEST_IMAGE} is the most")
    if options.crop_size > options.image_size:
        raise UsageError(
            f"--crop-size {options.crop_size}: cannot be cut out of --image-size "
            f"{options.image_size}; make the image larger or the crop smaller"
        )


def _check_methods(options: argparse.Namespace) -> None:
    if options.normalize_weights and options.sampling != "distance-weighted":
        raise UsageError(
            f"--normalize-weights: is for distance weighted sampling; --sampling "
            f"{options.sampling} has no weights"
        )
    if options.beta_per == "image" and options.loss == "margin" and not options.lr_beta:
        raise UsageError(
            "--beta-per image: is for a beta that is learned, not --lr-beta 0; give --beta-per "
            "class"
        )


def _check_start(options: argparse.Namespace) -> None:
    if options.init_from and resumes_network(options):
        raise UsageError("--init-from: --resume names a network too; leave one of them out")


def _check_devices(options: argparse.Namespace) -> None:
    """Sets `processes`."""
    if options.gpus and options.cpu_contexts > 1:
        raise UsageError("--cpu-contexts: is for runs without --gpus; leave one of them out")
    if options.kvstore not in KVSTORES:
        raise UsageError(f"--kvstore {options.kvstore}: unknown; choose of {', '.join(KVSTORES)}")
    try:
        environment = dmlc.read_environment()
    except ValueError as error:
        raise UsageError(str(error)) from None
    is_distributed = options.kvstore.startswith("dist_")
    if is_distributed and not environment:
        raise UsageError(
            f"--kvstore {options.kvstore}: is for the processes of a job; start one with python -m "
            "embedding_learning launch --workers 2 --servers 1 -- and these flags"
        )
    if environment and not is_distributed:
        raise UsageError(
            f"--kvstore {options.kvstore}: this process is part of a job (DMLC_ROLE is set), which "
            "needs --kvstore dist_sync or dist_device_sync; or unset DMLC_ROLE"
        )
    if options.kvstore == "dist_async" and options.warm_up_epochs:
        raise UsageError("--warm-up-epochs: its rates do not get to the servers of dist_async")
    options.processes = environment.workers if environment else 1


def _check_batch(options: argparse.Namespace) -> None:
    """Sets `total_batch_size`; each device's share must hold whole classes, two at least."""
    devices = (len(options.gpus) or options.cpu_contexts) * options.processes
    if options.total_batch_size is None:
        options.total_batch_size = options.batch_size * devices
        share, flag = options.batch_size, f"--batch-size {options.batch_size}"
    else:
        share, left_over = divmod(options.total_batch_size, devices)
        flag = f"--total-batch-size {options.total_batch_size}"
        if left_over:
            raise UsageError(f"{flag}: cannot be divided among {devices} devices")
    if share % options.batch_k:
        near = max(2, round(share / options.batch_k)) * options.batch_k
        raise UsageError(
            f"{flag}: {share} images a device are not whole classes of --batch-k "
            f"{options.batch_k}; {near} a device would be"
        )
    if share < 2 * options.batch_k:
        raise UsageError(
            f"{flag}: {share} images a device are a single class of --batch-k {options.batch_k}, "
            f"so there would be no negatives; {2 * options.batch_k} a device are the least"
        )
