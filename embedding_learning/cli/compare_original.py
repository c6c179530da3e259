"""`compare-original`: compares this program with the original, step by step and in full runs."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding_learning.cli.parser import Parser, add, expand_path
from embedding_learning.cli.train_flags import parse
from embedding_learning.config import TrainConfig, as_flag
from embedding_learning.errors import UsageError
from embedding_learning.model.weights.catalog import GLUON_NAMES, resolve_name
from embedding_learning.original import source
from embedding_learning.runtime.atomic_files import format_csv, write_text
from embedding_learning.runtime.flag_values import check_range
from embedding_learning.runtime.progress import log_to_terminal

if TYPE_CHECKING:
    from embedding_learning.original.free_runs import Run
    from embedding_learning.original.steps import Difference, Step

# The flags of train.py that both programs understand.
_SHARED_FLAGS = {
    "data_path", "embed_dim", "batch_size", "batch_k", "gpus", "optimizer", "lr", "lr_beta",
    "margin", "beta", "nu", "factor", "wd", "seed", "model", "use_pretrained", "kvstore",
    "log_interval", "workers", "classes", "batch_num", "total_batch_size", "pretrained_params",
    "dataset", "bbox", "train_classes", "image_size", "crop_size", "cache", "cache_dir",
    "processes",
}  # fmt: skip
_STEP_COLUMNS = (
    "step", "loss_original", "loss_here", "loss_difference", "gradient_norm_original",
    "gradient_norm_here", "gradient_norm_difference", "parameter_difference", "parameter",
    "beta_difference",
)  # fmt: skip
_CONTROL_COLUMNS = (
    "control_loss_difference", "control_gradient_norm_difference", "control_parameter_difference",
    "control_parameter", "control_beta_difference",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Prints both tables line by line, and writes them if --output is given; returns 0."""
    chosen, rest = _parse(arguments)
    config = _train_config(rest)
    source.check_folder(chosen.path)
    if chosen.output:
        _make_folder(chosen.output)
    # Imported here: MXNet takes seconds to import, and mistakes in flags are found without it.
    from embedding_learning.training.build import check

    check(config)
    with log_to_terminal():
        if chosen.steps:
            _compare_steps(chosen, config)
        if chosen.epochs:
            _compare_runs(chosen, config, rest)
    return 0


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the command's own flags, parsed, and the flags of train.py."""
    parser = Parser(
        prog="python -m embedding_learning compare-original",
        usage="%(prog)s PATH [--steps N] [--control] [--epochs N] [--seeds N] [--output FOLDER] "
        "[FLAGS OF TRAIN.PY]",
        description="Compare this program with the original example: the same steps of both, then "
        "free runs of both. Both programs receive the flags of train.py.",
        allow_abbrev=False,
    )
    text = "the original's folder, example/gluon/embedding_learning of apache/mxnet 1.9.1"
    parser.add_argument("path", metavar="PATH", type=Path, help=text)
    add(parser, "--steps", 50, "steps from the same weights on the same batches; 0: none")
    text = "also run the original's steps a second time, with another number of threads"
    parser.add_argument("--control", action="store_true", help=text)
    add(parser, "--epochs", 5, "epochs of each free run; 0: none")
    add(parser, "--seeds", 3, "free runs of each program, with seeds that count up from --seed")
    text = "write the tables into this folder, as CSV"
    parser.add_argument("--output", metavar="FOLDER", type=_expand_path, help=text)
    if arguments and arguments[0].startswith("-") and not {"-h", "--help"} & set(arguments):
        raise UsageError(f"compare-original {arguments[0]}: the original's PATH comes first")
    chosen, rest = parser.parse_known_args(arguments)
    for name, least in {"steps": 0, "epochs": 0, "seeds": 1}.items():
        check_range(name, getattr(chosen, name), least)
    if chosen.control and not chosen.steps:
        raise UsageError("--control: has no effect with --steps 0; leave it out")
    return chosen, rest


def _expand_path(text: str) -> Path:
    return Path(expand_path(text))


