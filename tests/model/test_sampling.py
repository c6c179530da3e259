"""Distance weighted sampling against its definition, the golden vectors and its own promises."""

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd
from scipy import stats

from embedding_learning import DistanceWeightedSampling
from embedding_learning.model.sampling import HardSampling, RandomSampling, SemiHardSampling

DIMENSIONS = (3, 16, 64, 128, 256, 512, 1024)


def unit_rows(n, d, spread=1.0, seed=0):
    """Rows of unit length around a common direction, so that their distances spread below 1.4."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(1, d)) / np.sqrt(d) + spread * rng.normal(size=(n, d)) / np.sqrt(d)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def naive_probabilities(x, batch_k, cutoff=0.5, nonzero_loss_cutoff=1.4):
    """The definition in the docstring of the sampling, pair by pair in float64."""
    n, d = x.shape
    x = x.astype(np.float64)
    result = np.zeros((n, n))

    def log_inverse_density(distance):
        return (2 - d) * np.log(distance) - (d - 3) / 2 * np.log(max(1 - distance**2 / 4, 1e-300))

    upper = np.inf if nonzero_loss_cutoff is None else nonzero_loss_cutoff
    for i in range(n):
        log_weights = np.full(n, -np.inf)
        for j in range(n):
            distance = np.linalg.norm(x[i] - x[j])
            if i // batch_k != j // batch_k and distance < upper:
                log_weights[j] = log_inverse_density(max(distance, cutoff))
                if nonzero_loss_cutoff is None:
                    # The paper's min(lambda, 1/q(D)), with lambda = 1/q(cutoff).
                    log_weights[j] = min(log_weights[j], log_inverse_density(cutoff))
        if np.isinf(log_weights).all():
            log_weights = np.where(np.arange(n) // batch_k != i // batch_k, 0.0, -np.inf)
        weights = np.exp(log_weights - log_weights.max())
        result[i] = weights / weights.sum()
    return result


def drawn_rows(sampling, x):
    """The rows that the negatives of one call were copied from, (n, batch_k - 1)."""
    row_of = {row.tobytes(): number for number, row in enumerate(x)}
    assert len(row_of) == len(x)
    negatives = sampling(nd.array(x))[3].asnumpy()
    return np.array([row_of[row.tobytes()] for row in negatives]).reshape(len(x), -1)


def count_draws(sampling, x, calls):
    """How often each row (column) was a negative of each anchor (row): (n, n)."""
    counts = np.zeros((len(x), len(x)))
    for _ in range(calls):
        np.add.at(counts, (np.arange(len(x))[:, None], drawn_rows(sampling, x)), 1)
    return counts


@pytest.mark.parametrize("d", DIMENSIONS)
def test_probabilities_follow_the_definition(d):
    x = unit_rows(40, d)
    found = DistanceWeightedSampling(5).probabilities(nd.array(x)).asnumpy()
    expected = naive_probabilities(x, 5)
    # The squared distance is known to some 2e-7 and raised to about the power d / 2.
    np.testing.assert_allclose(found, expected, rtol=1e-5 + 1e-6 * d, atol=1e-7)


@pytest.mark.parametrize(
    "cutoff, nonzero_loss_cutoff", [(0.1, 1.4), (0.5, 1.0), (0.9, 2.1), (0.5, None), (1.2, None)]
)
def test_both_cutoffs_are_followed(cutoff, nonzero_loss_cutoff):
    x = unit_rows(30, 16)
    found = DistanceWeightedSampling(3, cutoff, nonzero_loss_cutoff).probabilities(nd.array(x))
    expected = naive_probabilities(x, 3, cutoff, nonzero_loss_cutoff)
    np.testing.assert_allclose(found.asnumpy(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("hybridized", [False, True])
def test_without_an_upper_cutoff_the_farthest_can_be_sampled(hybridized):
    """Opposite points, beyond the original's limit; their weight is that of the cutoff."""
    angles = np.float32([0.0, 0.1, 2.0, 2.1, np.pi, 3.2])
    x = np.zeros((6, 16), np.float32)
    x[:, 0], x[:, 1] = np.cos(angles), np.sin(angles)
    sampling = DistanceWeightedSampling(2, nonzero_loss_cutoff=None)
    if hybridized:
        sampling.hybridize(static_alloc=True, static_shape=True)
    mx.random.seed(1)
    rows = {number for _ in range(50) for number in drawn_rows(sampling, x)[0]}
    assert rows == {4, 5}  # the weights of the others are smaller by the factor 1e5
    assert sampling.cutoffs == (0.5,)
    found = sampling.probabilities(nd.array(x)).asnumpy()
    np.testing.assert_allclose(found, naive_probabilities(x, 2, 0.5, None), rtol=1e-4, atol=1e-7)


