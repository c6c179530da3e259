"""Starts processes that run the original or this program, and writes their settings and data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from embedding_learning.config import DataConfig, TrainConfig
from embedding_learning.data.datasets import ImageSet, Split
from embedding_learning.errors import TrainingError
from embedding_learning.model.weights.catalog import resolve_name
from embedding_learning.original.source import Numbers

_ROOT = Path(__file__).resolve().parents[2]
# A box larger than any image. The original cuts a box at the edges of the image.
_WHOLE_IMAGE = (0, 0, 10**6, 10**6)


@contextmanager
def start_process(
    module: str, settings: Path, environment: Mapping[str, str] = MappingProxyType({}), **pipes: Any
) -> Iterator[subprocess.Popen[str]]:
    """Runs a module of this package as a process, which is killed at the end of the block."""
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", f"embedding_learning.original.{module}", str(settings)]
    started = subprocess.Popen(
        command,
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment,
        },
        encoding="utf-8",
        errors="replace",
        **pipes,
    )  # fmt: skip
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        for pipe in (started.stdin, started.stdout, started.stderr):
            if pipe:
                pipe.close()


def write_settings(file: Path, **settings: Any) -> Path:
    """Writes the settings of a process as JSON. Returns the file."""
    file.write_text(json.dumps(settings), encoding="utf-8")
    return file


def create_error(program: str, when: str, output: str) -> TrainingError:
    """Returns the exception for a process that ended too early, with its last line of output."""
    lines = [line for line in output.splitlines() if line.strip()]
    return TrainingError(f"{program} failed {when}: {lines[-1] if lines else 'without a message'}")


def flags(config: TrainConfig, folder: Path, prefix: Path) -> list[str]:
    """Returns the original's flags for these settings, with `folder` as its data set."""
    method, optimizer, gpus = config.method, config.optimizer, config.devices.gpus
    values = {
        "data-path": folder,
        "embed-dim": config.model.embed_dim,
        "batch-size": config.batch.total // max(1, len(gpus)),
        "batch-k": config.batch.batch_k,
        "epochs": config.run.epochs,
        "optimizer": optimizer.name,
        "lr": optimizer.lr,
        "lr-beta": method.lr_beta,
        "margin": method.margin,
        "beta": method.beta,
        "nu": method.nu,
        "factor": optimizer.factor,
        "steps": ",".join(map(str, optimizer.steps)),
        "wd": optimizer.wd,
        "seed": config.run.seed,
        "model": resolve_name(config.model.backbone),
        "save-model-prefix": prefix,
        "kvstore": config.devices.kvstore,
        "log-interval": config.run.log_interval,
    }
    written = [f"--{name}={value}" for name, value in values.items()]
    if gpus:
        written.append(f"--gpus={','.join(map(str, gpus))}")
    if config.model.has_pretrained_backbone:
        written.append("--use-pretrained")
    return written


def numbers(data: DataConfig, classes: int, batches: int) -> Numbers:
    """Returns the numbers that replace those in the original's files."""
    return Numbers(classes, batches, data.image_size, data.crop_size)


def write_data(split: Split, folder: Path) -> None:
    """Writes the split as a folder that the original can read: lists, and links to the images.

    The training classes have the first numbers. Images without a box get a box around the whole
    image.
    """
    (folder / "images").mkdir(parents=True)
    images, labels, boxes = [], [], []
    number = 0
    for part, first_class in ((split.train, 1), (split.test, 1 + len(split.train.class_names))):
        for row, path in enumerate(part.paths):
            number += 1
            (folder / "images" / str(number)).symlink_to(os.path.abspath(path))
            images.append(f"{number} {number}\n")
            labels.append(f"{number} {part.labels[row] + first_class}\n")
            boxes.append(f"{number} {' '.join(map(str, _box(part, row)))}\n")
    for name, lines in (
        ("images.txt", images), ("image_class_labels.txt", labels), ("bounding_boxes.txt", boxes),
    ):  # fmt: skip
        (folder / name).write_text("".join(lines), encoding="utf-8")


def _box(part: ImageSet, row: int) -> tuple[int, ...] | np.ndarray:
    return _WHOLE_IMAGE if part.boxes is None else part.boxes[row]
