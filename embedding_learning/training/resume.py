"""Resuming: what a checkpoint says of its run, and whether the flags still fit it."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from embedding_learning.config import FLAGS, MAY_CHANGE, SAME, TrainConfig, as_flag
from embedding_learning.errors import UsageError
from embedding_learning.model.methods import LOSSES
from embedding_learning.training.checkpoint_file import FORMAT, Checkpoint
from embedding_learning.training.progress import Progress
from embedding_learning.training.settings import LOWER_CASE

# What the state was made with; with another value it would not fit, or not be the same run.
_MUST_AGREE = tuple(key for key, flag in FLAGS.items() if flag.on_resume == SAME)
# What may change, but leads to another model.
_MAY_CHANGE = tuple(key for key, flag in FLAGS.items() if flag.on_resume == MAY_CHANGE)
# What a run was made with before there were these flags.
_FORMERLY = {key: flag.before for key, flag in FLAGS.items() if flag.before is not None}
# What only the start of a run reads, and what a checkpoint has in its place.
_ONLY_AT_START = {"init_from": "weights", "pretrained_params": "weights", "beta": "beta"}
_PACKAGES = ("mxnet", "mxnet-cu112", "numpy", "opencv-python", "gluoncv")
_LARGEST = 2**31
_LARGEST_NUMBER = sys.float_info.max
_LONGEST_SHOWN = 500  # characters


def describe(config: TrainConfig, data_digest: str, progress: Progress) -> dict[str, Any]:
    """Returns the part of a checkpoint's state that is not the learner's, for JSON."""
    return {
        "format": FORMAT,
        "progress": asdict(progress),
        "flags": config.as_flags(),
        "data": data_digest,
        "made_with": made_with(),
    }


def read_progress(checkpoint: Checkpoint, batch_num: int) -> Progress:
    """Returns how far the run had come. Raises UsageError if its numbers are invalid."""
    saved = checkpoint.state.get("progress")
    names = {field.name for field in fields(Progress)}
    if isinstance(saved, dict) and saved.keys() == names - {"to_beat"}:
        saved = {**saved, "to_beat": _former_to_beat(saved)}
    if isinstance(saved, dict) and saved.keys() == names:
        progress = Progress(**saved)
        counts = [progress.epoch, progress.batch]
        if progress.best_epoch is not None:
            counts.append(progress.best_epoch)
        numbers = [
            progress.interval_loss, progress.epoch_loss, progress.seconds, progress.best,
            progress.run_seconds,
        ]  # fmt: skip
        numbers += [n for n in (progress.before, progress.to_beat) if n is not None]
        if (
            all(type(count) is int and 0 <= count < _LARGEST for count in counts)
            and progress.batch <= batch_num
            and type(progress.records_bytes) is int
            and 0 <= progress.records_bytes < sys.maxsize
            and all(type(number) in (int, float) for number in numbers)
            and all(abs(number) <= _LARGEST_NUMBER for number in numbers)  # no NaN either
        ):
            return progress
    raise UsageError(f"--resume {checkpoint.path}: does not show how far its run had come")


def _former_to_beat(progress: dict[str, Any]) -> Any:
    """Returns `to_beat` for a checkpoint of format 1, where a network had to beat the best one.

    Its best Recall@1 was 0 as long as no network had been saved.
    """
    is_saved = progress["best"] or progress["best_epoch"] is not None
    return progress["best"] if is_saved else None


def check_flags(checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Compares the flags with those of the checkpoint's run.

    Raises UsageError that names all that must agree and do not; logs what else makes the rest of
    the run another one.
    """
    former = checkpoint.state.get("flags")
    names = (*_MUST_AGREE, *_MAY_CHANGE, "beta")
    if not isinstance(former, dict) or not all(_is_showable(former.get(name)) for name in names):
        raise UsageError(f"--resume {checkpoint.path}: does not show the flags of its run")
    former = {**_FORMERLY, **former}
    # Earlier programs kept the spelling that was typed.
    former.update({n: former[n].lower() for n in LOWER_CASE if isinstance(former.get(n), str)})
    now = config.as_flags()
    differing = [
        _format_flag(name, former) for name in _MUST_AGREE if former.get(name) != now[name]
    ]
    if _is_pretrained(former) != _is_pretrained(now):
        differing.append("pretrained weights" if _is_pretrained(former) else "random weights")
    if LOSSES[now["loss"]].has_beta and bool(former.get("lr_beta")) != bool(now["lr_beta"]):
        differing.append(_format_flag("lr_beta", former))
    if differing:
        raise UsageError(
            f"--resume {checkpoint.path}: was made with {', '.join(differing)}; give these, or "
            "start from scratch without --resume"
        )
    _log_changed_flags(former, now)
    _log_changed_devices(checkpoint, config)
    _log_changed_packages(checkpoint)


