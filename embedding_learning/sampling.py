"""Which negatives an anchor is compared with: one HybridBlock per method of the paper.

Batches hold ``batch_k`` consecutive images of each class, so an image's class within the batch
is its row number divided by ``batch_k``; no labels are needed.
"""

from __future__ import annotations

from typing import Any

from mxnet import nd
from mxnet.gluon import HybridBlock

# Below this, 1 - d²/4 is rounding noise of antipodal rows (d = 2), where the density q(d) is 0.
_SMALLEST_CHORD_TERM = 1e-8
# A uniform number of exactly 0 would fall before the first candidate.
_SMALLEST_UNIFORM = 1e-12


class DistanceWeightedSampling(HybridBlock):
    r"""Draws negatives with probability inverse to the density of their distance.

    Section 4 of Wu et al. (2017): distances between random points of the unit sphere in d
    dimensions have the density :math:`q(D) \propto D^{d-2} (1 - D^2/4)^{(d-3)/2}`. A negative is
    drawn with probability proportional to :math:`\min(\lambda, 1/q(D))`, so that every distance is
    seen equally often; flooring D at `cutoff` is that :math:`\lambda`. Weights are kept as
    logarithms relative to each row's own largest candidate, so that they neither overflow nor
    vanish at any dimension.

    Negatives at `nonzero_loss_cutoff` and beyond are not drawn: their margin-based loss is zero.
    A row in which no candidate is left draws uniformly from the other classes.

    Parameters
    ----------
    batch_k : int
        Images per class; each anchor draws ``batch_k - 1`` negatives with replacement, one for
        each of its positives.
    cutoff : float
        Distances below this are weighted as if they were this large.
    nonzero_loss_cutoff : float
        Distance from which a negative is never drawn. A constant: it does not follow beta.
    normalize_weights : bool
        Scale the log weights of the batch linearly to [0, 1] first, as the PyTorch port's
        ``--normalize-weights`` does. Not in the paper; it makes the draws nearly uniform.

    Inputs:
        - **x** (n, d): L2-normalised embeddings, n a multiple of `batch_k` and at least
          ``2 * batch_k`` (with a single class there is no negative to draw), float32.

    Outputs, with m = n * (batch_k - 1):
        - **a_indices** (m,): row of each anchor, ascending; float32 as all index arrays here.
        - **anchors**, **positives**, **negatives** (m, d): rows of x. The positives of an anchor
          are all other images of its class, in order.
        - **x** (n, d): the input.

    No gradient flows through the choice of indices.
    """

    def __init__(
        self,
        batch_k: int,
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float = 1.4,
        normalize_weights: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._batch_k = batch_k
        self._cutoff = cutoff
        self._nonzero_loss_cutoff = nonzero_loss_cutoff
        self._normalize_weights = normalize_weights

    def hybrid_forward(self, F: Any, x: Any) -> tuple[Any, ...]:
        anchor_indices, positive_indices = self._pairs(F, x)
        negative_indices = self._draw(F, self._weights(F, x), like=positive_indices)
        return (
            F.reshape(anchor_indices, (-1,)),
            F.take(x, F.reshape(anchor_indices, (-1,))),
            F.take(x, F.reshape(positive_indices, (-1,))),
            F.take(x, F.reshape(negative_indices, (-1,))),
            x,
        )

    def probabilities(self, x: nd.NDArray) -> nd.NDArray:
        """The distributions that negatives are drawn from: x (n, d) -> (n, n), rows sum to 1."""
        with x.context:
            weights = self._weights(nd, x)
            return nd.broadcast_div(weights, nd.sum(weights, axis=1, keepdims=True))

    def _row_class(self, F: Any, x: Any) -> tuple[Any, Any]:
        """Row numbers and the class each row belongs to within the batch, both (n,)."""
        row = F.contrib.arange_like(F.stop_gradient(x), axis=0)
        # The half keeps the division away from whole numbers, whatever its rounding.
        return row, F.floor((row + 0.5) / self._batch_k)

    def _pairs(self, F: Any, x: Any) -> tuple[Any, Any]:
        """Rows of anchors and positives, both (n, batch_k - 1)."""
        row, row_class = self._row_class(F, x)
        row = F.expand_dims(row, axis=1)
        first_of_class = F.expand_dims(row_class * self._batch_k, axis=1)
        other = F.expand_dims(F.arange(0, self._batch_k - 1), axis=0)
        # Counting over the other images of the class skips the anchor's own place.
        skips_anchor = F.broadcast_greater_equal(other, row - first_of_class)
        positive = F.broadcast_add(first_of_class, F.broadcast_add(skips_anchor, other))
        anchor = F.broadcast_add(row, F.zeros_like(positive))
        return anchor, positive

    def _weights(self, F: Any, x: Any) -> Any:
        """Unnormalised sampling weights (n, n): row i's negatives; the largest of a row is 1."""
        x = F.stop_gradient(x)
        row, row_class = self._row_class(F, x)
        same_class = F.broadcast_equal(
            F.expand_dims(row_class, axis=1), F.expand_dims(row_class, axis=0)
        )
        squared_distance = _squared_distances(F, x)
        near = squared_distance < self._nonzero_loss_cutoff**2
        log_weights = self._log_inverse_density(F, squared_distance, row, x)

        candidate = F.broadcast_mul(near, 1.0 - same_class)
        lowest = F.ones_like(log_weights) * -1e30
        largest = F.max(F.where(candidate, log_weights, lowest), axis=1, keepdims=True)
        weights = F.exp(F.where(candidate, F.broadcast_sub(log_weights, largest), lowest))

        any_candidate = F.broadcast_like(F.max(candidate, axis=1, keepdims=True), candidate)
        return F.where(any_candidate, weights, 1.0 - same_class)

    def _log_inverse_density(self, F: Any, squared_distance: Any, row: Any, x: Any) -> Any:
        """log 1/q(D) up to a constant, (n, n), with D floored at the cutoff."""
        if self._normalize_weights:
            diagonal = F.broadcast_equal(F.expand_dims(row, axis=1), F.expand_dims(row, axis=0))
            squared_distance = F.where(diagonal, F.ones_like(diagonal), squared_distance)
        squared = F.maximum(squared_distance, self._cutoff**2)
        dimension = F.cast(F.slice_axis(F.shape_array(x), axis=0, begin=1, end=2), "float32")
        # Halves of the exponents, since the logarithm is taken of the squared distance.
        log_weights = F.broadcast_mul(F.log(squared), (2.0 - dimension) / 2.0)
        chord_term = F.maximum(1.0 - 0.25 * squared, _SMALLEST_CHORD_TERM)
        log_weights = log_weights - F.broadcast_mul(F.log(chord_term), (dimension - 3.0) / 2.0)
        if self._normalize_weights:
            lowest, highest = F.min(log_weights), F.max(log_weights)
            log_weights = F.broadcast_div(
                F.broadcast_sub(log_weights, lowest), highest - lowest + 1e-8
            )
        return log_weights

    def _draw(self, F: Any, weights: Any, like: Any) -> Any:
        """Rows of negatives, (n, batch_k - 1) as `like`, by inverting the cumulative weights."""
        cumulative = F.cumsum(weights, axis=1)
        total = F.slice_axis(cumulative, axis=1, begin=-1, end=None)
        uniform = F.maximum(F.random.uniform_like(like), _SMALLEST_UNIFORM)
        threshold = F.broadcast_mul(uniform, total)
        # The drawn column is the first whose cumulative weight reaches the threshold. A column of
        # weight 0 repeats its predecessor's sum and so is never the first.
        below = F.broadcast_lesser(
            F.expand_dims(cumulative, axis=1), F.expand_dims(threshold, axis=2)
        )
        return F.stop_gradient(F.sum(below, axis=2))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(batch_k={self._batch_k}, cutoff={self._cutoff}, "
            f"nonzero_loss_cutoff={self._nonzero_loss_cutoff})"
        )


def _squared_distances(F: Any, x: Any) -> Any:
    """Squared Euclidean distances between all rows: x (n, d) -> (n, n), never negative."""
    square = F.sum(F.square(x), axis=1, keepdims=True)
    both = F.broadcast_add(square, F.transpose(square))
    # Rounding makes the difference of near-equal rows slightly negative.
    return F.maximum(both - 2.0 * F.dot(x, x, transpose_b=True), 0.0)
