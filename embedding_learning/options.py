"""The flags of train.py and the checks that need no data. Imports no MXNet, so --help is quick."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

KVSTORES = ("local", "device", "nccl")


class UsageError(Exception):
    """A flag cannot be followed; the message names the flag and the way out."""


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists the flags)")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads and checks the flags.

    Beside the flags the result holds `steps` as a list of epochs, `gpus` as a list of device
    numbers and `total_batch_size` over all devices.

    Raises
    ------
    UsageError
        If a flag is unknown, cannot be read, or contradicts another.
    """
    options = _parser().parse_args(arguments)
    options.gpus = _integers("--gpus", options.gpus)
    options.steps = _integers("--steps", options.steps)
    _check_ranges(options)
    _check_devices(options)
    _check_batch(options)
    folder = os.path.dirname(options.save_model_prefix) or "."
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UsageError(
            f"--save-model-prefix {options.save_model_prefix}: the folder {folder} is not there or "
            "cannot be written to; create it first"
        )
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="train.py",
        description="Train an image embedding with the margin-based loss and distance weighted "
        "sampling (Wu et al., Sampling Matters in Deep Embedding Learning, ICCV 2017).",
    )
    _add_original_flags(parser)
    _add_port_flags(parser.add_argument_group("flags of the PyTorch port"))
    _add_data_flags(parser.add_argument_group("data"))
    _add_run_flags(parser.add_argument_group("weights and devices"))
    return parser


def _add_original_flags(parser: argparse.ArgumentParser) -> None:
    """Names, types and defaults of MXNet's example embedding_learning; none may change."""
    add = parser.add_argument
    add("--data-path", default="data/CUB_200_2011",
        help="folder of the images; glyphs: a set that is drawn on first use. default is %(default)s.")
    add("--embed-dim", type=int, default=128,
        help="dimensionality of the image embedding. default is %(default)s.")
    add("--batch-size", type=int, default=70,
        help="training batch size per device (CPU/GPU). default is %(default)s.")
    add("--batch-k", type=int, default=5,
        help="number of images per class in a batch. default is %(default)s.")
    add("--gpus", default="", help="list of gpus to use, e.g. 0 or 0,2,5. empty means using cpu.")
    add("--epochs", type=int, default=20, help="number of training epochs. default is %(default)s.")
    add("--optimizer", default="adam", help="MXNet optimizer. default is %(default)s.")
    add("--lr", type=float, default=0.0001, help="learning rate. default is %(default)s.")
    add("--lr-beta", type=float, default=0.1,
        help="learning rate for the class-specific beta of the margin-based loss; 0 keeps beta "
        "constant. default is %(default)s.")
    add("--margin", type=float, default=0.2,
        help="margin of the margin-based loss. default is %(default)s.")
    add("--beta", type=float, default=1.2, help="initial value of beta. default is %(default)s.")
    add("--nu", type=float, default=0.0,
        help="regularization parameter for beta. default is %(default)s.")
    add("--factor", type=float, default=0.5,
        help="learning rate schedule factor. default is %(default)s.")
    add("--steps", default="12,14,16,18",
        help="epochs at which the learning rates are multiplied by --factor. default is %(default)s.")
    add("--wd", type=float, default=0.0001, help="weight decay rate. default is %(default)s.")
    add("--seed", type=int, default=123,
        help="random seed; one seed fixes the whole run. default is %(default)s.")
    add("--model", default="resnet50_v2",
        help="backbone, by its name in Gluon's model zoo or in torchvision. default is %(default)s.")
    add("--save-model-prefix", default="margin_loss_model",
        help="the best model is saved as this prefix + .params. default is %(default)s.")
    add("--use-pretrained", action="store_true",
        help="start from ImageNet weights of Gluon's model zoo.")
    add("--kvstore", default="device",
        help=f"how devices exchange gradients: {', '.join(KVSTORES)}. default is %(default)s.")
    add("--log-interval", type=int, default=20,
        help="number of batches between log lines. default is %(default)s.")


