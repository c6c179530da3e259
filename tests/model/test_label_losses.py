"""The losses of embeddings and classes against loops over their papers' equations, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import HybridBlock

from embedding_learning.model.label_losses.multi_similarity import MultiSimilarityLoss
from embedding_learning.model.label_losses.normalized_softmax import NormalizedSoftmaxLoss
from embedding_learning.model.label_losses.proxy_anchor import ProxyAnchorLoss
from embedding_learning.model.label_losses.proxy_nca import ProxyNCALoss

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
CLASSES = 7


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def batch(n: int = 12, d: int = 6, spread: float = 1.0, seed: int = 0) -> Arrays:
    """Embeddings around centers of their classes, labels in no order, proxies of any length."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) // 2 % (CLASSES - 1))
    centers = rng.normal(size=(CLASSES, d))
    embeddings = unit(centers[labels] + spread * rng.normal(size=(n, d)))
    return embeddings, labels, centers + rng.normal(size=(CLASSES, d))


def naive_proxy_nca(embeddings: np.ndarray, labels: np.ndarray, proxies: np.ndarray, s: float):
    total = 0.0
    for x, y in zip(embeddings, labels):
        squared = [((x - p) ** 2).sum() for p in unit(proxies)]
        others = sum(math.exp(-s * squared[z]) for z in range(len(proxies)) if z != y)
        total -= math.log(math.exp(-s * squared[y]) / others)
    return total / len(labels)


def naive_softmax(embeddings, labels, proxies, m: float, s: float) -> float:
    total = 0.0
    for x, y in zip(embeddings, labels):
        angles = [math.acos(np.clip(x @ p, -1, 1)) for p in unit(proxies)]
        own = math.cos(angles[y] + m)
        if angles[y] > math.pi - m:
            own = math.cos(angles[y]) - m * math.sin(m)
        others = sum(math.exp(s * math.cos(a)) for z, a in enumerate(angles) if z != y)
        total -= math.log(math.exp(s * own) / (math.exp(s * own) + others))
    return total / len(labels)


def naive_proxy_anchor(embeddings, labels, proxies, m: float, s: float) -> float:
    positive, negative = [], []
    for z, p in enumerate(unit(proxies)):
        own, others = ([x @ p for x, y in zip(embeddings, labels) if (y == z) == k] for k in (1, 0))
        if own:
            positive.append(math.log(1 + sum(math.exp(-s * (c - m)) for c in own)))
        negative.append(math.log(1 + sum(math.exp(s * (c + m)) for c in others)))
    return sum(positive) / len(positive) + sum(negative) / len(negative)


def naive_multi_similarity(embeddings, labels, epsilon: float, beta: float) -> float:
    total = 0.0
    for i, (x, y) in enumerate(zip(embeddings, labels)):
        own = [x @ z for k, z in enumerate(embeddings) if labels[k] == y and k != i]
        others = [x @ z for k, z in enumerate(embeddings) if labels[k] != y]
        kept = [c for c in own if others and c - epsilon < max(others)]
        pushed = [c for c in others if own and c + epsilon > min(own)]
        total += math.log(1 + sum(math.exp(-2 * (c - 0.5)) for c in kept)) / 2
        total += math.log(1 + sum(math.exp(beta * (c - 0.5)) for c in pushed)) / beta
    return total / len(labels)


Naive = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
LOSSES: dict[str, tuple[HybridBlock, Naive]] = {
    "proxy-nca": (ProxyNCALoss(), lambda *a: naive_proxy_nca(*a, 1.0)),
    "proxy-nca, 3": (ProxyNCALoss(3.0), lambda *a: naive_proxy_nca(*a, 3.0)),
    "softmax": (NormalizedSoftmaxLoss(), lambda *a: naive_softmax(*a, 0.0, 20.0)),
    "arcface": (NormalizedSoftmaxLoss(0.5, 16.0), lambda *a: naive_softmax(*a, 0.5, 16.0)),
    "arcface, 2": (NormalizedSoftmaxLoss(2.0, 4.0), lambda *a: naive_softmax(*a, 2.0, 4.0)),
    "proxy-anchor": (ProxyAnchorLoss(), lambda *a: naive_proxy_anchor(*a, 0.1, 32.0)),
    "multi-similarity": (
        MultiSimilarityLoss(),
        lambda x, y, _: naive_multi_similarity(x, y, 0.1, 50.0),
    ),
    "multi-similarity, 0.4": (
        MultiSimilarityLoss(0.4, 10.0),
        lambda x, y, _: naive_multi_similarity(x, y, 0.4, 10.0),
    ),
}
EVERY = pytest.mark.parametrize("name", LOSSES)