def _make_folder(folder: Path) -> None:
    """Creates the folder. Raises UsageError if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--output {folder}: cannot be created ({error.strerror}); name another folder"
        ) from error


def _train_config(flags: Sequence[str]) -> TrainConfig:
    """Reads the flags of train.py. Raises UsageError if the original cannot follow them."""
    # A valid prefix; nothing is saved there. The original does not evaluate first.
    prefix = [
        f"--save-model-prefix={tempfile.gettempdir()}/compare-original",
        "--no-evaluate-first",
    ]
    config = parse([*prefix, *flags])
    settings, defaults = config.as_flags(), parse(prefix).as_flags()
    for key, value in settings.items():
        if key not in _SHARED_FLAGS and value != defaults[key]:
            raise UsageError(
                f"{as_flag(key)}: the original does not know it, or it is not for this command; "
                "leave it out"
            )
    if config.devices.is_distributed:
        raise UsageError(
            f"--kvstore {config.devices.kvstore}: one process each is compared; leave it out"
        )
    backbone = config.model.backbone
    if resolve_name(backbone) not in (None, *GLUON_NAMES):
        raise UsageError(
            f"--model {backbone}: the original knows only MXNet's model zoo; choose one of "
            f"{', '.join(GLUON_NAMES)}"
        )
    return config


def _compare_steps(chosen: argparse.Namespace, config: TrainConfig) -> None:
    """Runs the same steps of both programs, and prints a line for each."""
    from embedding_learning.original import steps

    compared: list[Step] = []
    _print_heads(chosen.control)
    for step in steps.compare(config, chosen.path, chosen.steps, chosen.control):
        compared.append(step)
        _print_step(step)
    _print_largest("the original and here", [step.difference for step in compared])
    if chosen.control:
        _print_largest("the original twice", [step.control for step in compared if step.control])
    if chosen.output:
        columns = _STEP_COLUMNS + (_CONTROL_COLUMNS if chosen.control else ())
        write_text(chosen.output / "steps.csv", format_csv([columns, *map(_step_row, compared)]))


def _print_heads(with_control: bool) -> None:
    print(
        "Differences: |a - b| / |a|, where a is the original's; of parameters the largest "
        "max|a - b| / max|a| of all arrays."
    )
    control = "  the original against itself" if with_control else ""
    print(f"      {'loss':31s} {'norm of the gradient':31s} {'parameters':10s} beta    {control}")
    three = f"{'original':>10s} {'here':>10s} {'diff.':>9s} "
    control = f"  {'loss':>9s} {'parameters':>10s}" if with_control else ""
    print(f"step  {three}{three}{'diff.':>10s} {'diff.':>9s}{control}", flush=True)


def _print_step(step: Step) -> None:
    theirs, ours, difference = step.original, step.here, step.difference
    control = ""
    if step.control:
        control = f"  {step.control.loss:9.1e} {step.control.network.value:10.1e}"
    print(
        f"{step.number:4d}  {theirs.loss:10.6f} {ours.loss:10.6f} {difference.loss:9.1e} "
        f"{theirs.gradient_norm:10.6f} {ours.gradient_norm:10.6f} "
        f"{difference.gradient_norm:9.1e} {difference.network.value:10.1e} "
        f"{difference.beta:9.1e}{control}",
        flush=True,
    )


def _print_largest(programs: str, differences: Sequence[Difference]) -> None:
    """Prints the largest difference of loss, gradient norm, parameters and beta, a line each."""
    for name, values in (
        ("loss", [difference.loss for difference in differences]),
        ("gradient norm", [difference.gradient_norm for difference in differences]),
        ("parameters", [difference.network.value for difference in differences]),
        ("beta", [difference.beta for difference in differences]),
    ):
        # NaN counts as the largest.
        worst = max(range(len(values)), key=lambda i: (math.isnan(values[i]), values[i]))
        array = f" ({differences[worst].network.array})" if name == "parameters" else ""
        print(
            f"Largest difference of {programs} in {name}: {values[worst]:.1e} at step "
            f"{worst + 1}{array}."
        )


def _step_row(step: Step) -> list[Any]:
    """Returns the values of `_STEP_COLUMNS`, and of `_CONTROL_COLUMNS` if there is a control."""
    theirs, ours, difference = step.original, step.here, step.difference
    row = [
        step.number, theirs.loss, ours.loss, difference.loss, theirs.gradient_norm,
        ours.gradient_norm, difference.gradient_norm, *difference.network, difference.beta,
    ]  # fmt: skip
    if step.control:
        control = step.control
        row += [control.loss, control.gradient_norm, *control.network, control.beta]
    return row


def _compare_runs(chosen: argparse.Namespace, config: TrainConfig, flags: Sequence[str]) -> None:
    """Trains both programs with several seeds, and prints the means of their recalls."""
    from embedding_learning.original import free_runs

    runs: list[Run] = []
    for run in free_runs.train(config, flags, chosen.path, chosen.epochs, chosen.seeds):
        runs.append(run)
        if chosen.output:
            # After each run, since the next one may fail after hours.
            _write_runs(chosen.output / "free_runs.csv", runs)
        last = run.recalls[-1]
        print(
            f"{run.program}, seed {run.seed}: Recall@1 {last[0]:.4f} after {chosen.epochs} epochs, "
            f"{run.images_per_second:.1f} images/s, {run.peak_megabytes:.0f} MB at most.",
            file=sys.stderr,
            flush=True,
        )
    means = list(_mean_rows(runs))
    print(f"\nRecall, mean ± standard deviation; seeds: {chosen.seeds}")
    print("epoch program      " + "".join(f"{f'@{k}':>17s}" for k in free_runs.RECALL_AT))
    for epoch, program, *values in means:
        cells = "".join(map(_format_mean, values[::2], values[1::2]))
        print(f"{epoch:5d} {program:13s}{cells}")
    for program in free_runs.PROGRAMS:
        of_program = [run for run in runs if run.program == program]
        speed = sum(run.images_per_second for run in of_program) / len(of_program)
        print(
            f"{program}: {speed:.1f} images/s, "
            f"at most {max(run.peak_megabytes for run in of_program):.0f} MB."
        )
    if chosen.output:
        recalls = [f"recall@{k}" for k in free_runs.RECALL_AT]
        columns = [f"{name}{suffix}" for name in recalls for suffix in ("", "_deviation")]
        write_text(
            chosen.output / "recalls.csv", format_csv([["epoch", "program", *columns], *means])
        )


def _format_mean(mean: float, deviation: float) -> str:
    """Returns mean and deviation in 17 characters; a single seed has no deviation."""
    spread = "" if math.isnan(deviation) else f" ± {deviation:.4f}"
    return f"{f'{mean:.4f}{spread}':>17s}"


def _write_runs(path: Path, runs: Sequence[Run]) -> None:
    """Writes a CSV file with a line for each epoch of each run."""
    from embedding_learning.original.free_runs import RECALL_AT

    recalls = [f"recall@{k}" for k in RECALL_AT]
    rows = (
        [run.program, run.seed, epoch, *row, run.images_per_second, run.peak_megabytes]
        for run in runs
        for epoch, row in enumerate(run.recalls)
    )
    columns = ["program", "seed", "epoch", *recalls, "images_per_second", "peak_megabytes"]
    write_text(path, format_csv([columns, *rows]))


def _mean_rows(runs: Sequence[Run]) -> Iterable[list[Any]]:
    """Yields rows of epoch, program, then mean and deviation of each recall."""
    from embedding_learning.original import free_runs

    spreads = {name: free_runs.compute_mean_and_spread(runs, name) for name in free_runs.PROGRAMS}
    for epoch in range(len(runs[0].recalls)):
        for program, (mean, deviation) in spreads.items():
            pairs = zip(mean[epoch], deviation[epoch])
            yield [epoch, program, *(value for pair in pairs for value in pair)]
