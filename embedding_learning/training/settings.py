"""Makes the configuration of a run from its settings: fills in what is missing, checks all.

Imports no MXNet, so that the command line can refuse a mistake at once. What only MXNet or the data
can tell apart is checked by `training.build.check` and `data.build`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from embedding_learning.config import (
    FLAGS,
    LARGEST_COUNT,
    LARGEST_NUMBER,
    Flag,
    TrainConfig,
    as_flag,
)
from embedding_learning.data.datasets import NAMES
from embedding_learning.distributed import dmlc_environment
from embedding_learning.errors import UsageError
from embedding_learning.evaluation.metrics import parse_metrics
from embedding_learning.inference.run_files import prefix_of
from embedding_learning.model.methods import LOSSES, SAMPLINGS
from embedding_learning.model.weights import catalog
from embedding_learning.runtime import user_folders
from embedding_learning.runtime.atomic_files import check_name_length
from embedding_learning.runtime.flag_values import (
    check_number,
    check_range,
    device_numbers,
    integers,
)
from embedding_learning.training import presets

# The choices that are rows of tables elsewhere.
CHOICES: dict[str, tuple[str, ...]] = {
    "dataset": NAMES,
    "loss": tuple(LOSSES),
    "sampling": tuple(SAMPLINGS),
    "preset": tuple(presets.SETTINGS),
}
# MXNet takes these names in any case; here each has one spelling.
LOWER_CASE = ("optimizer", "kvstore")


def make_config(values: Mapping[str, Any], saves: bool = True) -> TrainConfig:
    """Returns the complete, checked configuration of a run.

    Parameters
    ----------
    values : mapping
        Settings by the keys of their flags, such as ``{"data_path": "glyphs", "epochs": 2}``. Lists
        may be text, as on the command line. The others have the defaults of the preset, the loss
        and the flags, in this order.
    saves : bool
        A network is to be saved, so the place for it is checked.

    Raises
    ------
    UsageError
        If a setting is unknown, cannot be read, is out of range or contradicts another.
    """
    settings = {key: _read(key, value) for key, value in values.items()}
    loss = settings.get("loss", FLAGS["loss"].default)
    defaults = {
        "margin": LOSSES[loss].margin,
        "scale": LOSSES[loss].scale,
        **presets.defaults_of(settings.get("preset")),
    }
    for key, flag in FLAGS.items():
        if key not in settings:
            default = defaults.get(key, flag.default)
            settings[key] = _read(key, default) if key in defaults else default
    _complete(settings)
    config = TrainConfig.from_flags(settings)
    _check_methods(config)
    _check_rates(config)
    _check_start(config)
    _check_devices(config)
    _check_batch(config, is_total="total_batch_size" in values)
    if saves:
        _check_prefix(config.run.prefix)
    return config


def as_arguments(config: TrainConfig) -> list[str]:
    """Returns the flags of train.py that give this configuration; defaults are left out."""
    settings = config.as_flags()
    arguments = []
    for key, flag in FLAGS.items():
        value = settings[key]
        if value is None and flag.can_be_none:
            arguments.append(f"{flag.name}=none")
        elif flag.type is tuple:
            if tuple(value) != flag.default:
                arguments.append(f"{flag.name}={','.join(map(str, value))}")
        elif value == flag.default:
            continue
        elif flag.type is bool:
            arguments.append(flag.name if value else as_flag(f"no_{key}"))
        else:
            arguments.append(f"{flag.name}={value}")
    return arguments


def _read(key: str, value: Any) -> Any:
    """Returns the value of a setting in its type. Raises UsageError if the flag cannot have it."""
    flag = FLAGS.get(key)
    if flag is None:
        near = str(key).lstrip("-").replace("-", "_")
        if near in FLAGS:
            raise UsageError(f"{key!r}: is no key of a setting; write {near!r}")
        raise UsageError(f"{as_flag(str(key))}: unknown; train.py --help lists the flags")
    if flag.is_path and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None and (flag.default is None or flag.can_be_none):
        return None
    if flag.type is tuple:
        return tuple(_read_list(key, value))
    if flag.type is float and type(value) is int:
        value = float(value)
    if type(value) is not flag.type:
        wanted, found = flag.type.__name__, type(value).__name__
        raise UsageError(f"{flag.name} {value!r}: must be of type {wanted}, not {found}")
    if key in LOWER_CASE:
        value = str(value).lower()
    choices = CHOICES.get(key, flag.choices)
    if choices and value not in choices:
        raise UsageError(f"{flag.name} {value}: unknown; choose one of {', '.join(choices)}")
    if flag.is_path:
        if not value:
            raise UsageError(f"{flag.name}: the name of a file or folder is empty")
        # A shell leaves the "~" of --cache-dir=~/folder as it is.
        return os.path.expanduser(value)
    if flag.type in (int, float):
        _check_number(flag, value)
    return value


def _read_list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, Iterable):
        raise UsageError(f"{as_flag(key)} {value!r}: a list or a text expected")
    text = value if isinstance(value, str) else ",".join(map(str, value))
    if key == "steps":
        return integers("--steps", text)
    if key == "gpus":
        return device_numbers("--gpus", text)
    try:
        names = parse_metrics(text)
    except ValueError as error:
        raise UsageError(f"--metrics {text}: {error}") from None
    # Recall@1 decides which network is the best, so it is always measured.
    return list(dict.fromkeys(["recall@1", *names]))


def _check_number(flag: Flag, value: float) -> None:
    if isinstance(value, float):
        check_number(f"{flag.name} {value}", value)
    if flag.at_least is not None and flag.below is not None:
        if not flag.at_least <= value < flag.below:
            raise UsageError(
                f"{flag.name} {value}: must be at least {flag.at_least} and below {flag.below}"
            )
    elif flag.at_least is not None:
        largest: float = LARGEST_NUMBER if flag.type is float else LARGEST_COUNT
        most = largest if flag.at_most is None else flag.at_most
        check_range(flag.key, value, flag.at_least, most)
    if flag.above is not None and value <= flag.above:
        raise UsageError(f"{flag.name} {value}: must be above {flag.above}")


def _complete(settings: dict[str, Any]) -> None:
    """Fills in the settings that depend on others: sizes, worker processes, the total batch."""
    settings["image_size"], settings["crop_size"] = _complete_sizes(
        settings["model"], settings["image_size"], settings["crop_size"]
    )
    if settings["evaluate_first"] is None:
        # Such a network is worth something already, and training may make it worse.
        is_pretrained = settings["use_pretrained"] or settings["pretrained_params"]
        settings["evaluate_first"] = bool(is_pretrained)
    if settings["cache_dir"] is None:
        settings["cache_dir"] = user_folders.find_cache_folder()
    # To the original a rate below 0 too says that beta is constant.
    settings["lr_beta"] = max(settings["lr_beta"], 0.0)
    try:
        environment = dmlc_environment.read_environment()
    except ValueError as error:
        raise UsageError(str(error)) from None
    settings["processes"] = environment.workers if environment else 1
    if settings["total_batch_size"] is None:
        devices = (len(settings["gpus"]) or settings["cpu_contexts"]) * settings["processes"]
        total = settings["batch_size"] * devices
        check_range("total_batch_size", total, 1)
        settings["total_batch_size"] = total


def _complete_sizes(model: str, image_size: int | None, crop_size: int | None) -> tuple[int, int]:
    """Returns the sizes of images and crops; those of the backbone replace None.

    Raises UsageError if the crop is larger than the image.
    """
    usual_image_size, usual_crop_size = catalog.default_sizes(model)
    image_size = usual_image_size if image_size is None else image_size
    crop_size = usual_crop_size if crop_size is None else crop_size
    if crop_size > image_size:
        raise UsageError(
            f"--crop-size {crop_size}: cannot be cut out of --image-size {image_size}; make the "
            "image larger or the crop smaller"
        )
    return image_size, crop_size


def _check_methods(config: TrainConfig) -> None:
    method, loss = config.method, LOSSES[config.method.loss]
    takes = SAMPLINGS[method.sampling].takes
    if loss.samples and method.normalize_weights and "normalize_weights" not in takes:
        raise UsageError(
            f"--normalize-weights: --sampling {method.sampling} has no weights; leave it out"
        )
    if method.beta_per != "class" and loss.has_beta and method.lr_beta <= 0:
        raise UsageError(
            f"--beta-per {method.beta_per}: is for a beta that is learned, not --lr-beta 0; give "
            "--beta-per class"
        )


def _check_rates(config: TrainConfig) -> None:
    """Raises UsageError if MXNet cannot read the rates of the last epoch, after all factors."""
    optimizer = config.optimizer
    epoch = max(0, config.run.epochs - 1)
    try:
        factor = optimizer.decay(epoch)
    except OverflowError:
        factor = math.inf
    method = config.method
    for flag, rate in (
        ("--lr", optimizer.lr), ("--lr-beta", method.lr_beta), ("--lr-proxies", method.lr_proxies),
    ):  # fmt: skip
        last = rate * factor
        check_number(f"{flag}, --factor, --steps: the rate {last} of epoch {epoch}", last)
    if optimizer.lr_mult_backbone is not None:
        for rate in (optimizer.lr, optimizer.lr * factor):
            rate *= optimizer.lr_mult_backbone
            check_number(f"--lr-mult-backbone: the backbone's rate {rate}", rate)


def _check_start(config: TrainConfig) -> None:
    run = config.run
    if config.model.init_from and run.resumes_network:
        raise UsageError("--init-from: --resume names a network too; leave one of them out")
    if 0 < run.epochs <= run.start_epoch:
        raise UsageError(
            f"--start-epoch {run.start_epoch}: nothing is left of {run.epochs} epochs; raise "
            "--epochs"
        )


def _check_devices(config: TrainConfig) -> None:
    """Raises UsageError if the key-value store does not fit the worker processes."""
    devices = config.devices
    has_workers = dmlc_environment.read_environment() is not None
    if devices.is_distributed and not has_workers:
        raise UsageError(
            f"--kvstore {devices.kvstore}: is for several worker processes; start them with python "
            "-m embedding_learning launch --workers 2 --servers 1 -- and these flags"
        )
    if has_workers and not devices.is_distributed:
        raise UsageError(
            f"--kvstore {devices.kvstore}: this process is one of several workers (DMLC_ROLE is "
            "set), which need --kvstore dist_sync or dist_device_sync; or unset DMLC_ROLE"
        )
    if devices.kvstore == "dist_async" and config.optimizer.warm_up_epochs:
        raise UsageError("--warm-up-epochs: its rates do not get to the servers of dist_async")


def _check_batch(config: TrainConfig, is_total: bool) -> None:
    """Raises UsageError unless each device's part of the batch is whole classes, at least two.

    `is_total`: the size was given for all devices together.
    """
    batch, devices = config.batch, config.devices.count
    per_device, left_over = divmod(batch.total, devices)
    size = batch.total if is_total else batch.per_device
    flag = f"--{'total-' if is_total else ''}batch-size {size}"
    least = 2 * batch.batch_k
    near = max(least, round(per_device / batch.batch_k) * batch.batch_k)

    def a_device(images: int) -> str:
        total = f" (--total-batch-size {images * devices})" if is_total and devices > 1 else ""
        return f"{images} a device{total}"

    if left_over:
        raise UsageError(
            f"{flag}: cannot be divided among {devices} devices; {a_device(near)} would be whole "
            "classes"
        )
    if per_device % batch.batch_k:
        raise UsageError(
            f"{flag}: {per_device} images a device are not whole classes of --batch-k "
            f"{batch.batch_k}; {a_device(near)} would be"
        )
    if per_device < least:
        raise UsageError(
            f"{flag}: {per_device} images a device are a single class of --batch-k "
            f"{batch.batch_k}, so there would be no negatives; {a_device(least)} are the least"
        )


def _check_prefix(prefix: str) -> None:
    folder, name = os.path.split(prefix)
    folder = folder or "."
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UsageError(
            f"--save-model-prefix {prefix}: the folder {folder} does not exist or cannot be "
            "written to; create it first"
        )
    if not name or os.path.isdir(f"{prefix}.params"):
        raise UsageError(
            f"--save-model-prefix {prefix}: is no prefix of a file's name, such as models/birds"
        )
    plain = prefix_of(prefix)
    # Earlier versions accepted such a prefix; a run that has one can go on.
    if plain != prefix and not os.path.isdir(f"{prefix}.run"):
        raise UsageError(
            f"--save-model-prefix {prefix}: is the name of a file, to which .params would be added "
            f"again; give {plain}"
        )
    check_name_length(f"{prefix}.params", f"--save-model-prefix {prefix}")
