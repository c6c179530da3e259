"""Runs that are stopped, killed or fail, and their results after they are resumed."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mxnet as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from embedding_learning.__main__ import main
from embedding_learning.cli import train
from embedding_learning.inference import embedding_model
from embedding_learning.inference.export import export_symbol
from embedding_learning.model.weights.params_file import read_description
from embedding_learning.training import (
    checkpoint_file,
    learner,
    records,
    run_folder,
    validation,
)
from tests.end_to_end.test_train_command import QUICK
from tests.helpers import tiny_backbone
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT
from tests.helpers.signals import send_signal

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tiny_backbones")]

PREFIX = "margin_loss_model"
# The learning rate falls in the second of the two epochs.
DEVICES = {
    "one device": ["--cpu-contexts=1", "--steps=1"],
    "two devices": ["--cpu-contexts=2", "--steps=1", "--total-batch-size=12"],
}
Start = Callable[..., int]
TrainCommand = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch, tiny_cub: Path, tmp_path_factory: pytest.TempPathFactory
) -> Start:
    """Returns a function that runs train.py in this process, from the given folder."""
    cache = tmp_path_factory.getbasetemp() / "cache-of-interrupted-runs"

    def start(folder: Path, *flags: str) -> int:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        data = [f"--data-path={tiny_cub}", f"--cache-dir={cache}"]
        return train.main([*QUICK, *data, *flags])

    return start


def start_process(
    folder: Path, *flags: str, stderr: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Starts train.py in a process of its own, from the given folder."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *QUICK, *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": tiny_backbone.PYTHONPATH},
        stderr=stderr,
        text=True,
    )


def signal_at_call(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, call: int, number: int
) -> None:
    """Sends this process a signal in the given call of a function, counted from 1."""
    original = getattr(where, name)
    calls = iter(range(1, 10**6))

    def signalling(*arguments: object, **named: object) -> object:
        if next(calls) == call:
            send_signal(number)
        return original(*arguments, **named)

    monkeypatch.setattr(where, name, signalling)


def last_state(folder: Path) -> dict[str, bytes]:
    """The arrays of the newest checkpoint."""
    arrays = load_file(max((folder / f"{PREFIX}.run").glob("checkpoint-*")))
    return {name: array.tobytes() for name, array in arrays.items()}


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The run's records, but for the times."""
    times = {"seconds", "images_per_second", "waiting_share"}
    found = records.read(folder / f"{PREFIX}.run")
    return [{name: r[name] for name in r if name not in times} for r in found]


def logged_values(text: str) -> list[str]:
    return re.findall(r"\[?Epoch \d.*=\d.*", text)


@pytest.fixture(scope="module", params=DEVICES)
def alone(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_cub: Path,
    train_command: TrainCommand,
) -> tuple[list[str], Path, list[str]]:
    """A run left alone: its flags, its folder and the values it logged."""
    folder = tmp_path_factory.mktemp("alone")
    flags = DEVICES[request.param]
    done = train_command(folder, *QUICK, f"--data-path={tiny_cub}", *flags)
    assert done.returncode == 0, done.stderr
    return flags, folder, logged_values(done.stderr)


