"""The flags of train.py, from the table in `config`. Imports no MXNet, so `--help` is quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any

from embedding_learning.cli import parser, unused_flags
from embedding_learning.cli.parser import Parser, expand_path, number_or_none
from embedding_learning.config import (
    FLAGS,
    DataConfig,
    Flag,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    as_flag,
    flags_of,
)
from embedding_learning.errors import UsageError
from embedding_learning.evaluation.metric_table import describe_metrics
from embedding_learning.model.weights import catalog
from embedding_learning.runtime import user_folders
from embedding_learning.training.settings import CHOICES, make_config

# The flags of MXNet's example embedding_learning, in its order. Their names, types and defaults
# must not change.
_OF_THE_ORIGINAL = (
    "data_path", "embed_dim", "batch_size", "batch_k", "gpus", "epochs", "optimizer", "lr",
    "lr_beta", "margin", "beta", "nu", "factor", "steps", "wd", "seed", "model",
    "save_model_prefix", "use_pretrained", "kvstore", "log_interval",
)  # fmt: skip
# The flags that suruoxi/DistanceWeightedSampling adds. Without them the run is the original's.
_OF_THE_PORT = (
    "start_epoch", "workers", "feat_dim", "classes", "batch_num", "total_batch_size", "momentum",
    "resume", "normalize_weights",
)  # fmt: skip
_OF_EARLIER_PROGRAMS = {*_OF_THE_ORIGINAL, *_OF_THE_PORT}
_PORT_ALIASES = {"--print-freq": "log_interval", "--save-prefix": "save_model_prefix"}
# The further flags: the title of each group in `--help`, and the section of the configuration.
_GROUPS: dict[str, type[Any] | None] = {
    "data": DataConfig,
    "network": ModelConfig,
    "loss and sampling": MethodConfig,
    "optimizer": OptimizerConfig,
    "run": None,  # all others
}


def parse(arguments: Sequence[str], saves: bool = True, is_past: bool = False) -> TrainConfig:
    """Reads and checks the flags.

    Parameters
    ----------
    arguments : sequence of str
    saves : bool
        Whether a network will be saved, so that its path is checked.
    is_past : bool
        Whether they are the flags of an existing run: flags without effect are then accepted.

    Raises
    ------
    UsageError
        If a flag is unknown, cannot be read, contradicts another, or has no effect.
    """
    typed = given(arguments)
    config = make_config(typed, saves)
    if not is_past:
        for key, reason in unused_flags.find(typed, config).items():
            if key not in _OF_EARLIER_PROGRAMS:
                raise UsageError(f"{as_flag(key)}: has no effect: {reason}; leave it out")
    return config


def leave_out_unused(
    arguments: Sequence[str], left_out: Collection[str] = ()
) -> tuple[list[str], TrainConfig, dict[str, str]]:
    """Leaves out the flags that `parse` refuses because they have no effect.

    Parameters
    ----------
    arguments : sequence of str
        Not abbreviated.
    left_out : collection of str
        Keys of flags that are left out without effect even if earlier programs had them. They need
        not be among the arguments.

    Returns
    -------
    list of str
        The arguments that are left.
    TrainConfig
        The same arguments, read.
    dict of str to str
        The flags that have no effect, by key, each with the reason.

    Raises
    ------
    UsageError
        If a flag is unknown, cannot be read or contradicts another.
    """
    kept = list(arguments)
    reasons: dict[str, str] = {}
    while True:
        typed = given(kept).keys() | (set(left_out) - reasons.keys())
        config = parse(kept, is_past=True)
        unused = {
            key: reason
            for key, reason in unused_flags.find(typed, config).items()
            if key in left_out or key not in _OF_EARLIER_PROGRAMS
        }
        if not unused:
            return kept, config, reasons
        reasons.update(unused)
        kept = _without(kept, unused)


def _without(arguments: Sequence[str], keys: Collection[str]) -> list[str]:
    """Returns the arguments without some flags, in each form that these have."""
    names = {flag.name: flag for key, flag in FLAGS.items() if key in keys}
    names |= {alias: FLAGS[key] for alias, key in _PORT_ALIASES.items() if key in keys}
    kept, rest = [], iter(arguments)
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if name not in names:
            kept.append(argument)
        elif not equals and names[name].type is not bool:
            next(rest, None)
    return kept


def find_key(name: str) -> str | None:
    """Returns the key of a flag in `config.FLAGS`, given without its dashes; None if unknown.

    The name may be abbreviated, or one of the port.
    """
    (full,) = spelled_out([f"--{name}"])
    keys = {**{flag.name: key for key, flag in FLAGS.items()}, **_PORT_ALIASES}
    return keys.get(full)


def unused_earlier_flags(arguments: Sequence[str], config: TrainConfig) -> list[str]:
    """Returns a line for each flag of the two earlier programs that was typed without effect.

    The earlier programs accept such flags silently, and commands written for them may hold some:
    so they are not refused. `config` is what `parse` returned for the arguments.
    """
    return [
        f"{as_flag(key)}: has no effect: {reason}."
        for key, reason in unused_flags.find(given(arguments), config).items()
        if key in _OF_EARLIER_PROGRAMS
    ]


def given(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the flags of train.py that are typed in the arguments, by key; read, not checked.

    Raises UsageError if one is unknown or cannot be read.
    """
    return parser.given(build_parser(), spelled_out(arguments))


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with abbreviated flags written in full.

    An abbreviation that is unambiguous in the original means the same flag here, even if a newer
    flag has the same beginning.
    """
    original, known = _names()
    full: list[str] = []
    for number, argument in enumerate(arguments):
        if argument == "--":
            return [*full, *arguments[number:]]
        start, equals, value = argument.partition("=")
        if start.startswith("--") and start not in known:
            for names in (original, known):
                matches = [name for name in names if name.startswith(start)]
                if len(matches) == 1:
                    argument = f"{matches[0]}{equals}{value}"
                    break
        full.append(argument)
    return full


@cache
def _names() -> tuple[list[str], list[str]]:
    """Returns the original's flags as they are typed, and all flags."""
    known = [name for action in build_parser()._actions for name in action.option_strings]
    return ["-h", "--help", *map(as_flag, _OF_THE_ORIGINAL)], known


