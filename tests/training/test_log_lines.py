"""The output: the original's lines to the letter, and a progress bar only on terminals."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import threading

import numpy as np
import pytest
from tqdm import tqdm

from embedding_learning.data.datasets import ImageSet, Split
from embedding_learning.data.datasets.splits import log_split
from embedding_learning.runtime.progress import progress_bar
from embedding_learning.training import log_lines
from tests.helpers.paths import ROOT

LOG = """
log_lines.log_learning_rates(3, [0.0001, 0.1])
log_lines.log_learning_rates(4, [0.00005])
log_lines.log_interval_loss(3, 20, 7.25)
log_lines.log_epoch_loss(3, 70.125, 12.3456789)
log_lines.log_metrics(3, {"recall@1": 0.5, "recall@16": 2 / 3})
log_lines.log_saving("runs/margin_loss_model")
"""
LOGGED = """\
INFO:root:Epoch 3 learning rate=0.000100
INFO:root:Epoch 3 beta learning rate=0.100000
INFO:root:Epoch 4 learning rate=0.000050
INFO:root:[Epoch 3, Iter 20] training loss=7.250000
INFO:root:[Epoch 3] training loss=70.125000
INFO:root:[Epoch 3] time cost: 12.345679
INFO:root:[Epoch 3] validation: Recall@1=0.500000
INFO:root:[Epoch 3] validation: Recall@16=0.666667
INFO:root:Saving runs/margin_loss_model.
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_lines_are_those_of_the_original() -> None:
    code = (
        "from embedding_learning.runtime.progress import log_to_terminal\n"
        "from embedding_learning.training import log_lines\n"
        f"with log_to_terminal():\n{LOG}"
    )
    code = code.replace("\nlog_lines.log", "\n    log_lines.log")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stderr, done.stdout) == (LOGGED, "")


def test_recalls_before_training_say_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_lines.log_metrics(None, {"recall@1": 0.25})
    assert caplog.messages == ["[Before training] validation: Recall@1=0.250000"]


def test_the_closing_line_is_that_of_the_original(capsys: pytest.CaptureFixture[str]) -> None:
    log_lines.print_best("Birds, whole images", 0.6249)
    output, errors = capsys.readouterr()
    assert output.splitlines() == ["Birds, whole images.", "Best validation Recall@1: 0.62."]
    assert errors == ""


def test_the_gain_stands_above_the_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    log_lines.print_best("Birds, whole images", 0.625, before=0.0)
    assert capsys.readouterr().out.splitlines() == [
        "Birds, whole images.",
        "Recall@1 before training: 0.0000, best after: 0.6250.",
        "Best validation Recall@1: 0.62.",
    ]


@pytest.mark.parametrize("best", [0.0, 0.25])
def test_without_training_there_is_no_gain(capsys: pytest.CaptureFixture[str], best: float) -> None:
    """The network that was resumed may be the best one too."""
    log_lines.print_best("Birds", best, before=0.25, is_trained=False)
    assert capsys.readouterr().out.splitlines() == [
        "Birds.",
        "Recall@1 before training: 0.2500.",
        "Best validation Recall@1: 0.25.",
    ]


def image_set(labels: list[int], classes: int, boxed: bool = False) -> ImageSet:
    """A data set with only what its log line shows."""
    paths = [f"{number}.jpg" for number in range(len(labels))]
    boxes = np.ones((len(labels), 4), np.int32) if boxed else None
    return ImageSet(paths, np.array(labels, np.int32), [""] * classes, boxes)


def test_what_trains_and_tests_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    train, test = (image_set(labels, 2, boxed=True) for labels in ([0, 0, 0, 1, 1], [0, 1, 0, 1]))
    log_split(Split("Birds", train, test))
    assert caplog.messages == ["Birds, cropped to boxes: 5 images of 2 classes train, 4 of 2 test."]


def test_a_gallery_is_reported_and_classes_that_only_it_has_are_not_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    train, query, gallery = (
        image_set(labels, 4) for labels in ([0, 1, 2, 3], [0, 2, 0], [0, 2, 3])
    )
    log_split(Split("Clothes", train, query, gallery))
    assert caplog.messages == [
        "Clothes, whole images: 4 images of 4 classes train, 3 of 2 test against a gallery of 3."
    ]


def test_what_the_recalls_cannot_show_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    log_split(Split("Birds", image_set([0, 1], 2), image_set([0, 1, 1], 2)))
    (line,) = caplog.messages
    assert line.startswith("Birds: 1 of 3 test images have no partner")


def test_progress_shows_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar("abc", "Epoch 0")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_progress_shows_a_bar_on_a_terminal_and_removes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = progress_bar(range(3), "Epoch 0")
    next(bar)
    assert "Epoch 0" in terminal.getvalue()
    assert "0/3" in terminal.getvalue()
    assert list(bar) == [1, 2]
    last_line = terminal.getvalue().split("\r")[-2:]
    assert not "".join(last_line).strip()


@pytest.mark.parametrize("settings, unit", [({}, "batch"), ({"unit": "image"}, "image")])
def test_progress_counts_in_its_unit(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], unit: str
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress_bar(range(3), "Decoding images", **settings)) == [0, 1, 2]
    assert f"{unit}/s" in terminal.getvalue()


def test_the_bar_starts_no_helper_process() -> None:
    """A lock between processes would, from Python 3.14 on."""
    assert type(tqdm.get_lock()) is type(threading.RLock())
