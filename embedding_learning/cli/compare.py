"""`compare`: trains with several losses, samplings, seeds and flags, and puts them in a table."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding_learning.cli import compare_cells, train_flags
from embedding_learning.cli.compare_cells import METHOD_FLAGS, Cells
from embedding_learning.cli.parser import (
    Parser,
    add,
    add_choice,
    add_count,
    add_path,
)
from embedding_learning.config import FLAGS, ModelConfig, as_flag, flags_of
from embedding_learning.errors import Interrupted, UsageError
from embedding_learning.experiments import results
from embedding_learning.experiments.results import (
    HELD_OUT,
    SELECTIONS,
    TEST,
    VARIED,
    Trial,
)
from embedding_learning.model import methods
from embedding_learning.runtime import mxnet_compat
from embedding_learning.runtime.file_locks import open_locked
from embedding_learning.runtime.flag_values import check_range, device_numbers
from embedding_learning.runtime.progress import log_to_terminal
from embedding_learning.training.settings import make_config

if TYPE_CHECKING:
    from embedding_learning.experiments.sweep import Comparison

# The paper's own comparison, its table 1, has all of these pairs but two.
_LOSSES = ("margin", "contrastive", "triplet", "triplet-euclidean")
_SAMPLINGS = ("distance-weighted", "semi-hard", "random")
_TABLE_1 = [
    pair
    for pair in results.pair_methods(_LOSSES, _SAMPLINGS)
    if pair not in {("triplet", "random"), ("triplet-euclidean", "random")}
]
# Flags that this command sets for each run, or does not allow.
_SET_HERE = (
    "loss", "sampling", "seed", "save_model_prefix", "resume", "tensorboard", "held_out_fold",
)  # fmt: skip
# Flags that change at most the last digits of a run's numbers.
_MAY_CHANGE = (
    "gpus", "workers", "log_interval", "cache", "cache_dir", "keep", "checkpoint_interval",
    "evaluate_first", "saved_epoch", *_SET_HERE,
)  # fmt: skip
# Flags that decide whether a network can be built.
_OF_NETWORK = {*(flag.key for flag in flags_of(ModelConfig)), "crop_size"}
_HELD_OUT_SHARE = 0.2
# All runs are listed before the first one begins.
_MOST_SEEDS, _MOST_PARALLEL, _MOST_FOLDS = 1000, 256, 1000


def main(arguments: list[str]) -> int:
    """Trains what is not finished and writes the tables; returns 1 if a run failed, else 0."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    chosen, typed = _parse(arguments[:end]), arguments[end + 1 :]
    given = train_flags.given(typed)
    _check_train_flags(given, chosen)
    pairs = _pair_methods(given, chosen)
    flags = _shared_flags(typed, given, chosen)
    slots = _find_slots(given, chosen)
    # They stand for the flags that each run has of its own.
    placeholders = [*slots[0], f"--save-model-prefix={_find_parent(chosen.output)}/run"]
    cells, lines = compare_cells.build_cells(pairs, chosen.varied, flags, placeholders, _MAY_CHANGE)
    for of_cell in cells.values():
        if of_cell.config.run.epochs < 1:
            raise UsageError("--epochs 0: there would be nothing to compare")
        if chosen.select_on == HELD_OUT and not of_cell.config.data.held_out:
            raise UsageError("--held-out 0.0: holds out nothing for --select-on held-out")
    plan = _make_plan(cells, [*flags, *placeholders], chosen)
    # Imported here, since it imports MXNet and matplotlib.
    from embedding_learning.experiments import sweep

    seeds = range(1, chosen.seeds + 1)
    # All cells with one seed come first: the table is complete early, and only its spread grows.
    trials = [Trial(cell, seed) for seed in seeds for cell in cells]
    folder = Path(chosen.output)
    with log_to_terminal(), _hold_folder(folder):
        for line in lines:
            logging.info(line)
        _check_cells(cells, chosen.folds)
        results.claim_folder(folder, plan)
        comparison = sweep.Comparison(
            folder=folder,
            trials=trials,
            flags=cells,
            select_on=chosen.select_on,
            typed=shlex.join(typed),
            parallel=len(slots),
            folds=chosen.folds,
            leave_out_unused=lambda flags: train_flags.leave_out_unused(flags)[0],
        )
        finished = len(comparison.outcomes())
        if finished:
            logging.info("%d of %d runs are finished already.", finished, len(trials))
        if finished < len(trials) and _OF_NETWORK & chosen.varied.keys():
            _check_networks(cells)
        _run_trials(comparison, trials, slots)
    return 1 if comparison.failed else 0


