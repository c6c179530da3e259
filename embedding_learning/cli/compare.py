"""`compare`: trains with several losses, samplings and seeds, and compares them in a table."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from embedding_learning.cli import train_flags
from embedding_learning.cli.parser import (
    Parser,
    add,
    add_choice,
    add_count,
    add_path,
    given,
)
from embedding_learning.config import TrainConfig, as_flag
from embedding_learning.errors import UsageError
from embedding_learning.experiments import results
from embedding_learning.experiments.results import (
    HELD_OUT,
    SELECTIONS,
    TEST,
    Trial,
)
from embedding_learning.model import methods
from embedding_learning.runtime import mxnet_compat
from embedding_learning.runtime.file_locks import open_locked
from embedding_learning.runtime.flag_values import check_range, device_numbers
from embedding_learning.runtime.progress import log_to_terminal

# The paper's own comparison, its table 1, has all of these pairs but two.
_LOSSES = "margin,contrastive,triplet,triplet-euclidean"
_SAMPLINGS = "distance-weighted,semi-hard,random"
_NOT_IN_TABLE_1 = {("triplet", "random"), ("triplet-euclidean", "random")}
# Flags that this command sets for each run, or does not allow.
_SET_HERE = (
    "loss", "sampling", "seed", "save_model_prefix", "resume", "tensorboard", "held_out_fold",
)  # fmt: skip
# Flags that change at most the last digits of a run's numbers.
_MAY_CHANGE = (
    "gpus", "workers", "log_interval", "cache", "cache_dir", "keep", "checkpoint_interval",
    "evaluate_first", "saved_epoch", *_SET_HERE,
)  # fmt: skip
_HELD_OUT_SHARE = 0.2
# All runs are listed before the first one begins.
_MOST_SEEDS, _MOST_PARALLEL, _MOST_FOLDS = 1000, 256, 1000


def main(arguments: list[str]) -> int:
    """Trains what is not finished and writes the tables; returns 1 if a run failed, else 0."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    chosen = _parse(arguments[:end])
    typed = arguments[end + 1 :]
    flags, slots, config = _read_train_flags(typed, chosen)
    # Imported here, since these import MXNet and matplotlib.
    from embedding_learning.data.build import read_split
    from embedding_learning.errors import Interrupted
    from embedding_learning.experiments import process_pool, sweep
    from embedding_learning.runtime.signals import stop_on_signals

    seeds = range(1, chosen.seeds + 1)
    # All pairs with one seed come first: the table is complete early, and only its spread grows.
    trials = [Trial(loss, sampling, seed) for seed in seeds for loss, sampling in chosen.pairs]
    folder = Path(chosen.output)
    with log_to_terminal(), _hold_folder(folder):
        # A mistake in the data would be one in each run.
        for fold in range(1, chosen.folds + 1):
            data = dataclasses.replace(config.data, held_out_fold=fold)
            read_split(dataclasses.replace(config, data=data))
        results.claim_folder(folder, _make_plan(config, chosen))
        comparison = sweep.Comparison(
            folder=folder,
            trials=trials,
            flags=flags,
            config=config,
            select_on=chosen.select_on,
            typed=shlex.join(typed),
            parallel=len(slots),
            folds=chosen.folds,
        )
        finished = len(comparison.outcomes())
        if finished:
            logging.info("%d of %d runs are finished already.", finished, len(trials))
        tasks = [partial(comparison.run_trial, trial) for trial in trials]
        with stop_on_signals() as stop:
            process_pool.run_all(tasks, slots, _threads_per_run(len(slots)), stop)
        print(comparison.write_tables())
    if stop.number is not None:
        raise Interrupted(
            stop.number,
            f"{len(comparison.outcomes())} of {len(trials)} runs are finished; the same command "
            "resumes",
        )
    return 1 if comparison.failed else 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the flags before --. `pairs` of the result holds each loss with each sampling."""
    parser = Parser(
        prog="python -m embedding_learning compare",
        usage="%(prog)s [--losses A,B] [--samplings A,B] [--seeds N] [--output DIR] "
        "[--select-on WORD] [--folds N] [--parallel N] -- FLAGS OF TRAIN.PY",
        description="Train with several losses, samplings and seeds, and put them in one table. "
        "The same command resumes what is not finished. Without --losses and --samplings it "
        "compares the ten pairs of the paper's table 1, which has random sampling with margin and "
        "contrastive alone.",
    )
    add(parser, "--losses", _LOSSES, f"of {', '.join(methods.LOSSES)}")
    add(parser, "--samplings", _SAMPLINGS, f"of {', '.join(methods.SAMPLINGS)}")
    add(parser, "--seeds", 3, "runs of each loss with each sampling: the seeds 1 to N")
    add_path(parser, "--output", "comparison", "folder of the tables, the plot and the runs")
    text = "what selects the best epoch; held-out: training classes (--held-out, else a fifth)"
    add_choice(parser, "--select-on", SELECTIONS, text)
    text = "with --select-on held-out: hold out all training classes, in N folds by as many runs"
    add(parser, "--folds", 1, text)
    text = "runs at a time (default: one on each of --gpus, or one)"
    add_count(parser, "--parallel", text)
    chosen = parser.parse_args(arguments)
    chosen.pairs = results.pair_methods(
        _parse_names("--losses", chosen.losses, methods.LOSSES),
        _parse_names("--samplings", chosen.samplings, methods.SAMPLINGS),
    )
    if not {"losses", "samplings"} & given(parser, arguments).keys():
        chosen.pairs = [pair for pair in chosen.pairs if pair not in _NOT_IN_TABLE_1]
    check_range("seeds", chosen.seeds, 1, _MOST_SEEDS)
    check_range("folds", chosen.folds, 1, _MOST_FOLDS)
    if chosen.folds > 1 and chosen.select_on == TEST:
        raise UsageError("--folds: is for --select-on held-out")
    if chosen.parallel is not None:
        check_range("parallel", chosen.parallel, 1, _MOST_PARALLEL)
    return chosen


def _parse_names(flag: str, text: str, known: Collection[str]) -> list[str]:
    """Returns the names in a list. Raises UsageError for one that is unknown or repeated."""
    names = text.split(",")
    if not set(names) <= set(known) or len(set(names)) < len(names):
        raise UsageError(
            f"{flag} {text}: different names expected, with commas between them, of "
            f"{', '.join(known)}"
        )
    return names


def _read_train_flags(
    typed: list[str], chosen: argparse.Namespace
) -> tuple[list[str], list[list[str]], TrainConfig]:
    """Returns the flags of all runs, the flags of each slot, and the configuration of the former.

    Raises UsageError for flags that train.py would refuse.
    """
    given = train_flags.given(typed)
    for name in _SET_HERE:
        if name in given:
            raise UsageError(f"{as_flag(name)}: differs from run to run; leave it out")
    if chosen.select_on == TEST and given.get("held_out"):
        raise UsageError("--held-out: is for --select-on held-out")
    if chosen.folds > 1 and "held_out" in given:
        raise UsageError("--held-out: --folds says how many classes are held out; leave it out")
    if chosen.select_on == HELD_OUT and "classes" in given:
        raise UsageError("--classes: differs with and without the held-out ones; leave it out")
    flags = ["--keep=1", *train_flags.spelled_out(typed)]
    if chosen.select_on == HELD_OUT and not given.get("held_out"):
        share = _HELD_OUT_SHARE if chosen.folds == 1 else 1 / chosen.folds
        flags.append(f"--held-out={share}")
    gpus = device_numbers("--gpus", given.get("gpus", ""))
    slots = [[f"--gpus={gpu}"] for gpu in gpus] or [[]] * (chosen.parallel or 1)
    if chosen.parallel and chosen.parallel > len(slots):
        raise UsageError(
            f"--parallel {chosen.parallel}: a run takes one GPU, and --gpus names {len(gpus)}"
        )
    slots = slots[: chosen.parallel]
    folder = os.path.dirname(os.path.abspath(chosen.output))
    if not os.access(folder, os.W_OK):
        raise UsageError(
            f"--output {chosen.output}: the folder {folder} does not exist or cannot be written to"
        )
    placeholders = [*slots[0], f"--save-model-prefix={folder}/run"]
    for loss, sampling in chosen.pairs:
        train_flags.parse([*results.flags_for(loss, flags, sampling), *placeholders])
    config = train_flags.parse([*flags, *placeholders])
    if config.run.epochs < 1:
        raise UsageError("--epochs 0: there would be nothing to compare")
    return flags, slots, config


def _make_plan(config: TrainConfig, chosen: argparse.Namespace) -> dict[str, object]:
    """Returns the flags that every call for the same folder must share."""
    shared = {as_flag(n): value for n, value in config.as_flags().items() if n not in _MAY_CHANGE}
    return {"--select-on": chosen.select_on, "--folds": chosen.folds, **shared}


@contextmanager
def _hold_folder(folder: Path) -> Iterator[None]:
    """Creates the folder; no other comparison can write to it within the block."""
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        lock = open_locked(folder)
    except BlockingIOError:
        raise UsageError(f"--output {folder}: another comparison is writing to it") from None
    except OSError as error:
        raise UsageError(f"--output {folder}: cannot be used: {error.strerror}") from None
    try:
        yield
    finally:
        os.close(lock)


def _threads_per_run(runs: int) -> int | None:
    """Divides the cores among parallel runs; None if the user has set the number of threads."""
    if not mxnet_compat.has_chosen_threads:
        return None
    return max(1, int(os.environ["OMP_NUM_THREADS"]) // runs)
