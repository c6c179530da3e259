"""--negatives batch and --memory: the loss of a whole batch, and negatives of earlier ones."""

from __future__ import annotations

from itertools import product

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from scipy import stats

from embedding_learning.model import sampling as samplings
from embedding_learning.model.methods import LOSSES, SAMPLINGS
from embedding_learning.training import build, learner_state, loop, schedule
from embedding_learning.training.learner import Learner
from embedding_learning.training.memory import Memory
from tests.helpers.tiny_networks import batch_of, config_of, devices_of, each_class, small_net

OF_TRIPLETS = [name for name, row in LOSSES.items() if row.samples]
# Loss, sampling, memory. A loss does not know how its triplets were sampled.
CASES = [*product(["margin"], SAMPLINGS, ([], ["--memory=24"]))]
CASES += [(name, "distance-weighted", ["--memory=24"]) for name in OF_TRIPLETS if name != "margin"]
CASES += [(name, None, []) for name, row in LOSSES.items() if not row.samples]


def learner_of(count: int, *flags: str) -> Learner:
    config = config_of(
        "--total-batch-size=16", "--batch-k=2", "--lr=0.01", "--optimizer=sgd",
        f"--cpu-contexts={count}", *(["--negatives=batch"] if count > 1 else []), *flags,
    )  # fmt: skip
    devices = devices_of(config)
    mx.random.seed(3)
    learning = build.build(config, each_class(5), small_net(devices), devices)
    learning.start()
    return learning


def arrays_of(learning: Learner) -> dict[str, np.ndarray]:
    """The network, what the loss learns and the memory."""
    arrays = learner_state.gather(learning)[0]
    return {n: array for n, array in arrays.items() if not n.startswith("optimizer/")}


@pytest.mark.slow
@pytest.mark.parametrize("loss, sampling, memory", CASES)
def test_two_devices_train_as_one_that_has_the_whole_batch(
    loss: str, sampling: str | None, memory: list[str]
) -> None:
    """Losses and parameters of steps with plain SGD, so that gradients differ as little."""
    flags = [f"--loss={loss}", *([f"--sampling={sampling}"] if sampling else []), *memory]
    two, one = learner_of(2, *flags), learner_of(1, *flags)
    for number in range(4):  # the memory is full after two
        batch = batch_of(16, seed=number)
        found = []
        for learning in (two, one):
            loop.seed_step(1, number)
            found.append(learning.step(batch).loss)
        assert found[0] == pytest.approx(found[1], rel=1e-4)
    first, second = arrays_of(two), arrays_of(one)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("flags", [[], ["--memory=24"], ["--loss=proxy-anchor"]], ids=" ".join)