def _run_trials(comparison: Comparison, trials: Sequence[Trial], slots: list[list[str]]) -> None:
    """Trains what is left of the trials, one in each slot at a time, and prints the table.

    Raises Interrupted if a signal stopped them.
    """
    from embedding_learning.experiments import process_pool
    from embedding_learning.runtime.signals import stop_on_signals

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


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the flags before --.

    `varied` of the result holds the values of each varied flag by its key.
    """
    parser = Parser(
        prog="python -m embedding_learning compare",
        usage="%(prog)s [--losses A,B] [--samplings A,B] [--vary FLAG=V1,V2]... [--seeds N] "
        "[--output DIR] [--select-on WORD] [--folds N] [--parallel N] -- FLAGS OF TRAIN.PY",
        description="Train with several losses, samplings, seeds and values of other flags, and "
        "put them in one table. The same command resumes what is not finished. Without --losses, "
        "--samplings and --vary it compares the ten pairs of the paper's table 1, which has random "
        "sampling with margin and contrastive alone.",
    )
    for flag, rows, default in (
        ("--losses", methods.LOSSES, _LOSSES),
        ("--samplings", methods.SAMPLINGS, _SAMPLINGS),
    ):
        text = f"of {', '.join(rows)} (default: {','.join(default)}; with --vary: as train.py)"
        parser.add_argument(flag, metavar="A,B", help=text)
    text = (
        "a flag of train.py and its values (of a switch: yes, no); given several times, all are "
        "combined; default is a value too"
    )
    parser.add_argument("--vary", action="append", default=[], metavar="FLAG=V1,V2", help=text)
    add(parser, "--seeds", 3, "runs of each row of the table: the seeds 1 to N")
    add_path(parser, "--output", "comparison", "folder of the tables, the plot and the runs")
    text = "what selects the best epoch; held-out: training classes (--held-out, else a fifth)"
    add_choice(parser, "--select-on", SELECTIONS, text)
    text = "with --select-on held-out: hold out all training classes, in N folds by as many runs"
    add(parser, "--folds", 1, text)
    text = "runs at a time (default: one on each of --gpus, or one)"
    add_count(parser, "--parallel", text)
    chosen = parser.parse_args(arguments)
    chosen.varied = compare_cells.parse_vary(chosen.vary, (*_SET_HERE, "gpus"))
    check_range("seeds", chosen.seeds, 1, _MOST_SEEDS)
    check_range("folds", chosen.folds, 1, _MOST_FOLDS)
    if chosen.folds > 1 and chosen.select_on == TEST:
        raise UsageError("--folds: is for --select-on held-out")
    if chosen.parallel is not None:
        check_range("parallel", chosen.parallel, 1, _MOST_PARALLEL)
    return chosen


def _parse_names(
    flag: str, text: str | None, default: Sequence[str], known: Collection[str]
) -> Sequence[str]:
    """Returns the names in a list, or the default if the flag was not given.

    Raises UsageError for one that is unknown or repeated.
    """
    if text is None:
        return default
    names = text.split(",")
    if not set(names) <= set(known) or len(set(names)) < len(names):
        raise UsageError(
            f"{flag} {text}: different names expected, with commas between them, of "
            f"{', '.join(known)}"
        )
    return names


def _methods_of_train(chosen: argparse.Namespace) -> set[str]:
    """Returns which of the keys loss and sampling are left to the flags of train.py.

    With --vary these are the ones that the command's own flags do not name, otherwise none.
    """
    if not chosen.varied:
        return set()
    return {key for key, name in METHOD_FLAGS.items() if getattr(chosen, name) is None}


def _check_train_flags(given: Mapping[str, Any], chosen: argparse.Namespace) -> None:
    """Raises UsageError if flags of train.py, by key, do not fit the command's own."""
    for name in _SET_HERE:
        if name in given and name not in _methods_of_train(chosen):
            raise UsageError(f"{as_flag(name)}: {compare_cells.format_set_here(name)}")
    for name in chosen.varied:
        if name in given:
            raise UsageError(
                f"--vary {as_flag(name)[2:]}: {as_flag(name)} is also among the flags behind --; "
                "leave one out"
            )
    named = given.keys() | chosen.varied.keys()
    if chosen.select_on == TEST and _holds_out(given, chosen):
        raise UsageError("--held-out: is for --select-on held-out")
    if chosen.folds > 1 and "held_out" in named:
        raise UsageError("--held-out: --folds says how many classes are held out; leave it out")
    if chosen.select_on == HELD_OUT and "classes" in named:
        raise UsageError("--classes: differs with and without the held-out ones; leave it out")


