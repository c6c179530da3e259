"""The flags of train.py and the checks that need no data. Imports no MXNet, so --help is quick."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

from embedding_learning.cli import (
    backbone_flags,
    method_flags,
    parser,
    unused_flags,
)
from embedding_learning.cli.parser import (
    LARGEST_COUNT,
    LARGEST_NUMBER,
    Parser,
    add,
    add_choice,
    add_count,
    as_flag,
    check_number,
    check_range,
    device_numbers,
    integers,
)
from embedding_learning.config import (
    CACHES,
    DATA_PATH,
    DTYPES,
    KVSTORES,
    LARGEST_IMAGE,
    LARGEST_LAYER,
    METRICS,
    MOST_CONTEXTS,
    MOST_WORKERS,
    ON_NONFINITE,
    RESIZES,
    SAVED_EPOCHS,
    SMALL_CLASSES,
    WORKERS,
    decay,
    device_count,
    resumes_network,
)
from embedding_learning.data.datasets import NAMES
from embedding_learning.distributed import dmlc_environment
from embedding_learning.errors import UsageError
from embedding_learning.model.methods import LOSSES
from embedding_learning.model.weights import catalog
from embedding_learning.runtime import user_folders


def parse(
    arguments: Sequence[str], saves: bool = True, is_past: bool = False
) -> argparse.Namespace:
    """Reads and checks the flags.

    Beside the flags the result holds `steps` as a list of epochs, `gpus` as a list of device
    numbers, `processes`, how many train together, and `total_batch_size` over all their devices.

    Parameters
    ----------
    arguments : sequence of str
    saves : bool
        A network is to be saved, so the place for it is checked.
    is_past : bool
        They are those of a run that exists already: flags without effect are not looked for.

    Raises
    ------
    UsageError
        If a flag is unknown, cannot be read, contradicts another, or has no effect.
    """
    parser, arguments = _parser(), spelled_out(arguments)
    # What is typed replaces what comes with a preset or a loss.
    parser.set_defaults(**method_flags.defaults(parser.parse_args(arguments)))
    options = parser.parse_args(arguments)
    # MXNet takes these names in any case; all that is decided by them knows one spelling.
    options.optimizer, options.kvstore = options.optimizer.lower(), options.kvstore.lower()
    _check_methods(options)
    set_sizes(options)
    options.gpus = device_numbers("--gpus", options.gpus)
    options.steps = integers("--steps", options.steps)
    _check_ranges(options)
    # To the original a rate below 0 too says that beta is constant.
    options.lr_beta = max(options.lr_beta, 0.0)
    _check_rates(options)
    _check_start(options)
    _check_devices(options)
    _check_batch(options)
    if saves:
        _check_prefix(options)
    if 0 < options.epochs <= options.start_epoch:
        raise UsageError(
            f"--start-epoch {options.start_epoch}: nothing is left of {options.epochs} epochs; "
            "raise --epochs"
        )
    if not is_past:
        for name, reason in _unused(arguments, options, are_earlier=False).items():
            raise UsageError(f"{as_flag(name)}: has no effect: {reason}; leave it out")
    return options


def _check_prefix(options: argparse.Namespace) -> None:
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


def unused_earlier_flags(arguments: Sequence[str], options: argparse.Namespace) -> list[str]:
    """A line for each flag of the two earlier programs that was typed and has no effect.

    These say nothing of such flags, so their users' commands may hold them: they are not refused.
    `options` are the parsed arguments.
    """
    unused = _unused(arguments, options, are_earlier=True)
    return [f"{as_flag(name)}: has no effect: {reason}." for name, reason in unused.items()]


def _unused(
    arguments: Sequence[str], options: argparse.Namespace, are_earlier: bool
) -> dict[str, str]:
    """What `unused_flags.find` finds among the earlier programs' flags, or among all others."""
    found = unused_flags.find(given(arguments), options)
    return {name: reason for name, reason in found.items() if (name in _earlier()) is are_earlier}


