"""Every numeric flag of every command at the edges of its range: a one-line error, or it works.

The flags are those of the parsers themselves, so a new one is tried without being named here.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mxnet as mx
import pytest
from mxnet.gluon import nn

from embedding_learning.__main__ import VERBS
from embedding_learning.cli import train_flags
from embedding_learning.cli.parser import Parser
from embedding_learning.config import LARGEST_NUMBER, LEAST_NUMBER
from embedding_learning.errors import DataError, TrainingError, UsageError
from embedding_learning.model import backbones
from embedding_learning.runtime.flag_values import check_number
from embedding_learning.training import build, run, schedule
from tests.helpers.tiny_networks import batch_of, each_class, small_net

# The errors that a user sees as one line.
REPORTED = (UsageError, DataError, TrainingError)
EDGES: dict[type, list[str]] = {
    int: ["0", "-1", "1", str(2**31), str(2**63), str(10**30)],
    float: [
        *(
            "0",
            "-0.0",
            "-1",
            "nan",
            "inf",
            "-inf",
            "1e-38",
            "-1e-38",
            "1e38",
            "1e39",
            "1e-300",
            "1e300",
        ),
        *(str(LEAST_NUMBER), str(LARGEST_NUMBER)),
    ],
}
# The lists of numbers, which are text to the parsers.
LISTS = {
    "--gpus": ["-1", str(2**31), str(2**63), "0,0", "1,"],
    "--steps": ["-1", "0", "0,0", str(2**31), str(10**30), "1,", "1e3", str(-(2**63))],
}
# What each verb needs before its numbers are looked at.
NEEDED = {
    "evaluate": ["a.params"],
    "embed": ["a.params", "a.jpg", "--output=a.npy"],
    "search": ["a.params", "a.npy", "a.jpg"],
    "plot": ["gallery", "a.params", "a.png"],
    "report": ["birds"],
    "compare-original": ["original"],
    "launch": ["--dry-run", "--", "--data-path=birds"],
}
# A run of a single step; what is tried stands behind these.
QUICK = [
    *("--image-size=40", "--crop-size=32", "--batch-size=6", "--batch-k=3", "--epochs=1"),
    *("--batch-num=1", "--workers=0", "--cache=none", "--embed-dim=4", "--metrics=recall@1"),
]


def numeric_flags(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """The edges to try of each flag that takes a number; flags of subcommands are in it too."""
    found: dict[str, list[str]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found.update(numeric_flags(below))
        elif action.option_strings:
            name = action.option_strings[0]
            edges = EDGES.get(action.type) if isinstance(action.type, type) else None  # type: ignore[call-overload]
            if edges or name in LISTS:
                found[name] = edges or LISTS[name]
    return found


class _Seen(Exception):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def command(verb: str) -> Callable[[list[str]], Any]:
    """Returns the function that reads a verb's flags; `launch` checks its own as it runs."""
    module = importlib.import_module(f"embedding_learning.cli.{verb.replace('-', '_')}")
    return module.main if verb == "launch" else module._parse


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser that the verb makes."""

    def see(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        raise _Seen(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Seen) as seen:
        for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
            patch.setattr(Parser, name, see)
        command(verb)(NEEDED.get(verb, []))
    return seen.value.parser


def pairs_of(parser: argparse.ArgumentParser) -> list[str]:
    """Arguments such as --lr=1e-38."""
    return [f"{flag}={edge}" for flag, edges in numeric_flags(parser).items() for edge in edges]


TRAIN = pairs_of(train_flags.build_parser())
# The flags of `train` are those above.
COMMANDS = [(v, pair) for v in VERBS if v != "train" for pair in pairs_of(parser_of(v))]


@functools.cache
def accepted_by_train() -> list[str]:
    """The pairs that train.py accepts. Not found when the tests are collected: it takes seconds."""
    found = []
    for pair in TRAIN:
        try:
            train_flags.parse([*QUICK, pair], is_past=True)
        except UsageError:
            continue
        found.append(pair)
    return found


def test_every_number_is_tried() -> None:
    tried = {pair.partition("=")[0] for pair in TRAIN}
    assert {"--lr", "--embed-dim", "--seed", "--grad-clip", "--held-out", "--gpus"} <= tried
    assert {("check", "--workers"), ("search", "-k"), ("plot", "--batch-size")} <= {
        (verb, pair.partition("=")[0]) for verb, pair in COMMANDS
    }


@pytest.mark.parametrize("pairs", [TRAIN], ids=[f"{len(TRAIN)}_combinations"])
def test_flags_of_train_at_their_edges_are_reported_in_one_line(pairs: list[str]) -> None:
    for pair in pairs:
        try:
            train_flags.parse([pair])
        except UsageError as error:
            assert re.match(r"(argument )?--[a-z][^\n]+$", str(error)), pair


@pytest.mark.parametrize("pairs", [COMMANDS], ids=[f"{len(COMMANDS)}_combinations"])
def test_flags_of_commands_at_their_edges_are_reported_in_one_line(
    pairs: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for verb, pair in pairs:
        try:
            command(verb)([pair, *NEEDED.get(verb, [])] if verb != "compare-original" else
                          [*NEEDED[verb], pair])  # fmt: skip
        except UsageError as error:
            assert "\n" not in str(error), (verb, pair)


def test_no_count_is_beyond_what_mxnet_counts_in() -> None:
    """Only the seed may be: it is drawn from, not counted with."""
    beyond = {pair for pair in accepted_by_train() if pair.partition("=")[2] in EDGES[int][3:]}
    beyond -= {f"--steps={edge}" for edge in LISTS["--steps"]}
    assert {pair.partition("=")[0] for pair in beyond if "--gpus" not in pair} == {"--seed"}


def tiny_backbone(*args: Any, **kwargs: Any) -> nn.HybridSequential:
    backbone = nn.HybridSequential()
    backbone.add(nn.Conv2D(2, 3), nn.BatchNorm(), nn.Activation("relu"), nn.GlobalAvgPool2D())
    return backbone


@pytest.mark.slow
def test_accepted_flags_train_or_are_refused_in_one_line(
    tiny_cub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run of one step each, with a network of two filters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backbones, "create", tiny_backbone)
    for pair in accepted_by_train():
        typed = [*QUICK, f"--data-path={tiny_cub}", pair]
        try:
            run.run(train_flags.parse(typed, is_past=True), typed)
        except REPORTED as error:
            assert "\n" not in str(error), pair


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", build.optimizers())
def test_every_optimizer_takes_the_numbers_that_are_taken(optimizer: str) -> None:
    edges = [f"{flag}={edge}" for flag in ("--lr", "--wd", "--grad-clip") for edge in EDGES[float]]
    for pair in sorted({*edges} & {*accepted_by_train()}):
        typed = [f"--optimizer={optimizer}", "--batch-size=20", "--batch-k=2", "--epochs=1", pair]
        config = train_flags.parse(typed, is_past=True)
        try:
            build.check(config)
        except UsageError as error:
            assert str(error).startswith(f"--optimizer {optimizer}: does not work at a learning")
            continue
        learner = build.build(config, each_class(5), small_net([mx.cpu()]), [mx.cpu()])
        schedule.set_trainer_rates(config, learner.trainers, 0)
        learner.step(batch_of(20))
        mx.nd.waitall()


def test_a_number_has_one_rule() -> None:
    for value in (0.0, -0.0, LEAST_NUMBER, LARGEST_NUMBER, -1.0):
        check_number("--x", value)
    for value in (LEAST_NUMBER / 2, -LEAST_NUMBER / 2, 2 * LARGEST_NUMBER, 1e-38, 1e39):
        with pytest.raises(UsageError, match=r"^--x: must be 0 or of a size between"):
            check_number("--x", value)