def _holds_out(given: Mapping[str, Any], chosen: argparse.Namespace) -> bool:
    """Whether flags of train.py hold out classes."""
    return "held_out" in chosen.varied or bool(given.get("held_out"))


def _pair_methods(given: Mapping[str, Any], chosen: argparse.Namespace) -> list[tuple[str, str]]:
    """Returns each loss with its samplings. `given` are the flags of train.py by key."""
    if not chosen.varied and chosen.losses is None and chosen.samplings is None:
        return _TABLE_1
    of_train = _methods_of_train(chosen)
    # Raises UsageError for an unknown name.
    config = make_config({key: given[key] for key in of_train if key in given}, saves=False)
    losses: Sequence[str] = [config.method.loss]
    samplings: Sequence[str] = [config.method.sampling]
    if "loss" not in of_train:
        losses = _parse_names("--losses", chosen.losses, _LOSSES, methods.LOSSES)
    if "sampling" not in of_train:
        samplings = _parse_names("--samplings", chosen.samplings, _SAMPLINGS, methods.SAMPLINGS)
    return results.pair_methods(losses, samplings)


def _shared_flags(
    typed: Sequence[str], given: Mapping[str, Any], chosen: argparse.Namespace
) -> list[str]:
    """Returns the flags of train.py for all runs: those that were typed, and what follows."""
    flags = ["--keep=1", *train_flags.spelled_out(typed)]
    if chosen.select_on == HELD_OUT and not _holds_out(given, chosen):
        share = _HELD_OUT_SHARE if chosen.folds == 1 else 1 / chosen.folds
        flags.append(f"--held-out={share}")
    return flags


def _find_slots(given: Mapping[str, Any], chosen: argparse.Namespace) -> list[list[str]]:
    """Returns the flags of each slot: its GPU, or none.

    Raises UsageError for more parallel runs than GPUs.
    """
    gpus = device_numbers("--gpus", given.get("gpus", ""))
    slots = [[f"--gpus={gpu}"] for gpu in gpus] or [[]] * (chosen.parallel or 1)
    if chosen.parallel and chosen.parallel > len(slots):
        raise UsageError(
            f"--parallel {chosen.parallel}: a run takes one GPU, and --gpus names {len(gpus)}"
        )
    return slots[: chosen.parallel]


def _find_parent(output: str) -> str:
    """Returns the folder of --output. Raises UsageError if it cannot be written to."""
    folder = os.path.dirname(os.path.abspath(output))
    if not os.access(folder, os.W_OK):
        raise UsageError(
            f"--output {output}: the folder {folder} does not exist or cannot be written to"
        )
    return folder


def _make_plan(
    cells: Cells, arguments: Sequence[str], chosen: argparse.Namespace
) -> dict[str, object]:
    """Returns the flags that every call for the same folder must share.

    `arguments` are the flags of train.py that all cells have.
    """
    if not chosen.varied:
        settings = train_flags.parse(arguments, is_past=True).as_flags()
    else:
        # Without what follows from a varied flag: other values of it may be added later.
        typed = train_flags.given(arguments)
        config = next(iter(cells.values())).config
        settings = {
            key: value if key in typed or key not in FLAGS else FLAGS[key].default
            for key, value in config.as_flags().items()
        }
        settings.update(dict.fromkeys(chosen.varied, VARIED))
    shared = {as_flag(key): value for key, value in settings.items() if key not in _MAY_CHANGE}
    return {"--select-on": chosen.select_on, "--folds": chosen.folds, **shared}


def _check_cells(cells: Cells, folds: int) -> None:
    """Raises UsageError or DataError for what MXNet or the data would refuse in each run."""
    from embedding_learning.data.build import read_split
    from embedding_learning.training.build import check

    configs = [of_cell.config for of_cell in cells.values()]
    for config in configs:
        check(config)
    for config in {(config.data, config.batch): config for config in configs}.values():
        for fold in range(1, folds + 1):
            data = dataclasses.replace(config.data, held_out_fold=fold)
            read_split(dataclasses.replace(config, data=data))


def _check_networks(cells: Cells) -> None:
    """Builds each network once. Raises UsageError if that is not possible."""
    import mxnet as mx

    from embedding_learning.training.build import build_network

    configs = [of_cell.config for of_cell in cells.values()]
    for config in {(config.model, config.data.crop_size): config for config in configs}.values():
        build_network(config, [mx.cpu()])


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