def given(arguments: Sequence[str]) -> dict[str, Any]:
    """The flags of train.py that stand among the arguments, by attribute; read, but not checked.

    Raises UsageError if one is unknown or cannot be read.
    """
    return parser.given(_parser(), spelled_out(arguments))


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with abbreviated flags written in full.

    What was an unambiguous abbreviation to the original means the same flag here, even where a
    flag that came later begins alike.
    """
    original, known = _names()
    full: list[str] = []
    for number, argument in enumerate(arguments):
        if argument == "--":
            return [*full, *arguments[number:]]
        start, equals, value = argument.partition("=")
        if start.startswith("--") and start not in known:
            for names in (original, known):
                begun = [name for name in names if name.startswith(start)]
                if len(begun) == 1:
                    argument = f"{begun[0]}{equals}{value}"
                    break
        full.append(argument)
    return full


@cache
def _names() -> tuple[list[str], list[str]]:
    """The original's flags as they are typed, and all flags."""
    original = Parser()
    _add_original_flags(original)
    of_original, of_all = (
        [name for action in parser._actions for name in action.option_strings]
        for parser in (original, _parser())
    )
    return of_original, of_all


@cache
def _earlier() -> set[str]:
    """The attributes of the flags that the original and its port have."""
    parser = Parser()
    _add_original_flags(parser)
    _add_port_flags(parser)
    return {action.dest for action in parser._actions}


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


def add_some(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    """Declares the flags of train.py that set these attributes; `parse` reads them."""
    for action in _parser()._actions:
        if action.dest in names:
            parser._add_action(action)


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


def _add_port_flags(group: argparse._ActionsContainer) -> None:
    """What suruoxi/DistanceWeightedSampling adds; with none given the original's run results."""
    add(group, "--start-epoch", 0, "number of the first epoch")
    add(group, "--workers", WORKERS, "threads that decode images; 0: the trainer's own")
    add_count(group, "--feat-dim", "add a fully connected layer of N units before the embedding")
    add_count(group, "--classes", "number of training classes; read from the data and checked")
    add(group, "--batch-num", 200, "number of batches in an epoch")
    add_count(group, "--total-batch-size", "the port's --batch-size: images over all devices")
    add(group, "--momentum", 0.9, "momentum of sgd")
    text = "go on with a run: prefix, folder, a checkpoint, or auto; or start from a .params file"
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
    add_preprocessing_flags(group)
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
    text = f"what to log of each epoch: {METRICS}"
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
        default=user_folders.find_cache_folder(),
        type=os.path.expanduser,
        help=f"{text} (default: %(default)s)",
    )


def add_preprocessing_flags(group: argparse._ActionsContainer) -> None:
    """How files become squares: the attributes of `preprocessing.Preprocessing`."""
    add_orientation_flag(group)
    text = "how images are resized; area: the mean of all pixels where they shrink"
    add_choice(group, "--resize", RESIZES, text)


def add_orientation_flag(group: argparse._ActionsContainer) -> None:
    """The part of the preprocessing that decides whether a box lies within its image."""
    text = "turn images upright as their EXIF data say, before boxes are cut"
    action = argparse.BooleanOptionalAction
    group.add_argument("--exif-orientation", action=action, default=False, help=text)


def set_sizes(options: argparse.Namespace) -> None:
    """Fills in the sizes that were not given: those that the backbone was designed for."""
    image_size, crop_size = catalog.sizes(options.model)
    if options.crop_size is None:
        options.crop_size = crop_size
    if options.image_size is None:
        options.image_size = image_size