def evaluate(loss: HybridBlock, arrays: Arrays) -> tuple[Any, list[np.ndarray]]:
    """Returns the loss and its gradients with respect to embeddings and proxies."""
    embeddings, labels, proxies = map(nd.array, arrays)
    inputs = [embeddings] if isinstance(loss, MultiSimilarityLoss) else [embeddings, proxies]
    for array in inputs:
        array.attach_grad()
    with autograd.record():
        value = loss(embeddings, labels, *inputs[1:])
    value.backward()
    return value, [array.grad.asnumpy() for array in inputs]


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize("hybridized", [False, True])
@pytest.mark.parametrize("spread", [0.05, 1.0, 9.0])
def test_a_loss_follows_the_equation_of_its_paper(name, hybridized, spread):
    loss, naive = LOSSES[name]
    loss.hybridize(hybridized, static_alloc=True, static_shape=True)
    for n in (12, 4):
        arrays = batch(n, spread=spread, seed=n)
        value, _ = evaluate(loss, arrays)
        assert value.shape == (1,)
        assert value.asscalar() == pytest.approx(naive(*arrays), rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LOSSES if "multi" not in name])
def test_gradients_of_proxies_follow_finite_differences(name):
    loss, naive = LOSSES[name]
    embeddings, labels, proxies = batch(spread=0.7)
    gradient = evaluate(loss, (embeddings, labels, proxies))[1][1]
    step = 1e-6
    for place in np.ndindex(proxies.shape):
        change = np.zeros(proxies.shape)
        change[place] = step
        values = [naive(embeddings, labels, proxies + sign * change) for sign in (1, -1)]
        slope = (values[0] - values[1]) / (2 * step)
        assert gradient[place] == pytest.approx(slope, abs=1e-3)


@EVERY
def test_gradients_of_embeddings_follow_finite_differences_on_the_sphere(name):
    """Along circles through an embedding, which stays of unit length."""
    loss, naive = LOSSES[name]
    arrays = batch(spread=0.7)
    gradient = evaluate(loss, arrays)[1][0]
    rng = np.random.default_rng(1)
    step = 1e-6
    for row, x in enumerate(arrays[0]):
        direction = rng.normal(size=x.shape)
        direction = unit(direction - (direction @ x) * x)
        values = []
        for angle in (step, -step):
            embeddings = arrays[0].copy()
            embeddings[row] = math.cos(angle) * x + math.sin(angle) * direction
            values.append(naive(embeddings, *arrays[1:]))
        slope = (values[0] - values[1]) / (2 * step)
        assert gradient[row] @ direction == pytest.approx(slope, abs=1e-3)


@EVERY
def test_losses_are_finite_where_all_rows_and_proxies_are_equal_or_opposite(name):
    loss, _ = LOSSES[name]
    embeddings, labels, proxies = batch()
    for sign in (1.0, -1.0):
        same = np.repeat(embeddings[:1], len(embeddings), axis=0)
        arrays = same, labels, sign * np.repeat(embeddings[:1], len(proxies), axis=0)
        value, gradients = evaluate(loss, arrays)
        assert np.isfinite(value.asscalar())
        assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", ["proxy-anchor", "multi-similarity"])
def test_a_class_that_the_batch_lacks_has_no_positive_term(name):
    """All of one class: no negatives; multi-similarity then selects nothing."""
    loss, naive = LOSSES[name]
    embeddings, labels, proxies = batch()
    arrays = embeddings, 0 * labels, proxies
    value, _ = evaluate(loss, arrays)
    assert value.asscalar() == pytest.approx(naive(*arrays), rel=1e-4, abs=1e-6)
