"""Trains both programs independently, with their own batches and negatives, for several seeds."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import mxnet as mx
import numpy as np

from embedding_learning.config import ModelConfig, TrainConfig
from embedding_learning.data.build import read_split
from embedding_learning.errors import UsageError
from embedding_learning.model import backbones
from embedding_learning.model.weights.params_file import save_parameters
from embedding_learning.original import processes

PROGRAMS = ("the original", "here")
RECALL_AT = (1, 2, 4, 8, 16)
# Both programs write these lines.
_RECALL = re.compile(r"\[Epoch (\d+)\] validation: Recall@(\d+)=(\S+)")
_SECONDS = re.compile(r"\[Epoch (\d+)\] time cost: (\S+)")
_SHOWN = re.compile(r"\[Epoch \d+(, Iter \d+)?\] (training loss|validation: Recall@1)=")


class Run(NamedTuple):
    """The result of one program's training with one seed.

    Attributes
    ----------
    program : str
        One of PROGRAMS.
    seed : int
    recalls : ndarray (epochs, 5)
        Recall@1, 2, 4, 8, 16 after each epoch.
    images_per_second : float
        Training images per second, over all epochs.
    peak_megabytes : float
        The peak memory of its process.
    """

    program: str
    seed: int
    recalls: np.ndarray
    images_per_second: float
    peak_megabytes: float


def train(
    config: TrainConfig, arguments: Sequence[str], path: Path, epochs: int, seeds: int
) -> Iterator[Run]:
    """Trains both programs with each seed, one process after another; yields each finished run.

    `arguments` are the flags that `config` was read from. The seeds count up from `--seed`.

    Raises UsageError or DataError if flags and data do not fit, TrainingError if a run fails.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="compare-original-")))
        split = read_split(config)
        if split.gallery:
            raise UsageError(
                f"--data-path {config.data.path}: its queries are searched in a gallery, which "
                "the original does not support; --epochs 0 leaves the free runs out"
            )
        if split.groups:
            raise UsageError(
                f"--data-path {config.data.path}: images of a query's group are left out, which "
                "the original does not support; remove the column group, or leave the free runs "
                "out with --epochs 0"
            )
        if len(split.test) <= max(RECALL_AT):
            raise UsageError(
                f"--data-path {config.data.path}: {len(split.test)} test images are too few for "
                f"the original's Recall@{max(RECALL_AT)}; --epochs 0 leaves the free runs out"
            )
        processes.write_data(split, folder / "data")
        backbone = _write_backbone(config.model, folder / "backbone.params")
        classes = len(split.train.class_names)
        numbers = processes.numbers(config.data, classes, config.batch.batch_num)
        for seed in range(config.run.seed, config.run.seed + seeds):
            for program in PROGRAMS:
                run_folder = Path(stack.enter_context(TemporaryDirectory(dir=folder)))
                run = replace(config.run, seed=seed, epochs=epochs)
                of_seed = replace(config, run=run)
                flags = processes.flags(of_seed, folder / "data", run_folder / "model")
                if program == "here":
                    # If a flag is given twice, the last one counts.
                    flags = [*arguments, f"--epochs={epochs}", f"--seed={seed}"]
                    flags += [f"--save-model-prefix={run_folder / 'model'}", "--no-evaluate-first"]
                settings = processes.write_settings(
                    run_folder / "settings.json",
                    original=str(path) if program != "here" else None,
                    flags=flags,
                    seed=seed,
                    numbers=numbers,
                    backbone=backbone,
                )
                yield _run(of_seed, program, settings)


def compute_mean_and_spread(runs: Sequence[Run], program: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the means and standard deviations of a program's recalls over the seeds.

    Both are (epochs, 5). The deviation is that of a sample: NaN for a single seed.
    """
    recalls = np.array([run.recalls for run in runs if run.program == program])
    if len(recalls) < 2:
        return recalls[0], np.full(recalls.shape[1:], np.nan)
    return recalls.mean(axis=0), recalls.std(axis=0, ddof=1)


def _write_backbone(model: ModelConfig, file: Path) -> str | None:
    """Writes the pretrained backbone for the original. Returns its file; None if there is none."""
    if not model.has_pretrained_backbone:
        return None
    features = backbones.create(
        model.backbone, [mx.cpu()], model.use_pretrained, model.pretrained_params
    )
    save_parameters(features, str(file))
    return str(file)


def _run(config: TrainConfig, program: str, settings: Path) -> Run:
    """Runs a program and shows its progress. Blocks. Raises TrainingError if it fails."""
    title = f"{program}, seed {config.run.seed}"
    lines = []
    pipes: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    with processes.start_process("whole_run", settings, **pipes) as process:
        assert process.stdout and process.stderr
        for line in process.stderr:
            lines.append(line)
            if _SHOWN.search(line):
                print(f"{title}: {line[line.index('[') :].rstrip()}", file=sys.stderr, flush=True)
        printed = process.stdout.read().split()
        if process.wait():
            raise processes.create_error(title, "in its free run", "".join(lines))
    recalls, seconds = read_log("".join(lines), config.run.epochs)
    images = config.batch.batch_num * config.batch.total * config.run.epochs
    return Run(program, config.run.seed, recalls, images / seconds, int(printed[-1]) / 1e6)


def read_log(text: str, epochs: int) -> tuple[np.ndarray, float]:
    """Returns the recalls (epochs, 5) and the seconds of training in a log of either program."""
    recalls = np.full((epochs, len(RECALL_AT)), np.nan)
    for epoch, k, value in _RECALL.findall(text):
        recalls[int(epoch), RECALL_AT.index(int(k))] = float(value)
    return recalls, sum(float(seconds) for _, seconds in _SECONDS.findall(text))
