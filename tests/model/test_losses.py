"""The losses against naive loops over their definitions, and the golden vectors."""

import numpy as np
import pytest
from mxnet import autograd, gluon, init, nd

from embedding_learning import MarginLoss
from embedding_learning.model.losses import ContrastiveLoss, EuclideanTripletLoss, TripletLoss


def triplets(m, d, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(3, m, d))
    return (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)


def naive_loss(anchors, positives, negatives, beta_of_anchor, margin, nu):
    """The definition, triplet by triplet in float64."""
    total, active = 0.0, 0
    for a, p, n, beta in zip(anchors, positives, negatives, beta_of_anchor):
        d_ap = np.sqrt(((a.astype(np.float64) - p) ** 2).sum() + 1e-8)
        d_an = np.sqrt(((a.astype(np.float64) - n) ** 2).sum() + 1e-8)
        for term in (d_ap - beta + margin, beta - d_an + margin):
            if term > 0:
                total += term
                active += 1
    return (total + nu * sum(beta_of_anchor)) / active if active else 0.0


def loss_and_gradients(loss, arrays, beta, labels):
    arrays = [nd.array(array) for array in arrays]
    variables = [*arrays, beta] if isinstance(beta, nd.NDArray) else arrays
    for variable in variables:
        variable.attach_grad()
    with autograd.record():
        value = loss(*arrays, beta, labels)
    value.backward()
    return value, [variable.grad.asnumpy() for variable in variables]


@pytest.mark.shared
@pytest.mark.parametrize("hybridized", [False, True])
@pytest.mark.parametrize("group", ["loss0", "loss1", "loss2"])
def test_golden_loss_and_gradients(golden, group, hybridized):
    names = ("anchors", "positives", "negatives")
    learned = f"{group}/grad_beta" in golden
    beta = nd.array(np.atleast_1d(golden[f"{group}/beta"]))
    labels = nd.array(golden[f"{group}/labels"]) if learned else None
    loss = MarginLoss(float(golden[f"{group}/margin"]), float(golden[f"{group}/nu"]))
    if hybridized:
        loss.hybridize(static_alloc=True, static_shape=True)
    value, gradients = loss_and_gradients(
        loss, [golden[f"{group}/{name}"] for name in names], beta, labels
    )
    np.testing.assert_allclose(value.asscalar(), golden[f"{group}/loss"], rtol=1e-6)
    expected = [golden[f"{group}/grad_{name}"] for name in names]
    if learned:
        expected.append(golden[f"{group}/grad_beta"])
    for found, gradient in zip(gradients, expected):
        np.testing.assert_allclose(found, gradient, atol=1e-7)


