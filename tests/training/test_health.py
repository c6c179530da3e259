"""The monitor: its warnings, their thresholds, once each; and the errors that end a run."""

from __future__ import annotations

import numpy as np
import pytest

from embedding_learning.errors import TrainingError
from embedding_learning.training.health import HealthMonitor


@pytest.fixture
def monitor() -> HealthMonitor:
    return HealthMonitor(stop_on_nonfinite=True)


def spread(distance: float, n: int = 8, d: int = 4) -> np.ndarray:
    """Points of the unit sphere, all at one place but for one at that distance from them."""
    angle = 2 * np.arcsin(distance / 2)
    x = np.zeros((n, d), np.float32)
    x[:, 0] = 1
    x[n // 2, :2] = np.cos(angle), np.sin(angle)
    return x


# Not finite


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1.0])
@pytest.mark.parametrize(
    "learned, rates",
    [("beta", "--lr or --lr-beta"), ("proxies", "--lr or --lr-proxies"), (None, "--lr")],
)
def test_a_batch_that_is_not_finite_ends_the_run_with_its_number(
    loss: float, learned: str | None, rates: str
) -> None:
    monitor = HealthMonitor(True, learned)
    monitor.check_batch(3, 1, True, 0.5)
    with pytest.raises(TrainingError) as fault:
        monitor.check_batch(3, 57, False, loss)
    assert str(fault.value) == (
        f"epoch 3, batch 57: the loss or a gradient is not finite; most often {rates} is too high: "
        "try a tenth, from the last checkpoint with --resume"
    )


def test_if_asked_to_it_skips_batches_with_a_line_for_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    monitor = HealthMonitor(stop_on_nonfinite=False)
    for batch in range(1, 200):
        monitor.check_batch(0, batch, batch % 20 == 0, 0.5)
    assert len(caplog.messages) == 190
    assert caplog.messages[0] == (
        "Epoch 0, batch 1: the loss or a gradient is not finite; it is skipped."
    )


def test_the_twentieth_in_a_row_ends_the_run_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    monitor = HealthMonitor(stop_on_nonfinite=False)
    monitor.check_batch(0, 181, False, 0.0)
    monitor.check_batch(0, 182, True, 0.5)
    for batch in range(183, 202):
        monitor.check_batch(0, batch, False, 0.0)
    assert len(caplog.messages) == 20
    with pytest.raises(TrainingError, match=r"epoch 1, batch 1: .*19 batches before.*--lr"):
        monitor.check_batch(1, 1, False, 0.0)


# No pairs


def test_twenty_batches_without_a_loss_are_reported_once(
    monitor: HealthMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    for batch in range(1, 20):
        monitor.check_batch(0, batch, True, 0.0)
    assert caplog.messages == []
    monitor.check_batch(0, 20, True, 0.0)
    (line,) = caplog.messages
    assert line.startswith("No pair has had a loss for 20 batches: ")
    assert "--margin" in line
    for batch in range(100):
        monitor.check_batch(1, batch, True, 0.0)
    assert len(caplog.messages) == 1


def test_a_loss_now_and_then_is_enough(
    monitor: HealthMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    for batch in range(1, 500):
        monitor.check_batch(0, batch, True, 1e-30 if batch % 20 == 0 else 0.0)
    assert caplog.messages == []


def test_a_loss_below_zero_is_one(monitor: HealthMonitor, caplog: pytest.LogCaptureFixture) -> None:
    """--nu can make it so."""
    for batch in range(50):
        monitor.check_batch(0, batch, True, -0.1)
    assert caplog.messages == []


def test_skipped_batches_are_not_counted_among_those_without_a_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    monitor = HealthMonitor(stop_on_nonfinite=False)
    for batch in range(19):
        monitor.check_batch(0, batch, True, 0.0)
    caplog.clear()
    monitor.check_batch(0, 19, False, 0.0)
    assert "No pair" not in caplog.text


# Collapse


@pytest.mark.parametrize("distance", [0.0, 1e-4, 0.25, 0.49])
def test_a_collapsed_embedding_is_reported_once(
    monitor: HealthMonitor, caplog: pytest.LogCaptureFixture, distance: float
) -> None:
    for _ in range(3):
        monitor.check_embeddings(spread(distance))
    (line,) = caplog.messages
    assert line.startswith("The embedding has collapsed: no two images of a batch are farther ")
    assert "--lr" in line


@pytest.mark.filterwarnings("error")
def test_equal_embeddings_are_a_collapse_however_they_round(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The squares of their distances may come out negative, all of them: in one case of twenty."""
    for seed in range(100):
        x = np.random.default_rng(seed).normal(size=16).astype(np.float32)
        HealthMonitor(True).check_embeddings(np.tile(x / np.linalg.norm(x), (10, 1)))
    assert len(caplog.messages) == 100


@pytest.mark.parametrize("distance", [0.51, 1.0, 2.0])
def test_one_pair_that_is_apart_is_no_collapse(
    monitor: HealthMonitor, caplog: pytest.LogCaptureFixture, distance: float
) -> None:
    monitor.check_embeddings(spread(distance))
    assert caplog.messages == []


# Beta


@pytest.mark.parametrize("beta", [0.001, 1.2, 1.999, np.float32([0.1, 1.9])])
def test_a_beta_among_the_distances_is_right(
    monitor: HealthMonitor, caplog: pytest.LogCaptureFixture, beta: float | np.ndarray
) -> None:
    monitor.check_beta(beta)
    assert caplog.messages == []


@pytest.mark.parametrize(
    "beta, outside",
    [
        (0.0, "1 of 1 values"),
        (2.0, "1 of 1 values"),
        (-0.5, "1 of 1 values"),
        (np.float32([1, 2.5, 1]), "1 of 3 values"),
        (np.float32([-1, 2, 1, 0]), "3 of 4 values"),
    ],
)
def test_a_beta_beyond_the_distances_is_reported_once(
    monitor: HealthMonitor, caplog: pytest.LogCaptureFixture, beta: float | np.ndarray, outside: str
) -> None:
    for _ in range(3):
        monitor.check_beta(beta)
    (line,) = caplog.messages
    assert line.startswith(f"Beta has left (0, 2), the range of distances, for {outside}: ")
    assert "--lr-beta" in line


def test_each_subject_is_reported_for_itself(
    monitor: HealthMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    for batch in range(40):
        monitor.check_embeddings(spread(0.0))
        monitor.check_beta(3.0)
        monitor.check_batch(0, batch, True, 0.0)
    assert [line.split()[0] for line in caplog.messages] == ["The", "Beta", "No"]
    assert all(line.isprintable() for line in caplog.messages)