@pytest.mark.shared
@pytest.mark.parametrize("group", ["sampling0", "sampling1", "sampling2"])
def test_golden_probabilities_and_pairs(golden, group):
    x, batch_k = nd.array(golden[f"{group}/x"]), int(golden[f"{group}/batch_k"])
    sampling = DistanceWeightedSampling(batch_k)
    found = sampling.probabilities(x).asnumpy()
    np.testing.assert_allclose(found, golden[f"{group}/probabilities"], atol=5e-6)
    a_indices, anchors, positives, _, same_x = sampling(x)
    np.testing.assert_array_equal(a_indices.asnumpy(), golden[f"{group}/anchor_indices"])
    np.testing.assert_array_equal(anchors.asnumpy(), x.asnumpy()[golden[f"{group}/anchor_indices"]])
    np.testing.assert_array_equal(
        positives.asnumpy(), x.asnumpy()[golden[f"{group}/positive_indices"]]
    )
    np.testing.assert_array_equal(same_x.asnumpy(), x.asnumpy())


@pytest.mark.shared
def test_repeated_rows_that_stop_the_original_are_sampled(golden):
    """Rounding makes their squared distance negative, and the original stops."""
    assert golden["sampling3/reference_raised"]
    x, batch_k = golden["sampling3/x"], int(golden["sampling3/batch_k"])
    sampling = DistanceWeightedSampling(batch_k)
    found = sampling.probabilities(nd.array(x)).asnumpy()
    np.testing.assert_allclose(found, naive_probabilities(x, batch_k), rtol=1e-4, atol=1e-6)
    assert np.isfinite(sampling(nd.array(x))[3].asnumpy()).all()


@pytest.mark.shared
def test_weights_that_vanish_in_the_original_are_exact(golden):
    """At d = 512 the original samples uniformly and logs nothing."""
    x, batch_k = golden["sampling4/x"], int(golden["sampling4/batch_k"])
    original = golden["sampling4/probabilities"]
    np.testing.assert_allclose(original[original > 0], 1 / (len(x) - batch_k), rtol=1e-5)
    found = DistanceWeightedSampling(batch_k).probabilities(nd.array(x)).asnumpy()
    np.testing.assert_allclose(found, naive_probabilities(x, batch_k), rtol=1e-3, atol=1e-7)
    assert found.max() > 0.5


def test_near_equal_rows_give_no_nan():
    x = np.repeat(unit_rows(6, 128), 4, axis=0)
    x += np.random.default_rng(1).normal(scale=1e-8, size=x.shape).astype(np.float32)
    found = DistanceWeightedSampling(2).probabilities(nd.array(x)).asnumpy()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 128, 1024])
@pytest.mark.parametrize("hybridized", [False, True])
def test_draws_follow_the_probabilities(d, hybridized):
    """Chi-squared of each row's samples; one of all rows may be improbable, not many."""
    x = unit_rows(40, d)
    sampling = DistanceWeightedSampling(20)  # 19 samples of each anchor at once
    if hybridized:
        sampling.hybridize(static_alloc=True, static_shape=True)
    mx.random.seed(7)
    probabilities = sampling.probabilities(nd.array(x)).asnumpy().astype(np.float64)
    counts = count_draws(sampling, x, 32)
    assert_distributed(counts, probabilities)


def assert_distributed(counts, probabilities):
    assert counts[probabilities == 0].sum() == 0
    assert smallest_p_value(counts, probabilities) > 1e-4
    # All anchors together show a small error that they share.
    assert smallest_p_value([counts.sum(axis=0)], [probabilities.sum(axis=0)]) > 1e-4


