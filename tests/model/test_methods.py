"""Every loss with every sampling, as flags name them; and beta, which belongs to classes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd

from embedding_learning.cli.train_flags import parse
from embedding_learning.config import FLAGS, TrainConfig
from embedding_learning.data.build import open_data, read_split
from embedding_learning.errors import UsageError
from embedding_learning.model import sampling
from embedding_learning.model.methods import LOSSES, SAMPLINGS
from embedding_learning.training import build, loop, schedule
from embedding_learning.training.learner import Learner
from tests.helpers.tiny_networks import (
    batch_of,
    each_class,
    parameters_of,
    small_net,
)

CPU = [mx.cpu()]
# Of 20 triplets.
TERMS = {"margin": 40, "contrastive": 40, "triplet": 20, "triplet-euclidean": 20}


# A loss without a sampling has one row.
PAIRS = pytest.mark.parametrize(
    "loss, sampling",
    [(loss, s) for loss in LOSSES for s in (SAMPLINGS if LOSSES[loss].samples else [None])],
)


def flags_of(loss: str, sampling: str | None) -> list[str]:
    return [f"--loss={loss}", *([f"--sampling={sampling}"] if sampling else [])]


def learner_of(*flags: str, boundaries: np.ndarray | None = None) -> Learner:
    config = parse(["--batch-size=20", "--batch-k=2", "--lr=0.01", *flags])
    terms = each_class(5) if boundaries is None else boundaries
    return build.build(config, terms, small_net(CPU), CPU)


@pytest.mark.slow
@PAIRS
def test_any_loss_goes_with_any_sampling_and_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch, loss: str, sampling: str
) -> None:
    """Nothing is read back; the original waits some 70 times in each forward pass."""
    learning = learner_of(*flags_of(loss, sampling))
    batch = batch_of(20)
    learning.step(batch)
    before = parameters_of(learning.net)

    def wait(*_: Any) -> None:
        raise AssertionError("the step waits")

    for name in ("asnumpy", "asscalar", "wait_to_read", "__bool__"):
        monkeypatch.setattr(nd.NDArray, name, wait)
    monkeypatch.setattr(nd, "waitall", wait)
    loop.seed_step(1, 1)
    step = learning.step(batch)
    monkeypatch.undo()
    assert step.is_finite
    assert step.loss > 0
    assert all((x != y).any() for x, y in zip(before, parameters_of(learning.net)))
    pairs = learning.measure(step)
    # A term for each pair, or for each triplet.
    assert len(pairs["active"]) == TERMS.get(loss, len(pairs["active"]))
    assert pairs["active"].any() == LOSSES[loss].samples


@pytest.mark.slow
@PAIRS
def test_steps_are_repeated_to_the_byte(loss: str, sampling: str) -> None:
    def after_steps() -> list[bytes]:
        learning = learner_of(*flags_of(loss, sampling))
        for number in range(3):
            loop.seed_step(5, number)
            learning.step(batch_of(20, seed=number))
        of_loss = [learning.parameter.data().asnumpy()] if learning.learned_name else []
        return [values.tobytes() for values in [*parameters_of(learning.net), *of_loss]]

    assert after_steps() == after_steps()


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if not LOSSES[loss].has_beta])
def test_a_loss_whose_row_says_so_has_no_beta(loss: str) -> None:
    learning = learner_of(f"--loss={loss}")
    assert learning.beta_values() is None
    assert learning.learned_name == LOSSES[loss].parameter
    assert len(learning.trainers) == 1 + LOSSES[loss].has_proxies


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if LOSSES[loss].has_proxies])
def test_proxies_learn_at_their_own_rate_with_the_networks_optimizer(loss: str) -> None:
    """The first step of Adam is the learning rate; no weight decay pulls at the proxies."""
    learning = learner_of(f"--loss={loss}", "--lr-proxies=0.03", "--wd=0.5")
    assert learning.parameter.shape == (5, 8)
    before = learning.parameter.data().asnumpy()
    batch = batch_of(20)
    learning.step(batch)
    moved = learning.parameter.data().asnumpy() - before
    gradient = learning.parameter.grad().asnumpy() / 20
    large = abs(gradient) > 1e-5
    assert large.sum() > 20
    np.testing.assert_allclose(moved[large], -0.03 * np.sign(gradient[large]), rtol=0.02)
    config = parse([f"--loss={loss}", "--factor=0.5", "--steps=1", "--lr-proxies=0.03"])
    schedule.set_trainer_rates(config, learning.trainers, 1)
    assert learning.trainers[1].learning_rate == pytest.approx(0.015)


def test_classes_that_train_have_a_proxy_each_however_beta_would_be_kept() -> None:
    """A preset's --beta-per image is no mistake next to a loss without beta."""
    config = parse(["--preset=paper-cub", "--loss=proxy-nca", "--batch-size=4", "--batch-k=2"])
    learning = build.build(config, IMAGES, small_net(CPU), CPU, classes=3)
    assert learning.parameter.shape == (3, 8)
    data = nd.array(np.random.default_rng(1).normal(size=(4, 3, 8, 8)))
    labels = [nd.array([0, 0, 2, 2]), nd.array(IMAGES[:4])]
    assert learning.step(mx.io.DataBatch(data=[data], label=labels)).is_finite