def _check_ranges(options: argparse.Namespace) -> None:
    at_least = {
        "embed_dim": 1, "batch_size": 1, "batch_k": 2, "epochs": 0, "lr": 0, "nu": 0, "factor": 0,
        "wd": 0, "seed": 0, "log_interval": 1, "start_epoch": 0, "workers": 0, "feat_dim": 1,
        "classes": 1, "batch_num": 1, "total_batch_size": 1, "momentum": 0, "train_classes": 1,
        "image_size": 1, "crop_size": 1, "cpu_contexts": 1, "checkpoint_interval": 1, "keep": 1,
        "lr_mult_backbone": 0, "warm_up_epochs": 0,
    }  # fmt: skip
    at_most = {
        "embed_dim": LARGEST_LAYER, "feat_dim": LARGEST_LAYER, "image_size": LARGEST_IMAGE,
        "workers": MOST_WORKERS, "cpu_contexts": MOST_CONTEXTS, "seed": math.inf,
    }  # fmt: skip
    for name, value in vars(options).items():
        if isinstance(value, float):
            check_number(f"{as_flag(name)} {value}", value)
        if name in at_least and value is not None:
            largest = LARGEST_NUMBER if isinstance(value, float) else LARGEST_COUNT
            check_range(name, value, at_least[name], at_most.get(name, largest))
    if not 0 <= options.held_out < 1:
        raise UsageError(f"--held-out {options.held_out}: must be at least 0 and below 1")
    if options.grad_clip is not None and options.grad_clip <= 0:
        raise UsageError(f"--grad-clip {options.grad_clip}: must be above 0")
    if options.crop_size > options.image_size:
        raise UsageError(
            f"--crop-size {options.crop_size}: cannot be cut out of --image-size "
            f"{options.image_size}; make the image larger or the crop smaller"
        )


def _check_rates(options: argparse.Namespace) -> None:
    """The rates of the last epoch, which the factor has taken farthest, must be readable too."""
    epoch = max(0, options.epochs - 1)
    try:
        factor = decay(options, epoch)
    except OverflowError:
        factor = math.inf
    for name in ("lr", "lr_beta"):
        rate = getattr(options, name) * factor
        check_number(f"{as_flag(name)}, --factor, --steps: the rate {rate} of epoch {epoch}", rate)
    if options.lr_mult_backbone is not None:
        for rate in (options.lr, options.lr * factor):
            rate *= options.lr_mult_backbone
            check_number(f"--lr-mult-backbone: the backbone's rate {rate}", rate)


def _check_methods(options: argparse.Namespace) -> None:
    if options.normalize_weights and options.sampling != "distance-weighted":
        raise UsageError(
            f"--normalize-weights: is for distance weighted sampling; --sampling "
            f"{options.sampling} has no weights"
        )
    if options.beta_per == "image" and LOSSES[options.loss].has_beta and options.lr_beta <= 0:
        raise UsageError(
            "--beta-per image: is for a beta that is learned, not --lr-beta 0; give --beta-per "
            "class"
        )


def _check_start(options: argparse.Namespace) -> None:
    if options.init_from and resumes_network(options):
        raise UsageError("--init-from: --resume names a network too; leave one of them out")


def _check_devices(options: argparse.Namespace) -> None:
    """Sets `processes`."""
    if options.kvstore not in KVSTORES:
        raise UsageError(f"--kvstore {options.kvstore}: unknown; choose of {', '.join(KVSTORES)}")
    try:
        environment = dmlc_environment.read_environment()
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
    devices = device_count(options)
    is_total = options.total_batch_size is not None
    if not is_total:
        options.total_batch_size = options.batch_size * devices
        check_range("total_batch_size", options.total_batch_size, 1)
    share, left_over = divmod(options.total_batch_size, devices)
    size = options.total_batch_size if is_total else options.batch_size
    flag = f"--{'total-' if is_total else ''}batch-size {size}"
    least = 2 * options.batch_k
    near = max(least, round(share / options.batch_k) * options.batch_k)

    def a_device(images: int) -> str:
        total = f" (--total-batch-size {images * devices})" if is_total and devices > 1 else ""
        return f"{images} a device{total}"

    if left_over:
        raise UsageError(
            f"{flag}: cannot be divided among {devices} devices; {a_device(near)} would be whole "
            "classes"
        )
    if share % options.batch_k:
        raise UsageError(
            f"{flag}: {share} images a device are not whole classes of --batch-k "
            f"{options.batch_k}; {a_device(near)} would be"
        )
    if share < least:
        raise UsageError(
            f"{flag}: {share} images a device are a single class of --batch-k {options.batch_k}, "
            f"so there would be no negatives; {a_device(least)} are the least"
        )
