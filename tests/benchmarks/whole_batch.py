"""Do two devices with 35 images train as one with 70, and are negatives drawn among all rows?

    python -m tests.benchmarks.whole_batch

For each loss and sampling: the largest differences of loss, gradients and parameters over 20 steps
of SGD with --negatives batch, relative to the largest number. Then the p-value of chi-squared tests
of the draws on two devices against the probabilities among all 70 rows.

At much higher rates the two can part, with samplings that choose the nearest. So the last lines
tell, at rates of 0.3 and 1, in which step another negative is chosen for the first time, by how
much the embeddings differ until then, and by how much the distances to the two negatives do.
"""

from __future__ import annotations

from embedding_learning.model import methods
from embedding_learning.training import build, loop
from embedding_learning.training.learner import Learner, Step
from tests.helpers.tiny_networks import batch_of, config_of, devices_of, each_class, small_net

# isort: split
import mxnet as mx
import numpy as np
from mxnet import gluon
from scipy import stats

IMAGES, PER_CLASS, CLASSES, DIMENSION, STEPS, DRAWS = 70, 5, 100, 128, 20, 400


def make_learner(count: int, *flags: str) -> Learner:
    """Returns a learner on one or two CPU contexts."""
    config = config_of(
        f"--total-batch-size={IMAGES}", f"--batch-k={PER_CLASS}", "--optimizer=sgd", "--lr=0.01",
        f"--cpu-contexts={count}", *(["--negatives=batch"] if count > 1 else []), *flags,
    )  # fmt: skip
    devices = devices_of(config)
    mx.random.seed(3)
    net = small_net(devices, DIMENSION, PER_CLASS)
    learner = build.build(config, each_class(CLASSES), net, devices)
    learner.start()
    return learner


def learned(learner: Learner) -> list[gluon.Parameter]:
    """Returns the parameters of the network and of the loss."""
    return list(learner._learned_parameters())


def difference(arrays: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Returns the largest difference relative to the largest number, of each array by itself."""
    return max(abs(a - b).max() / max(abs(b).max(), 1e-6) for a, b in zip(arrays, others))


def compare(flags: list[str]) -> tuple[float, float, float]:
    """Returns the largest differences of losses, gradients and, after all steps, parameters."""
    learners = [make_learner(count, *flags) for count in (2, 1)]
    of_losses = of_gradients = 0.0
    for number in range(STEPS):
        batch = batch_of(IMAGES, CLASSES, PER_CLASS, seed=number)
        losses, gradients = [], []
        for learner in learners:
            loop.seed_step(1, number)
            losses.append([np.array(learner.step(batch).loss)])
            gradients.append([sum(g.asnumpy() for g in p.list_grad()) for p in learned(learner)])
        of_losses = max(of_losses, difference(*losses))
        of_gradients = max(of_gradients, difference(*gradients))
    values = [[p.list_data()[-1].asnumpy() for p in learned(learner)] for learner in learners]
    return of_losses, of_gradients, difference(*values)


def p_value(sampling: str) -> float:
    """Returns the p-value of the draws of all anchors among all rows."""
    learner = make_learner(2, f"--sampling={sampling}", "--lr=0", "--lr-beta=0")
    batch = batch_of(IMAGES, CLASSES, PER_CLASS)
    counts = np.zeros((IMAGES, IMAGES))
    anchors = np.repeat(np.arange(IMAGES), PER_CLASS - 1)
    for number in range(DRAWS):
        loop.seed_step(2, number)
        step = learner.step(batch)
        np.add.at(counts, (anchors, negative_rows(step)), 1)
    expected = (np.arange(IMAGES)[:, None] // PER_CLASS != np.arange(IMAGES) // PER_CLASS) + 0.0
    if sampling == "distance-weighted":
        expected = learner.sampling.probabilities(step.embeddings[0]).asnumpy()
    expected *= DRAWS * (PER_CLASS - 1) / expected.sum(axis=1, keepdims=True)
    # Cells of small probability are too few draws for the test.
    large = expected > 5
    statistic = ((counts - expected)[large] ** 2 / expected[large]).sum()
    return float(stats.chi2.sf(statistic, large.sum() - IMAGES))


def negative_rows(step: Step) -> np.ndarray:
    """Returns the rows of the negatives of all anchors."""
    rows = step.embeddings[0].asnumpy()
    return np.concatenate([(t[2].asnumpy() @ rows.T).argmax(axis=1) for t in step.triplets])


def find_other_negative(loss: str, sampling: str, rate: float, batches: int) -> str:
    """Trains on one and on two devices until a negative of the two differs."""
    flags = f"--loss={loss}", f"--sampling={sampling}", f"--lr={rate}"
    learners = [make_learner(count, *flags) for count in (2, 1)]
    until_then = 0.0
    for number in range(STEPS):
        batch = batch_of(IMAGES, CLASSES, PER_CLASS, seed=1000 * batches + number)
        steps = []
        for learner in learners:
            loop.seed_step(1, number)
            steps.append(learner.step(batch))
        rows, others = (step.embeddings[0].asnumpy().astype(np.float64) for step in steps)
        until_then = max(until_then, abs(rows - others).max())
        chosen, other = map(negative_rows, steps)
        if (chosen != other).any():
            triplet = np.flatnonzero(chosen != other)[0]
            anchor = rows[triplet // (PER_CLASS - 1)]
            one, two = (((anchor - rows[each[triplet]]) ** 2).sum() for each in (chosen, other))
            return f"step {number}, {until_then:.0e}, {abs(one - two):.0e} of {one:.1e}"
    return f"none in {STEPS} steps, {until_then:.0e}"


def main() -> None:
    print("loss, sampling                                   loss  gradients  parameters")
    for loss, row in methods.LOSSES.items():
        for sampling in methods.SAMPLINGS if row.samples else [""]:
            flags = [f"--loss={loss}", *([f"--sampling={sampling}"] if sampling else [])]
            found = " ".join(f"{value:10.1e}" for value in compare(flags))
            print(f"{loss + ', ' + sampling:44s} {found}")
    for sampling in ("random", "distance-weighted"):
        print(f"{sampling}: p = {p_value(sampling):.3f}")
    print("first other negative, difference of embeddings, of the squared distances to the two:")
    for loss, sampling in (("triplet", "semi-hard"), ("triplet-euclidean", "hard")):
        for rate in (0.3, 1.0):
            for batches in range(4):
                found = find_other_negative(loss, sampling, rate, batches)
                print(f"{loss}, {sampling}, rate {rate}, batches {batches}: {found}")


if __name__ == "__main__":
    main()