def test_a_step_waits_for_no_device(monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    learning = learner_of(2, *flags)
    learning.step(batch_of(16))

    def wait(*_: object) -> None:
        raise AssertionError("the step waits")

    for name in ("asnumpy", "asscalar", "wait_to_read", "__bool__"):
        monkeypatch.setattr(nd.NDArray, name, wait)
    monkeypatch.setattr(nd, "waitall", wait)
    step = learning.step(batch_of(16, seed=1))
    monkeypatch.undo()
    assert step.is_finite
    assert [len(rows) for rows in step.embeddings] == [16]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_gradients_flow_to_the_rows_of_every_device(sampling: str) -> None:
    """A negative of the other device: with --negatives device it would have no gradient."""
    learning = learner_of(2, f"--sampling={sampling}", "--margin=1.5")
    loop.seed_step(1, 0)
    step = learning.step(batch_of(16))
    (triplets,) = step.triplets
    negatives = triplets[2].asnumpy()
    rows = step.embeddings[0].asnumpy()
    chosen = abs(negatives[:, None] - rows).sum(axis=2).argmin(axis=1)
    from_other_device = (np.arange(16) // 8) != chosen // 8
    assert from_other_device.any()
    for device in learning.devices:
        gradient = learning.net.dense.weight.grad(device).asnumpy()
        assert abs(gradient).max() > 1e-3


# Memory


def test_the_memory_is_that_of_the_last_images() -> None:
    for size, count in ((5, 2), (4, 2), (3, 3), (2, 5), (7, 3)):
        memory = Memory(size, 2, mx.cpu())
        rows, labels = np.zeros((size, 2)), -np.ones(size)
        for number in range(5):
            added = np.random.default_rng(number).normal(size=(count, 2)).astype(np.float32)
            memory.push(nd.array(added), nd.array(np.full(count, number)))
            rows = np.concatenate([rows, added])[-size:]
            labels = np.concatenate([labels, np.full(count, number)])[-size:]
            np.testing.assert_array_equal(memory.embeddings.asnumpy(), rows.astype(np.float32))
            np.testing.assert_array_equal(memory.labels.asnumpy(), labels)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


ANCHORS, MEMORY = (unit(np.random.default_rng(n).normal(size=(m, 6))) for n, m in ((0, 8), (1, 9)))
LABELS = np.repeat([3, 0, 5, 1], 2)
MEMORY_LABELS = np.array([3, 3, 0, 7, 8, 5, -1, -1, 2])
IS_NEGATIVE = np.concatenate([LABELS, MEMORY_LABELS]) != LABELS[:, None]
IS_NEGATIVE &= np.concatenate([LABELS, MEMORY_LABELS]) >= 0
DISTANCE = np.linalg.norm(ANCHORS[:, None] - np.concatenate([ANCHORS, MEMORY]), axis=2)


def sampled_columns(kind: type, hybridized: bool = False, times: int = 1) -> np.ndarray:
    """The rows of batch and memory that are the negatives: (times, 8)."""
    sampling = kind(2)
    sampling.hybridize(hybridized, static_alloc=True, static_shape=True)
    inputs = [nd.array(array) for array in (ANCHORS, MEMORY, MEMORY_LABELS, LABELS)]
    everything, found = np.concatenate([ANCHORS, MEMORY]), []
    for _ in range(times):
        negatives = sampling(*inputs)[3].asnumpy()
        found.append(abs(negatives[:, None] - everything).sum(axis=2).argmin(axis=1))
    return np.array(found)


@pytest.mark.parametrize("hybridized", [False, True])
def test_nearest_negatives_are_found_in_batch_and_memory(hybridized: bool) -> None:
    allowed = np.where(IS_NEGATIVE, DISTANCE, np.inf)
    (hard,) = sampled_columns(samplings.HardSampling, hybridized)
    np.testing.assert_array_equal(hard, allowed.argmin(axis=1))
    to_positive = DISTANCE[np.arange(8), np.arange(8) ^ 1]
    (semi_hard,) = sampled_columns(samplings.SemiHardSampling, hybridized)
    for row, column in enumerate(semi_hard):
        farther = np.where(DISTANCE[row] > to_positive[row], allowed[row], np.inf)
        farthest = np.where(IS_NEGATIVE[row], DISTANCE[row], -1).argmax()
        expected = farther.argmin() if np.isfinite(farther).any() else farthest
        assert column == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", [samplings.RandomSampling, samplings.DistanceWeightedSampling])
def test_sampled_negatives_have_their_distribution_over_batch_and_memory(kind: type) -> None:
    mx.random.seed(5)
    times = 1500
    counts = np.zeros(IS_NEGATIVE.shape)
    np.add.at(counts, (np.arange(8), sampled_columns(kind, True, times)), 1)
    weights = IS_NEGATIVE.astype(float)
    if kind is samplings.DistanceWeightedSampling:
        floored = np.maximum(DISTANCE, 0.5)
        inverse_density = floored ** (2 - 6) * (1 - floored**2 / 4 + 1e-12) ** -((6 - 3) / 2)
        weights *= np.where(DISTANCE < 1.4, inverse_density, 0)
    for row in range(8):
        expected = times * weights[row] / weights[row].sum()
        assert not counts[row][expected == 0].any()
        seen = expected > 0
        if seen.sum() > 1:
            assert stats.chisquare(counts[row][seen], expected[seen]).pvalue > 1e-4


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_negatives_come_from_all_rows_of_the_batch(sampling: str) -> None:
    """Not from a device's own part alone: draws over both halves, as of one device."""
    found = []
    for count in (2, 1):
        learning = learner_of(count, f"--sampling={sampling}")
        loop.seed_step(9, 0)
        found.append(learning.step(batch_of(16, seed=4)).triplets[0][2].asnumpy())
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_no_gradient_flows_to_the_memory_and_it_opens_in_its_epoch(count: int) -> None:
    flags = ["--memory=40", "--memory-from=2", "--epochs=4"]
    learning = learner_of(count, *flags)
    config = config_of(*flags)
    for epoch, filled in ((0, 0), (1, 0), (2, 16), (3, 32)):
        schedule.set_learning_rates(config, learning, epoch)
        batch = batch_of(16, seed=epoch)
        learning.step(batch)
        labels = learning.memory.labels.asnumpy()
        assert (labels >= 0).sum() == filled
        if filled:
            np.testing.assert_array_equal(labels[-16:], batch.label[0].asnumpy())


def test_each_device_has_the_whole_memory_where_it_samples_by_itself() -> None:
    learning = learner_of(2, "--negatives=device", "--memory=24")
    for number in range(2):
        step = learning.step(batch_of(16, seed=number))
    rows = np.concatenate([of_device.asnumpy() for of_device in step.embeddings])
    np.testing.assert_array_equal(learning.memory.embeddings.asnumpy()[-16:], rows)
    assert [len(of_device) for of_device in step.embeddings] == [8, 8]