def test_normalized_weights_are_for_samplings_whose_row_says_so() -> None:
    for name, row in SAMPLINGS.items():
        parameters = inspect.signature(getattr(sampling, row.class_name)).parameters
        assert set(row.takes) == (parameters.keys() & FLAGS.keys()) - {"batch_k"}, name


# Beta


def test_beta_belongs_to_the_class_and_not_to_the_place_in_the_batch() -> None:
    """The same images, their classes in another order: each class's beta moves alike.

    DMLPlayground takes the beta of the anchor's place in the batch, whatever class is there.
    """

    def betas_after(order: list[int]) -> np.ndarray:
        images = np.random.default_rng(2).normal(size=(4, 2, 3, 8, 8))
        classes = np.array([3, 1, 4, 0])
        data = nd.array(images[order].reshape(8, 3, 8, 8))
        label = nd.array(np.repeat(classes[order], 2))
        # Semi-hard negatives do not depend on the order of the batch.
        learning = learner_of("--sampling=semi-hard", "--lr-beta=10", "--margin=0.5")
        learning.step(mx.io.DataBatch(data=[data], label=[label]))
        return learning.beta_values()

    found, reordered = betas_after([0, 1, 2, 3]), betas_after([2, 0, 3, 1])
    np.testing.assert_allclose(found, reordered, atol=1e-6)
    moved = abs(found - 1.2) > 1e-3
    # Class 2 is not in the batch; its beta, which stands at a place that is, does not move.
    assert moved.tolist() == [True, True, False, True, True]


IMAGES = np.array([[0, 1, 4], [0, 1, 5], [0, 2, 6], [0, 2, 7], [0, 3, 8], [0, 3, 9]])


def test_a_beta_per_image_is_a_sum_of_three_and_each_learns_from_its_own() -> None:
    learning = learner_of("--beta-per=image", "--lr-beta=1", "--nu=0.1", boundaries=IMAGES)
    np.testing.assert_allclose(learning.beta_values(), 1.2, rtol=1e-6)
    assert learning.parameter.shape == (10,)
    data = nd.array(np.random.default_rng(1).normal(size=(4, 3, 8, 8)))
    batch = mx.io.DataBatch(data=[data], label=[nd.array(IMAGES[:4])])
    step = learning.step(batch)
    gradient = learning.parameter.grad().asnumpy()
    assert step.is_finite
    assert (gradient[[3, 8, 9]] == 0).all()  # nothing of the third class is in the batch
    np.testing.assert_allclose(gradient[0], gradient[1:3].sum(), rtol=1e-4)
    np.testing.assert_allclose(gradient[1:3], gradient[4:8].reshape(2, 2).sum(axis=1), rtol=1e-4)
    values = learning.parameter.data().asnumpy()
    np.testing.assert_allclose(learning.beta_values(), values[IMAGES].sum(axis=1), rtol=1e-6)


def test_a_common_beta_is_one_for_all() -> None:
    common = np.zeros((6, 1), int)
    learning = learner_of("--beta-per=common", "--lr-beta=1", boundaries=common)
    assert learning.parameter.shape == (1,)
    data = nd.array(np.random.default_rng(1).normal(size=(4, 3, 8, 8)))
    learning.step(mx.io.DataBatch(data=[data], label=[nd.array(common[:4])]))
    values = learning.beta_values()
    assert values.shape == (6,) and len(set(values)) == 1
    assert values[0] != np.float32(1.2)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_beta_has_an_optimizer_of_its_own(optimizer: str) -> None:
    """The first step of Adam is the learning rate; that of SGD is the rate times the gradient."""
    learning = learner_of(f"--beta-optimizer={optimizer}", "--lr-beta=0.01")
    data = nd.array(np.random.default_rng(1).normal(size=(4, 3, 8, 8)))
    batch = mx.io.DataBatch(data=[data], label=[nd.array([0, 0, 1, 1])])
    learning.step(batch)
    gradient = learning.parameter.grad().asnumpy() / 4
    moved = learning.parameter.data().asnumpy() - 1.2
    expected = -0.01 * (gradient if optimizer == "sgd" else np.sign(gradient))
    np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-6)


