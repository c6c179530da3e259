"""The loop: the original's schedule and log, evaluation without side effects, and saving."""

import re
from dataclasses import replace
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd

from embedding_learning.data.build import Data
from embedding_learning.errors import TrainingError
from embedding_learning.evaluation.metrics import recall_at_k
from embedding_learning.training import (
    build,
    learner,
    loop,
    records,
    run,
    schedule,
)
from embedding_learning.training.learner import Step
from embedding_learning.training.progress import Progress
from embedding_learning.training.records import RunInfo
from embedding_learning.training.run_folder import RunFolder
from embedding_learning.training.run_log import RunLog
from tests.helpers.tiny_networks import (
    Recorded,
    batch_of,
    config_of,
    devices_of,
    each_class,
    net_with_statistics,
    parameters_of,
    recalls,
    small_net,
)


def train(config, net, devices, batches, board=None, progress=None):
    """All epochs, in the current folder."""
    config = replace(config, run=replace(config.run, metrics=("recall@1",)))
    learning = build.build(config, each_class(5), net, devices)
    data = Data(batches, batches, None, 5, "Birds", "", ["crow", "jay"])
    with RunFolder(config.run.prefix, config.run.keep) as folder:
        progress = progress or Progress(epoch=config.run.start_epoch)
        info = RunInfo([], data.title, {})
        run.train_prepared(config, data, learning, progress, folder, None, info, board)


@pytest.mark.shared
def test_golden_learning_rates(golden):
    config = config_of("--lr=1e-4", "--steps=12,14,16,18", "--factor=0.5")
    net = small_net([mx.cpu()])
    beta = build.build_beta(config.method, 5, [mx.cpu()])
    trainers = build.build_trainers(config, net, beta)
    for epoch, expected in zip(golden["lr/epochs"], golden["lr/values"]):
        schedule.set_trainer_rates(config, trainers, int(epoch))
        assert trainers[0].learning_rate == pytest.approx(float(expected), rel=1e-6)
        assert trainers[1].learning_rate == pytest.approx(float(expected) * 1e3, rel=1e-6)