def smallest_p_value(counts, probabilities):
    """The least over the rows. Columns are merged until each expects at least five samples."""
    p_values = []
    for observed, probability in zip(counts, probabilities):
        expected = probability / probability.sum() * observed.sum()
        rare = expected < 5
        merged_observed, merged_expected = observed[rare].sum(), expected[rare].sum()
        observed, expected = observed[~rare], expected[~rare]
        if merged_expected >= 5:
            observed = np.append(observed, merged_observed)
            expected = np.append(expected, merged_expected)
        else:
            observed[-1] += merged_observed
            expected[-1] += merged_expected
        if len(expected) > 1:
            p_values.append(stats.chisquare(observed, expected).pvalue)
    return min(p_values)


@pytest.mark.slow
def test_the_draws_of_an_anchor_are_independent():
    """With replacement: two samples of one anchor agree as often as independent ones would."""
    x = unit_rows(40, 16)
    sampling = DistanceWeightedSampling(20)
    mx.random.seed(3)
    probabilities = sampling.probabilities(nd.array(x)).asnumpy().astype(np.float64)
    draws = np.stack([drawn_rows(sampling, x) for _ in range(25)])
    first, second = draws[..., 0:18:2], draws[..., 1:18:2]
    pairs = first[:, 0].size
    chance = (probabilities**2).sum(axis=1)
    deviation = np.sqrt(pairs * (chance * (1 - chance)).sum())
    assert abs((first == second).sum() - pairs * chance.sum()) < 4 * deviation