@pytest.mark.parametrize(
    "where, name, call",
    [
        (learner.Learner, "step", 1),
        (learner.Learner, "step", 3),  # the last batch of its epoch
        (learner.Learner, "step", 5),
        (embedding_model.SequentialBatches, "next", 2),  # in the first evaluation
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(
    alone: tuple[list[str], Path, list[str]],
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    where: object,
    name: str,
    call: int,
    number: int,
) -> None:
    flags, folder, expected = alone
    caplog.set_level("INFO")
    with monkeypatch.context() as patched:
        signal_at_call(patched, where, name, call, number)
        assert start(tmp_path, *flags) == 128 + number
    message = f"train.py: stopped by {signal.Signals(number).name}; the state is in {PREFIX}.run"
    assert message in capsys.readouterr().err
    assert start(tmp_path, *flags, "--resume=auto") == 0
    assert logged_values(caplog.text) == expected
    assert last_state(tmp_path) == last_state(folder)
    assert recorded(tmp_path) == recorded(folder)
    assert len(recorded(folder)) == 6
    best = f"{PREFIX}.params"
    assert (tmp_path / best).read_bytes() == (folder / best).read_bytes()


@pytest.mark.parametrize(
    "flags",
    [
        "--loss=proxy-anchor --lr-proxies=0.02 --scale=20",
        "--loss=proxy-nca --cpu-contexts=2 --total-batch-size=12 --negatives=batch",
        "--memory=10 --memory-from=1 --beta-per=image",
        "--memory=20 --sampling=random --cpu-contexts=2 --total-batch-size=12",
    ],
)
def test_parameters_of_losses_and_memories_go_on_to_the_same_bytes(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    """Stopped after a batch of the second epoch; and the network embeds and is exported."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert start(whole, *flags.split()) == 0
    call = int(np.random.default_rng(len(flags)).integers(2, 6))
    with monkeypatch.context() as patched:
        signal_at_call(patched, learner.Learner, "step", call, signal.SIGTERM)
        assert start(stopped, *flags.split()) == 128 + signal.SIGTERM
    assert start(stopped, *flags.split(), "--resume=auto") == 0
    state = last_state(stopped)
    assert state == last_state(whole)
    assert ("memory/labels" in state) == ("--memory" in flags)
    assert recorded(stopped) == recorded(whole)
    model = embedding_model.load_model(stopped / f"{PREFIX}.params")
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    assert model.embed([image]).shape == (1, 16)
    export_symbol(model.net, str(stopped / "exported"), 32, normalize_input=True)
    assert list(stopped.glob("exported*.params"))


# Enough batches that every file is asked for after the workers' first ones.
DECODING = ["--batch-num=12", "--epochs=1", "--cache=none"]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, tiny_cub: Path, train_command: TrainCommand
) -> dict[str, bytes]:
    """The last state of a run whose files stay as they are."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = train_command(folder, *QUICK, *DECODING, f"--data-path={tiny_cub}")
    assert done.returncode == 0, done.stderr
    return last_state(folder)


def act_at_call(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, call: int, action: Callable[[], None]
) -> None:
    """Does something right before the given call of a function, counted from 1."""
    original = getattr(where, name)
    calls = iter(range(1, 10**6))

    def acting(*arguments: object, **named: object) -> object:
        if next(calls) == call:
            action()
        return original(*arguments, **named)

    monkeypatch.setattr(where, name, acting)


@pytest.mark.parametrize(
    "fault, workers, place, flags",
    [
        ("gone", 0, "training", []),
        ("gone", 3, "training", ["--skip-bad-images"]),
        ("damaged", 3, "training", []),
        ("folder gone", 3, "training", []),
        ("gone", 0, "evaluation", []),
        ("damaged", 3, "evaluation", ["--skip-bad-images"]),
    ],
)
def test_an_image_that_vanishes_ends_the_run_with_the_way_to_go_on(
    undisturbed: dict[str, bytes], start: Start, tmp_path: Path, tiny_cub: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str, workers: int,
    place: str, flags: list[str],
) -> None:  # fmt: skip
    birds = shutil.copytree(tiny_cub, tmp_path / "birds")
    # The first half of the classes trains.
    files = sorted((birds / "images").rglob("*.jpg"))
    file = files[1] if place == "training" else files[-1]
    content = file.read_bytes()

    def harm() -> None:
        if fault == "gone":
            file.unlink()
        elif fault == "damaged":
            file.write_bytes(content[: len(content) // 2])
        else:
            (birds / "images").rename(birds / "away")

    flags = [*DECODING, f"--data-path={birds}", f"--workers={workers}", *flags]
    where: tuple[object, str, int] = (learner.Learner, "step", 2)
    if place == "evaluation":
        where = (validation, "embed_all", 1)
    with monkeypatch.context() as patched:
        act_at_call(patched, *where, harm)
        assert start(tmp_path / "here", *flags) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    named = file if fault != "folder gone" else birds / "images"
    assert line.startswith(f"train.py: stopped: {named}")
    assert line.endswith(
        "put the file back as it was, and --resume auto continues from the saved state"
    )
    (state,) = (tmp_path / "here" / f"{PREFIX}.run").glob("checkpoint-0000-*[1-9].safetensors")
    assert int(state.stem[-6:]) == 12 or place == "training"
    if fault == "folder gone":
        (birds / "away").rename(birds / "images")
    else:
        file.write_bytes(content)
    assert start(tmp_path / "here", *flags, "--resume=auto") == 0
    assert last_state(tmp_path / "here") == undisturbed


def test_a_run_goes_on_without_the_folder_of_its_decoded_images(
    undisturbed: dict[str, bytes], start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are mapped, and the system keeps mapped files."""
    cache = tmp_path / "decoded"
    act_at_call(monkeypatch, learner.Learner, "step", 2, lambda: shutil.rmtree(cache))
    assert start(tmp_path / "here", *DECODING, "--cache=pixels", f"--cache-dir={cache}") == 0
    assert last_state(tmp_path / "here") == undisturbed


def test_a_run_that_is_stopped_in_every_batch_goes_on_to_the_same_bytes(
    alone: tuple[list[str], Path, list[str]],
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flags, folder, expected = alone
    caplog.set_level("INFO")
    statuses = []
    while not statuses or statuses[-1] != 0:
        with monkeypatch.context() as patched:
            signal_at_call(patched, learner.Learner, "step", 1, signal.SIGTERM)
            statuses.append(start(tmp_path, *flags, "--resume=auto"))
    # The last batch of the last epoch is followed by its evaluation alone.
    assert statuses == [143] * 6 + [0]
    assert logged_values(caplog.text) == expected
    assert last_state(tmp_path) == last_state(folder)
    assert recorded(tmp_path) == recorded(folder)
    best = f"{PREFIX}.params"
    assert (tmp_path / best).read_bytes() == (folder / best).read_bytes()


def test_a_run_of_other_crops_goes_on_to_the_same_bytes_and_its_network_embeds(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_cub: Path
) -> None:
    """Two devices, a batch that was drawn by lot, and another number of workers after it."""
    flags = [
        *("--train-crop=random-resized", "--resize-to=shorter-side", "--no-bbox"),
        *("--cpu-contexts=2", "--total-batch-size=12"),
    ]
    assert start(tmp_path / "alone", *flags, "--workers=0") == 0
    batch = int(np.random.default_rng(17).integers(1, 7))
    with monkeypatch.context() as patched:
        signal_at_call(patched, learner.Learner, "step", batch, signal.SIGTERM)
        assert start(tmp_path / "stopped", *flags) == 143
    assert start(tmp_path / "stopped", *flags, "--resume=auto", "--workers=3") == 0
    assert last_state(tmp_path / "stopped") == last_state(tmp_path / "alone")
    assert recorded(tmp_path / "stopped") == recorded(tmp_path / "alone")
    best = f"{PREFIX}.params"
    assert (tmp_path / "stopped" / best).read_bytes() == (tmp_path / "alone" / best).read_bytes()
    # Other crops lead elsewhere.
    assert start(tmp_path / "original", *flags, "--train-crop=original") == 0
    assert last_state(tmp_path / "original") != last_state(tmp_path / "alone")

    monkeypatch.chdir(tmp_path / "alone")
    paths = sorted(map(str, (tiny_cub / "images").rglob("*.jpg")))
    assert main(["embed", best, *paths, "--output=a.npy"]) == 0
    assert main(["export", best, "net", "--normalize-input"]) == 0
    # Of 44 x 40 pixels the shorter side stays; the middle of 32 pixels is seen.
    middle = [cv2.imread(path)[4:36, 6:38, ::-1].transpose(2, 0, 1) for path in paths]
    graph = mx.gluon.SymbolBlock.imports("net-symbol.json", ["data"], "net-0000.params")
    found = graph(mx.nd.array(np.array(middle), dtype=np.uint8)).asnumpy()
    np.testing.assert_allclose(found, np.load("a.npy"), atol=1e-5)


def test_an_epoch_shorter_than_the_interval_that_was_stopped_leaves_the_same_records(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    flags = ["--log-interval=20", "--checkpoint-interval=1"]
    assert start(alone, *flags) == 0
    for call in (2, 3):  # the last batch of the first epoch is the third
        with monkeypatch.context() as patched:
            signal_at_call(patched, learner.Learner, "step", call, signal.SIGTERM)
            assert start(stopped, *flags, "--resume=auto") == 143
    assert start(stopped, *flags, "--resume=auto") == 0
    assert recorded(stopped) == recorded(alone)
    assert [r["batch"] for r in recorded(alone) if r["kind"] == "interval"] == [3, 3]


def test_the_loss_of_an_epoch_that_was_stopped_is_that_of_all_its_batches(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with monkeypatch.context() as patched:
        signal_at_call(patched, learner.Learner, "step", 5, signal.SIGTERM)
        assert start(tmp_path, "--log-interval=1") == 143
    assert start(tmp_path, "--log-interval=1", "--resume=auto") == 0
    for epoch in (0, 1):
        line = rf"\[Epoch {epoch}(, Iter \d)?\] training loss=(\S+)"
        *batches, whole = [float(loss) for _, loss in re.findall(line, caplog.text)]
        assert len(batches) == 3
        assert whole == pytest.approx(sum(batches), abs=1e-5)


def test_batch_norm_s_statistics_of_each_device_go_on_to_the_same_bytes(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--model=tiny-norm", *DEVICES["two devices"], "--batch-num=2"]
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    assert start(alone, *flags) == 0
    with monkeypatch.context() as patched:
        signal_at_call(patched, learner.Learner, "step", 3, signal.SIGTERM)
        assert start(stopped, *flags) == 143
    within_epoch = last_state(stopped)
    assert start(stopped, *flags, "--resume=auto") == 0
    assert last_state(stopped) == last_state(alone)
    # Each device has its own, up to the evaluation.
    name = "base_net.1.running_mean"
    assert within_epoch[f"statistics/0/{name}"] != within_epoch[f"statistics/1/{name}"]
    at_end = last_state(alone)
    assert at_end[f"statistics/0/{name}"] == at_end[f"statistics/1/{name}"]
    best = f"{PREFIX}.params"
    assert (stopped / best).read_bytes() == (alone / best).read_bytes()


def test_a_second_signal_ends_it_at_once_and_the_former_checkpoint_is_whole(
    tmp_path: Path, tiny_cub: Path
) -> None:
    flags = [f"--data-path={tiny_cub}", "--batch-num=100000", "--log-interval=1"]
    with start_process(tmp_path, *flags, stderr=subprocess.PIPE) as process:
        assert process.stderr
        while "Iter 2]" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=HANG_LIMIT)[1]
    assert process.returncode in (130, 143)  # the system may deliver them in either order
    assert err.endswith("Stopped at once.\n")
    found = run_folder.find("auto", str(tmp_path / PREFIX))
    assert found
    assert found.state["progress"]["batch"] == 0


def test_a_run_that_is_killed_goes_on_to_the_same_bytes(
    alone: tuple[list[str], Path, list[str]], start: Start, tmp_path: Path, tiny_cub: Path
) -> None:
    """Between two checkpoints within an epoch; what it had begun to write is swept away."""
    flags, folder, _ = alone
    flags = [*flags, "--checkpoint-interval=1"]
    run = tmp_path / f"{PREFIX}.run"
    with start_process(tmp_path, f"--data-path={tiny_cub}", *flags) as process:
        while process.poll() is None and not (run / "checkpoint-0000-000002.safetensors").exists():
            time.sleep(0.001)
        process.kill()
    (run / "checkpoint-0000-000003.safetensors.1.partial").write_bytes(b"cut off")
    assert start(tmp_path, *flags, "--resume=auto") == 0
    assert last_state(tmp_path) == last_state(folder)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_finished_run_says_so_and_goes_on_with_more_epochs(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    longer = tmp_path / "longer"
    assert start(longer, "--epochs=3") == 0
    here = tmp_path / "here"
    assert start(here, "--epochs=1") == 0
    caplog.clear()
    assert start(here, "--epochs=1", "--resume", f"{PREFIX}.run") == 0
    assert "The run is finished: 1 of 1 epochs are done" in caplog.text
    assert "training loss" not in caplog.text
    assert start(here, "--epochs=3", "--resume=auto", "--log-interval=1", "--workers=0") == 0
    assert last_state(here) == last_state(longer)


def test_another_epoch_s_network_can_be_asked_for_later(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A finished run saves the last epoch's network, as if that had been asked for at first."""
    # The first epoch stays the best.
    monkeypatch.setattr(validation, "criterion", lambda _: 0.0)
    best, last, file = tmp_path / "best", tmp_path / "last", f"{PREFIX}.params"
    assert start(best) == 0
    assert start(last, "--saved-epoch=last") == 0
    assert (best / file).read_bytes() != (last / file).read_bytes()
    caplog.set_level("INFO")
    caplog.clear()
    assert start(best, "--saved-epoch=last", "--resume=auto") == 0
    assert "The run continues with --saved-epoch last instead of best." in caplog.messages
    assert f"Saving {PREFIX}." in caplog.messages
    assert "training loss" not in caplog.text
    assert (best / file).read_bytes() == (last / file).read_bytes()
    assert last_state(best) == last_state(last)
    caplog.clear()
    assert start(best, "--saved-epoch=last", "--resume=auto") == 0
    assert "Saving" not in caplog.text
    # From there on the best again.
    monkeypatch.setattr(validation, "criterion", lambda _: 0.5)
    assert start(best, "--epochs=3", "--resume=auto") == 0
    assert read_description(str(best / file), "MODEL")["epoch"] == 2


def test_a_best_network_that_was_not_kept_is_reported(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recalls = iter([0.75, 0.5, 0.625])
    monkeypatch.setattr(validation, "criterion", lambda _: next(recalls))
    assert start(tmp_path, "--saved-epoch=last") == 0
    assert "lost" not in caplog.text
    assert start(tmp_path, "--epochs=3", "--resume=auto") == 0
    assert "its last epoch's network (Recall@1 0.5000), not its best (0.7500)" in caplog.text
    description = read_description(f"{PREFIX}.params", "MODEL")
    assert (description["epoch"], description["recall_at_1"]) == (2, 0.625)


def test_a_finished_run_of_format_1_that_saved_no_network_saves_its_last(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This was so if no test image had been recalled."""
    monkeypatch.setattr(validation, "criterion", lambda _: 0.0)
    assert start(tmp_path) == 0
    for file in [tmp_path / f"{PREFIX}.params", *tmp_path.rglob("best-*")]:
        file.unlink()
    for file in tmp_path.rglob("checkpoint-*"):
        found = checkpoint_file.read(file)
        del found.state["progress"]["to_beat"]
        found.state["progress"]["best_epoch"] = None
        checkpoint_file.write(file, found.arrays, {**found.state, "format": 1})
    assert start(tmp_path, "--resume=auto") == 0
    assert read_description(f"{PREFIX}.params", "MODEL")["epoch"] == 1


def test_a_torn_checkpoint_is_reported_and_the_one_before_is_used(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert start(tmp_path) == 0
    expected = last_state(tmp_path)
    newest = tmp_path / f"{PREFIX}.run" / "checkpoint-0002-000000.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert start(tmp_path, "--resume=auto") == 0
    assert f"{newest.name}: it is cut off" in caplog.text
    assert last_state(tmp_path) == expected


def test_a_new_run_keeps_what_the_former_one_left(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert start(tmp_path) == 0
    former = last_state(tmp_path)
    assert start(tmp_path, "--seed=7") == 0
    assert f"The former run of this prefix is kept in {PREFIX}.run.1." in caplog.messages
    assert last_state(tmp_path) != former
    (tmp_path / f"{PREFIX}.run").rename(tmp_path / "second")
    (tmp_path / f"{PREFIX}.run.1").rename(tmp_path / f"{PREFIX}.run")
    assert last_state(tmp_path) == former


def test_a_run_of_another_prefix_takes_the_best_network_along(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, "--epochs=1") == 0
    recall = capsys.readouterr().out.splitlines()[-1]
    first = (tmp_path / f"{PREFIX}.params").read_bytes()
    flags = ["--save-prefix=other", f"--resume={PREFIX}.run", "--lr=0", "--lr-beta=1e-9"]
    assert start(tmp_path, *flags) == 0
    assert capsys.readouterr().out.splitlines()[-1] == recall
    assert (tmp_path / "other.params").read_bytes() == first
    shutil.rmtree(tmp_path / f"{PREFIX}.run")
    (tmp_path / "other.params").unlink()
    assert start(tmp_path, "--save-prefix=other", "--resume=auto", "--lr=0", "--epochs=3") == 0
    assert (tmp_path / "other.params").read_bytes() == first


def test_a_run_that_began_with_a_former_network_goes_on_as_that_run(
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Recall@1 before training is neither measured again nor forgotten."""
    former, alone, stopped = tmp_path / "former", tmp_path / "alone", tmp_path / "stopped"
    assert start(former, "--epochs=1") == 0
    network = f"--resume={former / PREFIX}.params"
    assert start(alone, network) == 0
    out = capsys.readouterr().out.splitlines()[-3:]
    assert out[1].startswith("Recall@1 before training: 0.")
    caplog.set_level("INFO")
    with monkeypatch.context() as patched:
        signal_at_call(patched, learner.Learner, "step", 2, signal.SIGTERM)
        assert start(stopped, network) == 143
    assert start(stopped, "--resume=auto") == 0
    assert caplog.text.count("[Before training] validation: Recall@1=") == 1
    assert recorded(stopped) == recorded(alone)
    assert [r["epoch"] for r in recorded(alone) if r["kind"] == "evaluation"] == [None, 0, 1]
    assert capsys.readouterr().out.splitlines() == out
    assert last_state(stopped) == last_state(alone)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--embed-dim=8", "--seed=1"], "was made with --embed-dim 16, --seed 123; give these"),
        (["--lr-beta=0"], "was made with --lr-beta 0.1;"),
        (["--train-classes=5"], "was trained on other images, classes, boxes"),
        (["--no-bbox"], "was trained on other images, classes, boxes"),
        (["--batch-num=4"], "was made with --batch-num 3;"),
    ],
)
def test_flags_that_do_not_fit_are_reported_in_one_line(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert start(tmp_path, "--epochs=1") == 0
    before = last_state(tmp_path)
    capfd.readouterr()
    assert start(tmp_path, *flags, "--resume=auto") == 2
    out, err = capfd.readouterr()
    assert not out
    assert re.fullmatch(rf"train\.py: error: --resume .*{message}.*\n", err), err
    assert last_state(tmp_path) == before


def test_another_number_of_devices_goes_on_and_says_what_differs(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert start(tmp_path, "--total-batch-size=12", "--epochs=1") == 0
    flags = ["--total-batch-size=12", "--cpu-contexts=2", "--resume=auto"]
    assert start(tmp_path, *flags) == 0
    assert "continues with 2 devices instead of 1: from the same state, but not" in caplog.text


def test_training_that_is_not_finite_stops_and_goes_on_with_a_lower_rate(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, "--epochs=1") == 0
    assert start(tmp_path, "--lr=1e30", "--resume=auto") == 3
    err = capfd.readouterr().err
    assert re.search(r"^train\.py: stopped: epoch 1, batch 2: .* not finite;", err, re.M), err
    assert all(np.isfinite(np.frombuffer(a, "f4")).all() for a in last_state(tmp_path).values())
    assert start(tmp_path, "--resume=auto") == 0
    assert (tmp_path / f"{PREFIX}.run" / "checkpoint-0002-000000.safetensors").exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_finite_gradient_that_leads_to_infinite_weights_is_not_saved(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str], optimizer: str
) -> None:
    """It would replace the last good checkpoint."""
    flags = [f"--optimizer={optimizer}", "--checkpoint-interval=1", "--keep=1", "--epochs=1"]
    # Of the tiny backbone with such weights the loss is already not finite.
    flags += ["--model=squeezenet1.1"]
    assert start(tmp_path, *flags, "--lr=1e38") == 3
    message = r"^train\.py: stopped: network/\S+ is not finite any more; .* --lr .*--resume$"
    assert re.search(message, capfd.readouterr().err, re.M)
    assert all(np.isfinite(np.frombuffer(a, "f4")).all() for a in last_state(tmp_path).values())
    assert start(tmp_path, *flags, "--resume=auto") == 0


def test_a_batch_that_is_not_finite_can_be_skipped(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it stays: a run of only such batches ends where it began."""
    monkeypatch.setattr(learner.Step, "is_finite", False)
    assert start(tmp_path, "--on-nonfinite=skip", "--epochs=1", "--keep=9") == 0
    assert caplog.text.count("is skipped") == 3
    first, last = (load_file(file) for file in sorted(tmp_path.rglob("checkpoint-*")))
    assert first.keys() == last.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], last[name])


def test_the_files_of_a_folder_removed_meanwhile_are_written_again(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is left where rm -r and a checkpoint came at the same time."""
    step, calls = learner.Learner.step, iter(range(1, 10))

    def removing(*arguments: object, **named: object) -> object:
        if next(calls) == 5:
            for file in Path(f"{PREFIX}.run").iterdir():
                file.unlink()
        return step(*arguments, **named)

    monkeypatch.setattr(learner.Learner, "step", removing)
    assert start(tmp_path) == 0
    assert [r["epoch"] for r in recorded(tmp_path) if r["kind"] == "evaluation"] == [0, 1]
    assert records.RunInfo.read(Path(f"{PREFIX}.run")).arguments
    assert list(Path(f"{PREFIX}.run").glob("best-*.params"))


def test_a_folder_removed_meanwhile_is_created_again(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = learner.Learner.step
    folder = tmp_path / f"{PREFIX}.run"

    def removing(*arguments: object, **named: object) -> object:
        shutil.rmtree(folder, ignore_errors=True)
        return step(*arguments, **named)

    monkeypatch.setattr(learner.Learner, "step", removing)
    assert start(tmp_path) == 0
    assert "was removed while the run trains; it is created again" in caplog.text
    assert (folder / "checkpoint-0002-000000.safetensors").exists()


@pytest.mark.parametrize(
    "removed", [[f"{PREFIX}.run", f"{PREFIX}.params"], [f"{PREFIX}.params"], [f"{PREFIX}.run"]]
)
def test_a_network_removed_meanwhile_is_written_again(
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    removed: list[str],
) -> None:
    """After the best epoch, from which on no network is saved any more."""
    monkeypatch.setattr(validation, "criterion", lambda _: 0.0)
    step, calls = learner.Learner.step, iter(range(1, 10))

    def removing(*arguments: object, **named: object) -> object:
        if next(calls) == 5:  # in the second epoch
            saved.append(Path(f"{PREFIX}.params").read_bytes())
            for name in removed:
                shutil.rmtree(name) if name.endswith(".run") else Path(name).unlink()
        return step(*arguments, **named)

    saved: list[bytes] = []
    monkeypatch.setattr(learner.Learner, "step", removing)
    assert start(tmp_path) == 0
    lost = [name.replace(".run", ".run/best-0000.params") for name in removed]
    for name in lost:
        assert f"{name} was removed while the run trains; it is written again." in caplog.messages
    for file in (f"{PREFIX}.params", f"{PREFIX}.run/best-0000.params"):
        assert Path(file).read_bytes() == saved[0]
    assert start(tmp_path, "--resume=auto", "--epochs=3") == 0
    assert "is not there" not in caplog.text


def test_a_full_disk_stops_the_run_and_the_former_checkpoint_goes_on(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands in for the disk's."""
    assert start(tmp_path, "--epochs=1") == 0
    before = last_state(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limit[1]))
    try:
        assert start(tmp_path, "--resume=auto") == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, former)
    message = rf"train\.py: stopped: {PREFIX}\.run: cannot be written to: .*File too large.*\n"
    assert re.search(message, capfd.readouterr().err)
    assert last_state(tmp_path) == before
    assert not list(tmp_path.rglob("*.partial"))
    assert start(tmp_path, "--resume=auto") == 0


def test_two_runs_cannot_have_the_same_prefix(
    start: Start, tmp_path: Path, tiny_cub: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with start_process(tmp_path, f"--data-path={tiny_cub}", "--epochs=1000") as process:
        while process.poll() is None and not list(tmp_path.rglob("checkpoint-*")):
            time.sleep(0.01)
        assert start(tmp_path) == 2
        process.kill()
    assert "another run is writing to margin_loss_model.run" in capfd.readouterr().err