def _add_port_flags(group: argparse._ArgumentGroup) -> None:
    """What suruoxi/DistanceWeightedSampling adds; with none of them the original's run results."""
    add = group.add_argument
    add("--start-epoch", type=int, default=0, metavar="N",
        help="number of the first epoch, counted from 0. default is %(default)s.")
    add("--workers", type=int, default=4, metavar="N",
        help="threads that decode images; 0 decodes in the trainer's. default is %(default)s.")
    add("--feat-dim", type=int, default=None, metavar="N",
        help="put a fully connected layer of this size between backbone and embedding.")
    add("--classes", type=int, default=None, metavar="N",
        help="number of training classes; read from the data, and checked if given.")
    add("--batch-num", type=int, default=200, metavar="N",
        help="number of batches in an epoch. default is %(default)s.")
    add("--total-batch-size", type=int, default=None, metavar="N",
        help="batch size over all devices, in place of --batch-size (the port's meaning of it).")
    add("--momentum", type=float, default=0.9, help="of sgd. default is %(default)s.")
    add("--resume", default=None, metavar="FILE",
        help="start from the network in this .params file, as written by an earlier run; beta and "
        "the optimizers start anew.")
    add("--print-freq", type=int, dest="log_interval", default=argparse.SUPPRESS, metavar="N",
        help="another name of --log-interval.")
    add("--normalize-weights", action="store_true",
        help="scale the log weights of the sampling to [0, 1].")
    add("--save-prefix", dest="save_model_prefix", default=argparse.SUPPRESS, metavar="PREFIX",
        help="another name of --save-model-prefix.")


def _add_data_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--train-classes", type=int, default=None, metavar="N",
        help="the first N classes train, the others test. default is half of them.")
    add("--image-size", type=int, default=256, metavar="PIXELS",
        help="side of the square that each image is resized to. default is %(default)s.")
    add("--crop-size", type=int, default=224, metavar="PIXELS",
        help="side of the square that is cut out of it. default is %(default)s.")
    add("--cache-dir", type=Path, default=default_cache_dir(), metavar="DIR",
        help="where drawn images are kept. default is %(default)s.")


def _add_run_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--pretrained-params", default=None, metavar="FILE",
        help="take the ImageNet weights from this Gluon parameter file.")
    add("--evaluate-first", action="store_true",
        help="print the recalls of the untrained network too.")
    add("--cpu-contexts", type=int, default=1, metavar="N",
        help="without --gpus: use N CPU contexts as if they were devices, to try out what several "
        "devices do. default is %(default)s.")


def default_cache_dir() -> Path:
    """``embedding_learning`` below the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embedding_learning"


def _integers(flag: str, text: str) -> list[int]:
    """A list such as 0,2,5 of strictly increasing numbers; empty for an empty text."""
    try:
        numbers = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [-1]
    if any(number < 0 for number in numbers) or numbers != sorted(set(numbers)):
        raise UsageError(
            f"{flag} {text}: increasing whole numbers expected, with commas between them"
        )
    return numbers


def _check_ranges(options: argparse.Namespace) -> None:
    at_least = {
        "embed_dim": 1, "batch_size": 1, "batch_k": 2, "epochs": 0, "lr": 0, "lr_beta": 0,
        "margin": 0, "nu": 0, "factor": 0, "wd": 0, "seed": 0, "log_interval": 1,
        "start_epoch": 0, "workers": 0, "feat_dim": 1, "classes": 1, "batch_num": 1,
        "total_batch_size": 1, "momentum": 0, "train_classes": 1, "image_size": 1,
        "crop_size": 1, "cpu_contexts": 1,
    }  # fmt: skip
    for name, least in at_least.items():
        value = getattr(options, name)
        # The comparison is also false for a value that is not a number.
        if value is not None and not value >= least:
            raise UsageError(f"{_flag(name)} {value}: must be at least {least}")
    if options.crop_size > options.image_size:
        raise UsageError(
            f"--crop-size {options.crop_size}: cannot be cut out of --image-size "
            f"{options.image_size}; make the image larger or the crop smaller"
        )


def _check_devices(options: argparse.Namespace) -> None:
    if options.gpus and options.cpu_contexts > 1:
        raise UsageError("--cpu-contexts: is for runs without --gpus; leave one of them out")
    if options.kvstore not in KVSTORES:
        raise UsageError(f"--kvstore {options.kvstore}: unknown; choose of {', '.join(KVSTORES)}")


def _check_batch(options: argparse.Namespace) -> None:
    """Sets `total_batch_size`; each device's share must hold whole classes, two at least."""
    devices = len(options.gpus) or options.cpu_contexts
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


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