@pytest.mark.slow
def test_a_row_without_candidates_draws_uniformly_from_the_other_classes():
    x = np.eye(24, dtype=np.float32)  # all distances are sqrt(2), beyond 1.4
    sampling = DistanceWeightedSampling(12)
    found = sampling.probabilities(nd.array(x)).asnumpy()
    expected = np.where(np.arange(24)[:, None] // 12 != np.arange(24) // 12, 1 / 12, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    mx.random.seed(1)
    counts = count_draws(sampling, x, 50)
    assert_distributed(counts, expected)


def test_antipodal_rows_give_no_nan():
    x = unit_rows(4, 16)
    x = np.concatenate([x, -x])
    found = DistanceWeightedSampling(2, nonzero_loss_cutoff=2.5).probabilities(nd.array(x))
    assert np.isfinite(found.asnumpy()).all()


@pytest.mark.parametrize("uniform", [0.0, 1.0])
def test_the_ends_of_the_uniform_numbers_stay_within_the_candidates(monkeypatch, uniform):
    """float32 uniforms may round to either end; neither may leave the row or its candidates."""
    monkeypatch.setattr(nd.random, "uniform_like", lambda like: nd.ones_like(like) * uniform)
    x = unit_rows(20, 64)
    rows = drawn_rows(DistanceWeightedSampling(5), x)
    probabilities = naive_probabilities(x, 5)
    assert (np.take_along_axis(probabilities, rows, axis=1) > 0).all()


def test_the_fixed_choice_of_uniform_numbers_inverts_the_distribution(monkeypatch):
    """u between two cumulative probabilities selects the column between them."""
    x = unit_rows(12, 8)
    probabilities = naive_probabilities(x, 3)
    for u in (0.1, 0.35, 0.8):
        monkeypatch.setattr(nd.random, "uniform_like", lambda like, u=u: nd.ones_like(like) * u)
        rows = drawn_rows(DistanceWeightedSampling(3), x)
        expected = (np.cumsum(probabilities, axis=1) < u).sum(axis=1)
        np.testing.assert_array_equal(rows, np.repeat(expected[:, None], 2, axis=1))


def test_one_hybridized_block_takes_any_batch_size():
    sampling = DistanceWeightedSampling(5)
    sampling.hybridize(static_alloc=True, static_shape=True)
    for n in (20, 70, 10, 20):
        x = unit_rows(n, 32, seed=n)
        a_indices, anchors, positives, negatives, _ = sampling(nd.array(x))
        expected_anchors = [i for i in range(n) for _ in range(4)]
        expected_positives = [
            j for i in range(n) for j in range(i // 5 * 5, i // 5 * 5 + 5) if j != i
        ]
        np.testing.assert_array_equal(a_indices.asnumpy(), expected_anchors)
        np.testing.assert_array_equal(anchors.asnumpy(), x[expected_anchors])
        np.testing.assert_array_equal(positives.asnumpy(), x[expected_positives])
        assert negatives.shape == anchors.shape


@pytest.mark.parametrize("hybridized", [False, True])
def test_gradients_reach_the_drawn_rows_and_no_other_way(hybridized):
    x = unit_rows(20, 8)
    weights = np.random.default_rng(5).normal(size=(3, 80, 8)).astype(np.float32)
    sampling = DistanceWeightedSampling(5)
    if hybridized:
        sampling.hybridize(static_alloc=True, static_shape=True)
    data = nd.array(x)
    data.attach_grad()
    with autograd.record():
        outputs = sampling(data)
        total = sum((o * nd.array(w)).sum() for o, w in zip(outputs[1:4], weights))
    total.backward()
    row_of = {row.tobytes(): number for number, row in enumerate(x)}
    expected = np.zeros_like(x)
    for output, weight in zip(outputs[1:4], weights):
        rows = [row_of[row.tobytes()] for row in output.asnumpy()]
        np.add.at(expected, rows, weight)
    np.testing.assert_allclose(data.grad.asnumpy(), expected, rtol=1e-4, atol=1e-5)


def test_normalized_weights_follow_the_port():
    """log weights of the whole batch scaled to [0, 1], the diagonal's distance taken as 1."""
    x = unit_rows(20, 32)
    distance = np.linalg.norm(x[:, None].astype(np.float64) - x, axis=2) + np.eye(20)
    log_weights = -30 * np.log(np.maximum(distance, 0.5)) - 29 / 2 * np.log(
        1 - np.maximum(distance, 0.5) ** 2 / 4
    )
    log_weights = (log_weights - log_weights.min()) / (log_weights.max() - log_weights.min())
    other_class = np.arange(20)[:, None] // 5 != np.arange(20) // 5
    expected = np.exp(log_weights) * other_class * (distance < 1.4)
    expected /= expected.sum(axis=1, keepdims=True)
    found = DistanceWeightedSampling(5, normalize_weights=True).probabilities(nd.array(x))
    np.testing.assert_allclose(found.asnumpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n", [5, 12])
def test_rows_that_are_not_whole_classes_are_refused(n):
    with pytest.raises(ValueError, match=f"{n} rows are not two or more whole classes of 5 rows"):
        DistanceWeightedSampling(5)(nd.array(unit_rows(n, 8)))


# The other samplings


OTHERS = (RandomSampling, SemiHardSampling, HardSampling)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("hybridized", [False, True])
def test_anchors_and_positives_are_those_of_every_sampling(kind, hybridized):
    sampling, same = kind(5), DistanceWeightedSampling(5)
    if hybridized:
        sampling.hybridize(static_alloc=True, static_shape=True)
    for n in (20, 70, 10):
        x = nd.array(unit_rows(n, 16, seed=n))
        found, expected = sampling(x), same(x)
        for place in (0, 1, 2, 4):
            np.testing.assert_array_equal(found[place].asnumpy(), expected[place].asnumpy())
        assert found[3].shape == expected[3].shape


@pytest.mark.slow
@pytest.mark.parametrize(
    "n, batch_k, hybridized, calls",
    [(40, 20, False, 50), (40, 20, True, 50), (6, 2, True, 200), (21, 7, False, 80)],
)
def test_random_negatives_are_uniform_over_the_other_classes(n, batch_k, hybridized, calls):
    x = unit_rows(n, 8)
    sampling = RandomSampling(batch_k)
    if hybridized:
        sampling.hybridize(static_alloc=True, static_shape=True)
    mx.random.seed(11)
    other_class = np.arange(n)[:, None] // batch_k != np.arange(n) // batch_k
    counts = count_draws(sampling, x, calls)
    assert_distributed(counts, other_class / (n - batch_k))


@pytest.mark.parametrize("uniform", [0.0, 1.0])
def test_the_ends_of_the_uniform_numbers_stay_within_the_other_classes(monkeypatch, uniform):
    monkeypatch.setattr(nd.random, "uniform_like", lambda like: nd.ones_like(like) * uniform)
    rows = drawn_rows(RandomSampling(5), unit_rows(20, 8))
    assert (rows // 5 != np.arange(20)[:, None] // 5).all()


def naive_semi_hard(x, batch_k):
    """FaceNet's rule, anchor by anchor and positive by positive."""
    n = len(x)
    distance = np.linalg.norm(x[:, None].astype(np.float64) - x, axis=2)
    rows = []
    for anchor in range(n):
        own = range(anchor // batch_k * batch_k, (anchor // batch_k + 1) * batch_k)
        negatives = [row for row in range(n) if row not in own]
        for positive in own:
            if positive == anchor:
                continue
            farther = [r for r in negatives if distance[anchor, r] > distance[anchor, positive]]
            if farther:
                rows.append(min(farther, key=lambda r: distance[anchor, r]))
            else:
                rows.append(max(negatives, key=lambda r: distance[anchor, r]))
    return np.reshape(rows, (n, batch_k - 1))


@pytest.mark.parametrize("hybridized", [False, True])
@pytest.mark.parametrize("d", [2, 16, 512])
@pytest.mark.parametrize("n, batch_k", [(20, 5), (6, 2), (70, 5)])
def test_semi_hard_negatives_follow_the_rule(n, batch_k, d, hybridized):
    x = unit_rows(n, d, seed=n + d)
    sampling = SemiHardSampling(batch_k)
    if hybridized:
        sampling.hybridize(static_alloc=True, static_shape=True)
    np.testing.assert_array_equal(drawn_rows(sampling, x), naive_semi_hard(x, batch_k))


def test_without_a_semi_hard_negative_it_is_the_farthest():
    """The positive lies opposite the anchor: all negatives are nearer."""
    angle = np.deg2rad([0, 180, 30, 60])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    assert drawn_rows(SemiHardSampling(2), x)[:2].ravel().tolist() == [3, 2]


@pytest.mark.parametrize("hybridized", [False, True])
@pytest.mark.parametrize("d", [2, 16, 512])
@pytest.mark.parametrize("n, batch_k", [(20, 5), (6, 2), (70, 5)])
def test_hard_negatives_are_the_nearest(n, batch_k, d, hybridized):
    x = unit_rows(n, d, seed=n + d)
    sampling = HardSampling(batch_k)
    if hybridized:
        sampling.hybridize(static_alloc=True, static_shape=True)
    distance = np.linalg.norm(x[:, None].astype(np.float64) - x, axis=2)
    own = np.arange(n)[:, None] // batch_k == np.arange(n) // batch_k
    nearest = np.where(own, np.inf, distance).argmin(axis=1)
    expected = np.repeat(nearest[:, None], batch_k - 1, axis=1)
    np.testing.assert_array_equal(drawn_rows(sampling, x), expected)


@pytest.mark.parametrize("kind", OTHERS)
def test_no_gradient_flows_through_the_choice_of_other_samplings(kind):
    x = unit_rows(20, 8)
    data = nd.array(x)
    data.attach_grad()
    weights = np.random.default_rng(5).normal(size=(80, 8)).astype(np.float32)
    with autograd.record():
        negatives = kind(5)(data)[3]
        total = (negatives * nd.array(weights)).sum()
    total.backward()
    row_of = {row.tobytes(): number for number, row in enumerate(x)}
    expected = np.zeros_like(x)
    np.add.at(expected, [row_of[row.tobytes()] for row in negatives.asnumpy()], weights)
    np.testing.assert_allclose(data.grad.asnumpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", OTHERS)
def test_near_equal_rows_are_sampled_from_other_classes(kind):
    """Rounding makes their squared distances negative."""
    x = np.repeat(unit_rows(1, 128), 12, axis=0)
    x += np.random.default_rng(1).normal(scale=1e-7, size=x.shape).astype(np.float32)
    rows = drawn_rows(kind(3), x)
    assert (rows // 3 != np.arange(12)[:, None] // 3).all()


# What the paper promises: figure 4 and section 4.1, where points lie anywhere on the sphere


@pytest.fixture(scope="module", params=[16, 128, 1024])
def sphere(request):
    """Batches of random points on the sphere: (batches, n, d)."""
    rng = np.random.default_rng(request.param)
    x = rng.standard_normal((60, 200, request.param), np.float32)
    return x / np.linalg.norm(x, axis=2, keepdims=True)


def distances_to_negatives(sampling, x):
    """Distances to the sampled negatives within one batch: (n * (batch_k - 1),)."""
    _, anchors, _, negatives, _ = sampling(nd.array(x))
    return np.linalg.norm(anchors.asnumpy() - negatives.asnumpy(), axis=1)


def distances_in_all(sampling, sphere):
    mx.random.seed(sphere.shape[2])
    return np.concatenate([distances_to_negatives(sampling, x) for x in sphere])


def cumulated_density(d):
    """The integral of q(D) of the paper's section 4 from 0 to D, on a fine grid."""
    grid = np.linspace(0, 2, 20001)[1:-1]
    log_density = (d - 2) * np.log(grid) + (d - 3) / 2 * np.log1p(-(grid**2) / 4)
    cumulated = np.cumsum(np.exp(log_density - log_density.max()))
    return grid, cumulated / cumulated[-1]


@pytest.mark.slow
def test_random_negatives_have_the_spheres_density(sphere):
    sampled = distances_in_all(RandomSampling(2), sphere)
    grid, cumulated = cumulated_density(sphere.shape[2])
    # Pairs that share a point are not quite independent: the bar allows for half as many.
    p_value = stats.kstest(sampled[::2], lambda at: np.interp(at, grid, cumulated)).pvalue
    assert p_value > 1e-3


@pytest.mark.slow
def test_the_hardest_negative_is_the_least_of_all_distances(sphere):
    """The nearest of m points has the distribution 1 - (1 - Q)^m."""
    _, n, d = sphere.shape
    sampled = distances_in_all(HardSampling(2), sphere)
    grid, cumulated = cumulated_density(d)
    nearest = 1 - (1 - cumulated) ** (n - 2)
    # Two points may be each other's nearest; of few anchors a batch, hardly any are.
    p_value = stats.kstest(sampled[::40], lambda at: np.interp(at, grid, nearest)).pvalue
    assert p_value > 1e-3


@pytest.mark.slow
def test_the_semi_hard_negative_is_the_first_beyond_the_positive(sphere):
    """The positive's rank among all others is uniform, the negative's the next: the same law."""
    _, n, d = sphere.shape
    sampled = distances_in_all(SemiHardSampling(2), sphere)
    grid, cumulated = cumulated_density(d)
    # Of n - 1 others in order, the negative is number 2 to n - 1 with equal chances, or once more
    # the last: a positive that is the farthest has but the farthest negative, number n - 2. All
    # numbers with equal chances are simply all others; here n - 2 stands in the place of 1.
    first, last = (stats.beta.cdf(cumulated, rank, n - rank) for rank in (1, n - 2))
    expected = cumulated + (last - first) / (n - 1)
    p_value = stats.kstest(sampled[::10], lambda at: np.interp(at, grid, expected)).pvalue
    assert p_value > 1e-3


@pytest.mark.slow
def test_distance_weighted_negatives_are_equally_often_at_all_distances_that_occur(sphere):
    """Section 4.1: the batch's own distances, each weighted by 1/q, the least floored at 0.5."""
    d = sphere.shape[2]
    mx.random.seed(d)
    sampling = DistanceWeightedSampling(10)
    sampled, expected = np.zeros(140), np.zeros(140)
    for x in sphere[:10]:
        exact = x.astype(np.float64)
        distance = np.sqrt(np.maximum(0, 2 - 2 * exact @ exact.T))
        weights = naive_weights(distance, d, 10)
        expected += np.histogram(distance, 140, (0, 1.4), weights=weights)[0]
        sampled += np.histogram(distances_to_negatives(sampling, x), 140, (0, 1.4))[0]
    assert smallest_p_value([sampled], [expected]) > 1e-3


def naive_weights(distance, d, batch_k):
    """`naive_probabilities` of many rows at once, from their distances."""
    n = len(distance)
    floored = np.maximum(distance, 0.5)
    log_weights = (2 - d) * np.log(floored) - (d - 3) / 2 * np.log(1 - floored**2 / 4)
    other_class = np.arange(n)[:, None] // batch_k != np.arange(n) // batch_k
    candidate = other_class & (distance < 1.4)
    alone = ~candidate.any(axis=1, keepdims=True)
    log_weights = np.where(alone, 0.0, log_weights)
    log_weights = np.where(np.where(alone, other_class, candidate), log_weights, -np.inf)
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