def test_the_logged_loss_is_the_sum_over_devices_and_batches(monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    values = iter(range(1, 100))

    def step(*_, **__):
        packed = [nd.array([next(values), 1, 0]), nd.array([next(values), 1, 0])]
        x = nd.array([[0, 1], [1, 0]])
        return Step(packed, [x] * 2, [(x, x, x, nd.array([0, 1]))] * 2)

    monkeypatch.setattr(learner.Learner, "step", step)
    config = config_of("--epochs=1", "--batch-num=5", "--log-interval=2", "--cpu-contexts=2",
                  "--batch-size=4", "--batch-k=2")  # fmt: skip
    devices = devices_of(config)
    batches = Recorded([batch_of(8)], 8)
    train(config, small_net(devices), devices, batches)
    logged = [line for line in caplog.messages if "training loss" in line]
    assert logged == [
        "[Epoch 0, Iter 2] training loss=10.000000",
        "[Epoch 0, Iter 4] training loss=26.000000",
        "[Epoch 0] training loss=55.000000",
    ]


@pytest.mark.parametrize("devices", [1, 2])
def test_the_distances_of_each_intervals_last_batch_are_recorded(monkeypatch, tmp_path, devices):
    """Counted pair by pair, of each device's part by itself."""
    monkeypatch.chdir(tmp_path)
    config = config_of(
        "--epochs=2", "--batch-num=5", "--log-interval=2", f"--cpu-contexts={devices}",
        "--batch-size=8", "--batch-k=2",
    )  # fmt: skip
    steps, own_step = [], learner.Learner.step

    def step(*arguments, **named):
        steps.append(own_step(*arguments, **named))
        return steps[-1]

    monkeypatch.setattr(learner.Learner, "step", step)
    contexts = devices_of(config)
    train(config, small_net(contexts), contexts, Recorded([batch_of(8 * devices)], 8 * devices))
    found = [
        r for r in records.read(tmp_path / "margin_loss_model.run") if r["kind"] == "distances"
    ]
    assert [(r["epoch"], r["batch"]) for r in found] == [(0, 2), (0, 4), (1, 2), (1, 4)]
    for record, last in zip(found, (steps[1], steps[3], steps[6], steps[8])):
        assert (record["dimension"], record["cutoffs"]) == (8, [0.5, 1.4])
        negatives = [
            np.linalg.norm(x[i].astype(np.float64) - x[j])
            for x in (of_device.asnumpy() for of_device in last.embeddings)
            for i in range(8)
            for j in range(i + 1, 8)
            if i // 2 != j // 2
        ]
        drawn = [
            np.linalg.norm((anchors - others).asnumpy(), axis=1)
            for anchors, _, others, *_ in last.triplets
        ]
        assert record["negatives"] == np.histogram(negatives, np.linspace(0, 2, 81))[0].tolist()
        counted = np.histogram(np.concatenate(drawn), np.linspace(0, 2, 81))[0]
        assert record["drawn"] == counted.tolist()
        assert sum(record["negatives"]) == devices * (28 - 4)
        assert sum(record["positives"]) == devices * 8


def test_training_hybridizes_with_static_memory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = config_of("--epochs=1", "--batch-num=1", "--batch-size=8", "--batch-k=2")
    net, batches = net_with_statistics(), Recorded([batch_of(8)], 8)
    train(config, net, [mx.cpu()], batches)
    assert net._active
    assert {"static_alloc": True, "static_shape": True}.items() <= dict(net._flags).items()


def test_a_diverged_network_is_reported_when_it_is_evaluated():
    net = small_net([mx.cpu()])
    net.dense.weight.set_data(nd.full(net.dense.weight.shape, np.nan))
    data = Data(None, Recorded([batch_of(8)], 8), None, 4, "Birds", "")
    with pytest.raises(TrainingError, match=r"training diverged; .* --lr"):
        recalls(net, [mx.cpu()], data)


def test_a_resumed_network_is_replaced_by_a_better_one_only(monkeypatch, tmp_path):
    """Evaluated first; the file of its prefix may be the resumed one."""
    monkeypatch.chdir(tmp_path)
    saved = []
    monkeypatch.setattr(RunFolder, "publish", lambda *_: saved.append(1))
    values = iter([0.5, 0.4, 0.5, 0.6, 0.55])
    set_recalls(monkeypatch, values)
    config = config_of("--epochs=4", "--batch-num=1", "--batch-size=8", "--batch-k=2")
    config = replace(config, run=replace(config.run, resume="former.params"))
    batches = Recorded([batch_of(8)], 8)
    train(config, small_net([mx.cpu()]), [mx.cpu()], batches)
    assert len(saved) == 1


def test_a_steps_random_numbers_depend_on_seed_step_and_rank_alone():
    def draw(*key):
        loop.seed_step(*key)
        return nd.random.uniform(shape=(4,)).asnumpy().tolist()

    first = draw(1, 7)
    nd.random.uniform(shape=(100,))
    assert draw(1, 7) == first
    assert draw(1, 7, 0) == first
    assert len({tuple(draw(*key)) for key in ((1, 7), (1, 8), (2, 7), (7, 1), (1, 7, 1))}) == 5


def test_each_step_is_seeded_with_its_number_in_the_run(monkeypatch, tmp_path):
    """A run can then resume from any step as if it had never stopped."""
    monkeypatch.chdir(tmp_path)
    seeded = []
    monkeypatch.setattr(loop, "seed_step", lambda *key: seeded.append(key))
    config = config_of(
        "--epochs=3", "--start-epoch=1", "--batch-num=2", "--seed=9", "--batch-size=8",
        "--batch-k=2",
    )  # fmt: skip
    net, batches = small_net([mx.cpu()]), Recorded([batch_of(8)], 8)
    train(config, net, [mx.cpu()], batches)
    assert seeded == [(9, 2, 0), (9, 3, 0), (9, 4, 0), (9, 5, 0)]
    assert batches.sought == 2


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_of_padded_batches_on_any_number_of_devices(count):
    devices = [mx.cpu(number) for number in range(count)]
    net = small_net(devices)
    batches = [batch_of(8, seed=seed) for seed in range(6)]
    batches[-1].pad = 3
    found = recalls(net, devices, Data(None, Recorded(batches, 8), None, 4, "Birds", ""))
    embeddings = np.concatenate([net.embed(b.data[0]).asnumpy() for b in batches])[:45]
    labels = np.concatenate([b.label[0].asnumpy() for b in batches])[:45]
    assert found == recall_at_k(embeddings, labels)


def test_evaluation_changes_nothing_that_follows():
    """No parameter, no statistic and no random stream; the original's draws samples."""

    def drawn(evaluating):
        mx.random.seed(3)
        np.random.seed(3)
        net = net_with_statistics()
        mx.random.seed(3)
        if evaluating:
            data = Data(None, Recorded([batch_of(8)], 8), None, 4, "Birds", "")
            recalls(net, [mx.cpu()], data)
        return [*parameters_of(net), nd.random.uniform(shape=(5,)).asnumpy(), np.random.rand(5)]

    for found, expected in zip(drawn(True), drawn(False)):
        np.testing.assert_array_equal(found, expected)


def test_the_first_network_is_saved_whatever_its_recall(monkeypatch, tmp_path):
    """If each test image is alone in its class, nothing can be recalled."""
    monkeypatch.chdir(tmp_path)
    assert saved_epochs(monkeypatch, [0.0, 0.0, 0.0]) == [0]
    assert saved_epochs(monkeypatch, [0.0, 0.25, 0.25]) == [0, 1]
    assert saved_epochs(monkeypatch, [float("nan"), 0.0, 0.5]) == [0, 2]
    assert saved_epochs(monkeypatch, [0.0, 0.0], "--evaluate-first", before=0.5) == [0]
    assert saved_epochs(monkeypatch, [0.5, float("nan")], "--saved-epoch=last") == [0, 1]


def test_a_run_that_saved_its_last_epoch_goes_on_from_the_network_that_it_has(
    monkeypatch, tmp_path
):
    """A better one was overwritten by the last one and is lost."""
    monkeypatch.chdir(tmp_path)
    progress = Progress(2, best=0.6, best_epoch=1, to_beat=0.4)
    assert saved_epochs(monkeypatch, [0.5, 0.45, 0.55], start=progress) == [2, 4]
    assert (progress.best, progress.best_epoch, progress.to_beat) == (0.6, 4, 0.55)


def set_recalls(monkeypatch, values):
    """Evaluations give these values of Recall@1."""
    for module in (loop, run):
        monkeypatch.setattr(module, "evaluate_test", lambda *_: ({"recall@1": next(values)}, None))


def saved_epochs(monkeypatch, recalls, *flags, before=None, start=None):
    """The epochs whose networks are saved by a run with these recalls after its epochs."""
    saved, start = [], start or Progress()
    values = iter([*([] if before is None else [before]), *recalls])
    set_recalls(monkeypatch, values)
    monkeypatch.setattr(RunFolder, "publish", lambda _, epoch: saved.append(epoch))
    config = config_of(f"--epochs={start.epoch + len(recalls)}", "--batch-num=1", "--batch-size=8",
                  "--batch-k=2", *flags)  # fmt: skip
    train(config, small_net([mx.cpu()]), [mx.cpu()], Recorded([batch_of(8)], 8), progress=start)
    assert next(values, None) is None
    return saved


def test_each_epoch_leaves_records_however_short_it_is(monkeypatch, tmp_path, caplog):
    """It writes no line of the log, which is the original's."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    config = config_of("--epochs=2", "--batch-num=3", "--log-interval=20", "--batch-size=8",
                  "--batch-k=2")  # fmt: skip
    train(config, small_net([mx.cpu()]), [mx.cpu()], Recorded([batch_of(8)], 8))
    found = records.read(tmp_path / "margin_loss_model.run")
    assert [(r["kind"], r["epoch"], r["batch"]) for r in found] == [
        (kind, epoch, 3) for epoch in (0, 1) for kind in ("interval", "distances", "evaluation")
    ]
    logged = [line for line in caplog.messages if "training loss" in line]
    assert [line.partition("=")[0] for line in logged] == [
        f"[Epoch {epoch}] training loss" for epoch in (0, 1)
    ]
    for record, line in zip([r for r in found if r["kind"] == "interval"], logged):
        assert record["loss"] == pytest.approx(float(line.partition("=")[2]) / 3, abs=1e-6)


def test_the_evaluation_before_training_is_recorded(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = config_of("--epochs=1", "--batch-num=1", "--batch-size=8", "--batch-k=2",
                  "--evaluate-first")  # fmt: skip
    train(config, small_net([mx.cpu()]), [mx.cpu()], Recorded([batch_of(8)], 8))
    first, *others = records.read(tmp_path / "margin_loss_model.run")
    assert (first["kind"], first["epoch"], first["batch"]) == ("evaluation", None, 0)
    assert 0 <= first["recall@1"] <= 1
    assert [r["epoch"] for r in others if r["kind"] == "evaluation"] == [0]


def test_evaluating_first_changes_no_byte_of_the_network(monkeypatch, tmp_path):
    """Not with dropout and running statistics either, which training changes."""
    saved = []
    for flag in ("--evaluate-first", "--no-evaluate-first"):
        folder = tmp_path / flag
        folder.mkdir()
        monkeypatch.chdir(folder)
        config = config_of("--epochs=2", "--batch-num=2", "--batch-size=8", "--batch-k=2", flag)
        train(config, net_with_statistics(), [mx.cpu()], Recorded([batch_of(8)], 8))
        saved.append((folder / "margin_loss_model.params").read_bytes())
    assert saved[0] == saved[1]


def test_a_run_says_as_long_as_it_is_below_its_start(monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")

    def lines(recalls, *flags, before=0.5):
        caplog.clear()
        saved_epochs(monkeypatch, recalls, *flags, before=before)
        return [(r.levelname, r.getMessage()) for r in caplog.records if "below" in r.getMessage()]

    first = "--evaluate-first"
    assert lines([0.25, 0.5, 0.25], first) == [
        (
            "INFO",
            "Recall@1 is below its value before training: 0.2500 at best so far, 0.5000 before. "
            "Try --lr-mult-backbone 0.1; see docs/training.md.",
        )
    ]
    *during, last = lines([0.25, 0.3125, 0.125], first, "--lr-mult-backbone=1")
    assert [(level, re.findall(r"0\.\d+", line)) for level, line in during] == [
        *(("INFO", ["0.2500", "0.5000"]), ("INFO", ["0.3125", "0.5000"]))
    ]
    assert last == (
        "WARNING",
        "Recall@1 has stayed below its value before training: 0.3125 at best, 0.5000 before. The "
        "saved network is worse than the one it started from. Try a lower --lr; see "
        "docs/training.md.",
    )
    assert lines([0.75, 0.25], first) == lines([0.25], before=None) == []


@pytest.mark.parametrize(
    "norm, flags, advice",
    [
        (True, [], "--freeze-bn or --lr-mult-backbone 0.1"),
        (True, ["--lr-mult-backbone=0.5"], "--freeze-bn"),
        (True, ["--freeze-bn"], "--lr-mult-backbone 0.1"),
        (False, [], "--lr-mult-backbone 0.1"),
    ],
)
def test_a_run_below_its_start_advises_what_it_does_not_do_yet(norm, flags, advice, caplog):
    learning = SimpleNamespace(net=small_net([mx.cpu()], norm=norm))
    progress = Progress(best=0.25, before=0.5)
    log = RunLog(config_of(*flags), None, learning, progress, None, None, None)
    log.compare_with_start(is_over=True)
    assert caplog.messages[0].endswith(f" Try {advice}; see docs/training.md.")


class Board:
    """Notes what TensorBoard is shown."""

    def __init__(self):
        self.projected = []

    def scalars(self, *_):
        pass

    def histograms(self, *_):
        pass

    def project(self, step, embeddings, labels, class_names, pixels):
        self.projected.append((step, len(embeddings), class_names))

    def close(self):
        pass


def test_the_projector_is_shown_each_evaluation(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = config_of("--epochs=2", "--batch-num=3", "--batch-size=8", "--batch-k=2",
                  "--evaluate-first")  # fmt: skip
    board = Board()
    train(config, small_net([mx.cpu()]), [mx.cpu()], Recorded([batch_of(8)], 8), board=board)
    assert board.projected == [(step, 8, ["crow", "jay"]) for step in (0, 3, 6)]