def test_batches_name_the_entries_of_beta_of_their_images(tiny_cub: Path, tmp_path: Path) -> None:
    config = _data_options(tiny_cub, tmp_path, "--beta-per=image")
    split = read_split(config)
    data = open_data(split, config)
    try:
        images, classes = len(split.train), len(split.train.class_names)
        assert data.beta_terms.shape == (images, 3)
        assert data.beta_terms.max() == classes + images
        shapes = [description.shape for description in data.train.provide_label]
        labels = [label.asnumpy().astype(int) for label in data.train.next().label]
        assert [label.shape for label in labels] == shapes
        of_batch, label = labels
        common, of_class, of_image = label.T
        assert (common == 0).all()
        rows = of_image - 1 - classes
        np.testing.assert_array_equal(split.train.labels[rows], of_class - 1)
        np.testing.assert_array_equal(of_batch, of_class - 1)
        assert len(set(rows)) == len(rows)
        np.testing.assert_array_equal(of_class, np.repeat(of_class[::3], 3))
    finally:
        data.close()


def _data_options(data: Path, folder: Path, *flags: str) -> TrainConfig:
    return parse(
        [
            *(f"--data-path={data}", f"--cache-dir={folder}", "--batch-size=6", "--batch-k=3"),
            *("--image-size=40", "--crop-size=32", *flags),
        ]
    )


# The flags


def test_a_loss_brings_its_margin_unless_one_is_given() -> None:
    assert parse([]).method.margin == 0.2
    assert parse(["--loss=contrastive"]).method.margin == 1.0
    assert parse(["--loss=contrastive", "--margin=0.3"]).method.margin == 0.3
    assert build.build_loss(parse(["--loss=contrastive"]).method)._margin == 1.0
    assert build.build_loss(parse(["--loss=margin", "--nu=0.5"]).method)._nu == 0.5


def test_the_original_is_what_runs_without_flags() -> None:
    preset = parse(["--preset=original"]).as_flags()
    assert preset.pop("preset") == "original"
    plain = parse([]).as_flags()
    assert plain.pop("preset") is None
    assert preset == plain
    assert (plain["loss"], plain["sampling"], plain["beta_per"]) == (
        "margin",
        "distance-weighted",
        "class",
    )


def test_what_is_typed_replaces_what_a_preset_says() -> None:
    paper = parse(["--preset=paper-sop"])
    assert (paper.batch.batch_k, paper.batch.per_device, paper.batch.total) == (2, 80, 80)
    assert (paper.data.bbox, paper.method.beta_per) == (False, "image")
    mine = parse(["--batch-k=4", "--preset=paper-sop", "--bbox", "--beta-per=class"])
    assert (mine.batch.batch_k, mine.batch.per_device) == (4, 80)
    assert (mine.data.bbox, mine.method.beta_per) == (True, "class")
    assert parse(["--preset=paper-cub", "--loss=contrastive"]).method.margin == 1.0
    birds = parse(["--preset=paper-cub"])
    assert (birds.batch.batch_k, birds.batch.per_device, birds.batch.batch_num) == (4, 128, 46)
    assert (birds.run.epochs, birds.optimizer.steps, birds.optimizer.factor) == (50, (30,), 0.3)


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--loss=hinge"], "--loss hinge: unknown; choose one of margin, "),
        (["--sampling=easy"], "--sampling easy: unknown; choose one of "),
        (["--preset=paper"], "--preset paper: unknown; choose one of original"),
        (
            ["--sampling=hard", "--normalize-weights"],
            "--normalize-weights: --sampling hard has no weights",
        ),
        (["--beta-per=image", "--lr-beta=0"], "--beta-per image: is for a beta that is learned"),
    ],
)
def test_what_does_not_fit_is_named(flags: list[str], line: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(line)}"):
        parse(flags)