@cache
def build_parser() -> argparse.ArgumentParser:
    """Declares all flags, once for a process: `compare` reads the flags of each of its runs."""
    parser = Parser(
        prog="train.py",
        description="Train an image embedding with the margin-based loss and distance weighted "
        "sampling (Wu et al., Sampling Matters in Deep Embedding Learning, ICCV 2017).",
    )
    add_flags(parser, _OF_THE_ORIGINAL)
    port = parser.add_argument_group("flags of the PyTorch port")
    add_flags(port, _OF_THE_PORT)
    for alias, key in _PORT_ALIASES.items():
        text = f"another name of {as_flag(key)}"
        port.add_argument(
            alias, dest=key, type=FLAGS[key].type, default=argparse.SUPPRESS, help=text
        )
    further = [key for key in FLAGS if key not in _OF_EARLIER_PROGRAMS]
    for title, section in _GROUPS.items():
        keys = [flag.key for flag in flags_of(section)] if section else list(FLAGS)
        group = parser.add_argument_group(title)
        if section is ModelConfig:
            text = "print the backbones, their sizes and where to find weights of them, and exit"
            group.add_argument("--list-models", action=_ListModels, help=text)
        add_flags(group, [key for key in keys if key in further])
        further = [key for key in further if key not in keys]
    return parser


def add_flags(group: argparse._ActionsContainer, keys: Collection[str]) -> None:
    """Declares flags of train.py, given by their keys in `config.FLAGS`."""
    for key in keys:
        _add_flag(group, FLAGS[key])


def _add_flag(group: argparse._ActionsContainer, flag: Flag) -> None:
    """Declares a flag of the table; its value is read as text or a number but not checked."""
    default = user_folders.find_cache_folder() if flag.key == "cache_dir" else flag.default
    if flag.can_be_negated:
        action = argparse.BooleanOptionalAction
        group.add_argument(flag.name, dest=flag.key, action=action, default=default, help=flag.help)
        return
    if flag.type is bool:
        group.add_argument(flag.name, dest=flag.key, action="store_true", help=flag.help)
        return
    if flag.type is tuple:
        default = ",".join(map(str, default))
    group.add_argument(
        flag.name,
        dest=flag.key,
        type=_type_of(flag),
        default=default,
        metavar=flag.metavar,
        help=_help_text(flag, default),
    )


def _type_of(flag: Flag) -> Callable[[str], Any]:
    """Returns what reads the text of a flag that has a value."""
    if flag.is_path:
        return expand_path
    if flag.can_be_none:
        return number_or_none
    return str if flag.type is tuple else flag.type


def _help_text(flag: Flag, default: Any) -> str:
    """Returns the help of a flag that has a value, with its choices and its default."""
    choices = ", ".join(CHOICES.get(flag.key, flag.choices))
    if flag.key == "metrics":
        choices = describe_metrics()
    text = f"{flag.help}: {choices}" if choices else flag.help
    text = text.replace("%", "%%")
    return text if default in (None, "") else f"{text} (default: %(default)s)"


class _ListModels(argparse.Action):
    """Prints the backbones and exits, as --help does."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        default = argparse.SUPPRESS
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=default, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(catalog.format_table())
        parser.exit()