@pytest.mark.parametrize("nu", [0.0, 0.01])
@pytest.mark.parametrize("margin", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("m", [1, 7, 280])
def test_loss_follows_the_definition(m, margin, nu):
    arrays = triplets(m, 16)
    beta = np.linspace(1.0, 1.5, 10).astype(np.float32)
    labels = np.arange(m) % 10
    found = MarginLoss(margin, nu)(*map(nd.array, arrays), nd.array(beta), nd.array(labels))
    assert found.shape == (1,)
    expected = naive_loss(*arrays, beta[labels], margin, nu)
    np.testing.assert_allclose(found.asscalar(), expected, rtol=1e-5, atol=1e-7)


def test_gradients_follow_finite_differences():
    arrays = triplets(12, 6).astype(np.float64)
    beta, labels = np.linspace(1.1, 1.5, 4), np.arange(12) % 4
    _, gradients = loss_and_gradients(
        MarginLoss(0.2, 0.03), arrays, nd.array(beta), nd.array(labels)
    )

    def value(changed, changed_beta):
        return naive_loss(*changed, changed_beta[labels], 0.2, 0.03)

    # One active term more or less would jump; the step is too small for that here.
    step = 1e-6
    for part in range(3):
        for place in np.ndindex(arrays[part].shape):
            up, down = arrays.copy(), arrays.copy()
            up[part][place] += step
            down[part][place] -= step
            slope = (value(up, beta) - value(down, beta)) / (2 * step)
            assert gradients[part][place] == pytest.approx(slope, abs=1e-5)
    for place in range(4):
        change = step * (np.arange(4) == place)
        slope = (value(arrays, beta + change) - value(arrays, beta - change)) / (2 * step)
        assert gradients[3][place] == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize("beta", [1.2, 1, nd.array([1.2])])
def test_a_constant_beta_is_a_number_or_an_array_of_one_and_not_regularized(beta):
    arrays = triplets(50, 8)
    constant = float(beta.asscalar()) if isinstance(beta, nd.NDArray) else beta
    found = MarginLoss(nu=0.5)(*map(nd.array, arrays), beta).asscalar()
    assert found == pytest.approx(naive_loss(*arrays, [constant] * 50, 0.2, 0.0), rel=1e-5)


@pytest.mark.parametrize("hybridized", [False, True])
def test_beta_as_a_parameter_learns_from_its_own_classes_alone(hybridized):
    beta = gluon.Parameter("beta", shape=(5,))
    beta.initialize(init.Constant(1.2))
    loss = MarginLoss()
    if hybridized:
        loss.hybridize(static_alloc=True, static_shape=True)
    arrays = triplets(30, 8)
    labels = np.array([1, 3] * 15)
    with autograd.record():
        value = loss(*map(nd.array, arrays), beta, nd.array(labels))
    value.backward()
    gradient = beta.grad().asnumpy()
    assert value.asscalar() == pytest.approx(naive_loss(*arrays, [1.2] * 30, 0.2, 0.0), rel=1e-5)
    assert (gradient[[0, 2, 4]] == 0).all()
    assert (gradient[[1, 3]] != 0).all()


@pytest.mark.parametrize("hybridized", [False, True])
def test_no_active_pair_gives_zero_and_no_gradient(hybridized):
    """Positives on their anchors, negatives opposite; no regularization either."""
    anchors = triplets(10, 8)[0]
    loss = MarginLoss(0.2, nu=0.1)
    if hybridized:
        loss.hybridize(static_alloc=True, static_shape=True)
    value, gradients = loss_and_gradients(
        loss, (anchors, anchors, -anchors), nd.array([1.2]), nd.zeros(10)
    )
    assert value.asscalar() == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_equal_rows_give_finite_gradients():
    anchors = triplets(10, 8)[0]
    _, gradients = loss_and_gradients(
        MarginLoss(), (anchors, anchors, anchors), nd.array([1.2]), nd.zeros(10)
    )
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_one_hybridized_loss_takes_any_number_of_triplets():
    loss = MarginLoss()
    loss.hybridize(static_alloc=True, static_shape=True)
    for m in (8, 280, 3, 8):
        arrays = triplets(m, 16, seed=m)
        found = loss(*map(nd.array, arrays), nd.array([1.2, 1.3]), nd.zeros(m)).asscalar()
        assert found == pytest.approx(naive_loss(*arrays, [1.2] * m, 0.2, 0.0), rel=1e-5)


def test_beta_can_be_a_sum():
    """Labels of several columns: a common entry, the class's and the image's."""
    arrays = triplets(30, 8)
    rng = np.random.default_rng(3)
    entries = rng.normal(0.4, 0.1, 1 + 5 + 40).astype(np.float32)
    classes, images = rng.integers(0, 5, 30), rng.integers(0, 40, 30)
    labels = np.stack([np.zeros(30), 1 + classes, 6 + images], axis=1)
    beta = nd.array(entries)
    value, gradients = loss_and_gradients(MarginLoss(0.2, 0.03), arrays, beta, nd.array(labels))
    beta_of_anchor = entries[0] + entries[1 + classes] + entries[6 + images]
    expected = naive_loss(*arrays, beta_of_anchor, 0.2, 0.03)
    assert value.asscalar() == pytest.approx(expected, rel=1e-5)
    # The gradient of each anchor's beta is that of its three terms.
    gradient = gradients[3]
    assert gradient[1:6].sum() == pytest.approx(gradient[0], rel=1e-4)
    assert gradient[6:].sum() == pytest.approx(gradient[0], rel=1e-4)
    unused = np.setdiff1d(np.arange(40), images)
    assert not gradient[6 + unused].any()


def naive_terms(kind, a, p, n, margin):
    """What a triplet adds to a loss by its definition in the paper, and each term's gradients."""
    d_ap, d_an = np.linalg.norm(a - p), np.linalg.norm(a - n)
    if kind is ContrastiveLoss:
        return [d_ap**2, max(margin - d_an, 0) ** 2]
    if kind is TripletLoss:
        return [max(d_ap**2 - d_an**2 + margin, 0)]
    return [max(d_ap - d_an + margin, 0)]


def naive_mean(kind, arrays, margin):
    terms = np.array([naive_terms(kind, *triplet, margin) for triplet in zip(*arrays)])
    return terms.sum() / max(1, (terms > 0).sum())


WITHOUT_BETA = pytest.mark.parametrize("kind", [ContrastiveLoss, TripletLoss, EuclideanTripletLoss])


@WITHOUT_BETA
@pytest.mark.parametrize("hybridized", [False, True])
@pytest.mark.parametrize("margin", [0.05, 0.2, 1.4])
@pytest.mark.parametrize("m", [1, 7, 280])
def test_other_losses_follow_their_definitions(kind, m, margin, hybridized):
    arrays = triplets(m, 16, seed=m)
    loss = kind(margin)
    if hybridized:
        loss.hybridize(static_alloc=True, static_shape=True)
    found = loss(*map(nd.array, arrays))
    assert found.shape == (1,)
    expected = naive_mean(kind, arrays.astype(np.float64), margin)
    assert found.asscalar() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    terms = [naive_terms(kind, *triplet, margin) for triplet in zip(*arrays.astype(np.float64))]
    found = np.stack([term.asnumpy() for term in loss.terms(*map(nd.array, arrays))], axis=1)
    np.testing.assert_allclose(found, terms, rtol=1e-4, atol=1e-6)


@WITHOUT_BETA
def test_gradients_of_other_losses_follow_finite_differences(kind):
    arrays = triplets(12, 6).astype(np.float64)
    margin = 1.4 if kind is ContrastiveLoss else 0.3
    variables = [nd.array(array) for array in arrays]
    for variable in variables:
        variable.attach_grad()
    with autograd.record():
        value = kind(margin)(*variables)
    value.backward()
    step = 1e-6
    for part in range(3):
        for place in np.ndindex(arrays[part].shape):
            up, down = arrays.copy(), arrays.copy()
            up[part][place] += step
            down[part][place] -= step
            slope = (naive_mean(kind, up, margin) - naive_mean(kind, down, margin)) / (2 * step)
            assert variables[part].grad.asnumpy()[place] == pytest.approx(slope, abs=1e-5)


@WITHOUT_BETA
@pytest.mark.parametrize("hybridized", [False, True])
def test_other_losses_give_zero_and_no_gradient_where_all_is_learned(kind, hybridized):
    anchors = triplets(10, 8)[0]
    variables = [nd.array(array) for array in (anchors, anchors, -anchors)]
    for variable in variables:
        variable.attach_grad()
    loss = kind()
    if hybridized:
        loss.hybridize(static_alloc=True, static_shape=True)
    with autograd.record():
        value = loss(*variables)
    value.backward()
    assert value.asscalar() == 0
    assert not any(variable.grad.asnumpy().any() for variable in variables)


@WITHOUT_BETA
def test_equal_rows_give_finite_gradients_in_other_losses(kind):
    variables = [nd.array(triplets(10, 8)[0]) for _ in range(3)]
    for variable in variables:
        variable.attach_grad()
    with autograd.record():
        value = kind()(*variables)
    value.backward()
    assert all(np.isfinite(variable.grad.asnumpy()).all() for variable in variables)