def _log_changed_flags(former: dict[str, Any], now: dict[str, Any]) -> None:
    """Logs the flags that may change and do."""
    # Where beta is learned, its first value does not matter any more.
    is_beta_learned = bool(now["lr_beta"])
    for name in _MAY_CHANGE if is_beta_learned else (*_MAY_CHANGE, "beta"):
        if former.get(name) != now[name]:
            logging.info(
                "The run continues with %s instead of %s.",
                _format_flag(name, now), former.get(name),
            )  # fmt: skip
    for name, state in _ONLY_AT_START.items():
        is_default = now[name] == FLAGS[name].default
        if now[name] != former.get(name) and not is_default and (name != "beta" or is_beta_learned):
            logging.warning(
                "%s: has no effect: the run continues with the %s of its checkpoint.",
                _format_flag(name, now), state,
            )  # fmt: skip
    if now["start_epoch"] and now["start_epoch"] != former.get("start_epoch"):
        logging.warning(
            "--start-epoch: has no effect: the run continues where its checkpoint was written."
        )


def _log_changed_devices(checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Warns if the run continues with another number of devices."""
    learner = checkpoint.state.get("learner")
    former = learner.get("devices") if isinstance(learner, dict) else None
    devices = config.devices.count
    if former != devices and _is_showable(former):
        logging.warning(
            "The run continues with %d devices instead of %s: from the same state, but not to the "
            "same numbers. %sThe running statistics of batch norm, which each device has for "
            "itself, are averaged.",
            devices, former,
            "Negatives are sampled within each device's part of the batch. "
            if config.method.negatives == "device" else "",
        )  # fmt: skip


def _log_changed_packages(checkpoint: Checkpoint) -> None:
    """Logs packages of another version, and another number of threads."""
    former = checkpoint.state.get("made_with")
    for name, value in made_with().items():
        former_value = former.get(name) if isinstance(former, dict) else None
        if former_value != value and _is_showable(former_value):
            logging.info(
                "Made with %s %s, continues with %s: the last digits may differ.",
                name, former_value, value,
            )  # fmt: skip


def check_data(checkpoint: Checkpoint, data_digest: str, data_path: str) -> None:
    """Raises UsageError if the run was trained on other images."""
    if checkpoint.state.get("data") != data_digest:
        raise UsageError(
            f"--resume {checkpoint.path}: was trained on other images, classes, boxes or groups "
            f"than --data-path {data_path} holds with these flags; give those of its run"
        )


def _is_pretrained(flags: dict[str, Any]) -> bool:
    return bool(flags.get("use_pretrained") or flags.get("pretrained_params"))


def _is_showable(value: Any) -> bool:
    """Whether a value from a file, which may be untrusted, can stand in a line of text."""
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, (list, dict)) for part in parts):
        return False
    text = ",".join(map(str, parts))
    return text.isprintable() and len(text) <= _LONGEST_SHOWN


def _format_flag(name: str, flags: dict[str, Any]) -> str:
    """Returns a flag and its value as they are typed; ``no --flag`` for a switch that is off."""
    flag, value = as_flag(name), flags.get(name)
    if isinstance(value, bool) or value is None:
        return flag if value else f"no {flag}"
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return f"{flag} {value}"


def made_with() -> dict[str, str]:
    """Returns what else determines the last digits of a run's numbers: versions, threads."""
    return {"threads": os.environ.get("OMP_NUM_THREADS", ""), **_versions()}


@cache
def _versions() -> dict[str, str]:
    """Returns the versions of the packages, for which files of theirs are read."""
    versions = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
