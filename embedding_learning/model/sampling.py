"""Samplings of the negatives of each anchor: one HybridBlock per method of the paper.

A batch has ``batch_k`` consecutive images of each class, so an image's class within the batch is
its row divided by ``batch_k``. Only a memory of earlier batches needs labels.
"""

from __future__ import annotations

import math
from typing import Any

from mxnet import nd
from mxnet.gluon import HybridBlock

# Below this, d² of equal rows and 1 - d²/4 of opposite ones are rounding errors. Their logarithms
# must stay finite.
_SMALLEST_SQUARE = 1e-8
# A weight becomes 0 when this is subtracted from its logarithm.
_NEVER = 1e30
# Minus any squared distance on the unit sphere, it is larger than all squared distances.
_AFTER_ALL = 9.0
# A uniform number of exactly 0 would select a column before the first candidate.
_SMALLEST_UNIFORM = 1e-12


class Sampling(HybridBlock):
    """Turns a batch of embeddings into triplets; a subclass selects the negatives.

    Inputs and outputs are those of :class:`DistanceWeightedSampling`.

    Parameters
    ----------
    batch_k : int
        Images per class; each anchor gets ``batch_k - 1`` negatives, one for each of its positives.
    """

    def __init__(self, batch_k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._batch_k = batch_k

    def forward(self, x: Any, *memory: Any) -> tuple[Any, ...]:
        # In another block's graph, x is a symbol without a known size.
        if isinstance(x, nd.NDArray) and (
            x.shape[0] % self._batch_k or x.shape[0] < 2 * self._batch_k
        ):
            raise ValueError(
                f"{x.shape[0]} rows are not two or more whole classes of {self._batch_k} rows"
            )
        return super().forward(x, *memory)

    def hybrid_forward(self, F: Any, x: Any, *memory: Any) -> tuple[Any, ...]:
        row, row_class = self._rows(F, x)
        anchor_rows = F.repeat(row, repeats=self._batch_k - 1)
        positive_rows = self._positive_rows(F, row, row_class)
        anchors, candidates, excluded = F.stop_gradient(x), x, same_class(F, row_class)
        fixed = anchors
        if memory:
            remembered, classes, labels = memory
            candidates = F.concat(x, F.stop_gradient(remembered), dim=0)
            fixed = F.stop_gradient(candidates)
            excluded = F.concat(excluded, _excluded(F, labels, classes), dim=1)
        negative_rows = self._negative_rows(F, anchors, fixed, excluded, positive_rows)
        return (
            anchor_rows,
            F.take(x, anchor_rows),
            F.take(x, F.reshape(positive_rows, (-1,))),
            F.take(candidates, F.reshape(F.stop_gradient(negative_rows), (-1,))),
            x,
        )

    def _negative_rows(
        self, F: Any, x: Any, candidates: Any, excluded: Any, positive_rows: Any
    ) -> Any:
        """Selects the rows of `candidates` (c, d) that are the negatives: (n, batch_k - 1).

        The first n candidates are the anchors x (n, d). `excluded` (n, c) is 1 where a candidate
        is no negative of the anchor, else 0. `positive_rows` are the rows of the anchors'
        positives; the result has their shape: one negative for each positive.
        """
        raise NotImplementedError

    def _rows(self, F: Any, x: Any) -> tuple[Any, Any]:
        """Returns the row numbers and the class of each row within the batch, both (n,)."""
        row = F.contrib.arange_like(F.stop_gradient(x), axis=0)
        # With the half, the quotient is never near a whole number, so rounding does not matter.
        return row, F.floor((row + 0.5) / self._batch_k)

    def _positive_rows(self, F: Any, row: Any, row_class: Any) -> Any:
        """Returns the other rows of each row's class, in order: (n, batch_k - 1)."""
        first_of_class = row_class * self._batch_k
        position = F.expand_dims(row - first_of_class, axis=1)
        other = F.expand_dims(F.arange(0, self._batch_k - 1), axis=0)
        # The numbers of the other images of the class skip the anchor's own position.
        other = F.broadcast_add(F.broadcast_greater_equal(other, position), other)
        return F.broadcast_add(other, F.expand_dims(first_of_class, axis=1))

    @property
    def cutoffs(self) -> tuple[float, ...]:
        """The distances at which weights are cut off, which a run records; empty by default."""
        return ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_k={self._batch_k})"


class RandomSampling(Sampling):
    """Samples negatives uniformly from the other classes, with replacement.

    Parameters, input and outputs are those of :class:`DistanceWeightedSampling`.
    """

    def _negative_rows(
        self, F: Any, x: Any, candidates: Any, excluded: Any, positive_rows: Any
    ) -> Any:
        # The number of the negative among the anchor's negatives; a uniform number may round to 1.
        passed = F.cumsum(1.0 - excluded, axis=1)
        count = F.slice_axis(passed, axis=1, begin=-1, end=None)
        uniform = F.random.uniform_like(positive_rows)
        sampled = F.broadcast_minimum(F.floor(F.broadcast_mul(uniform, count)), count - 1.0)
        return _count_columns(
            F, F.broadcast_lesser_equal(F.expand_dims(passed, axis=1), F.expand_dims(sampled, 2))
        )


class SemiHardSampling(Sampling):
    """Selects the nearest negative that is farther from the anchor than the positive is.

    This is FaceNet's rule (Schroff et al., 2015, section 3.2) within the batch. If no negative is
    farther than the positive, the farthest negative is selected.

    Parameters, input and outputs are those of :class:`DistanceWeightedSampling`.
    """

    def _negative_rows(
        self, F: Any, x: Any, candidates: Any, excluded: Any, positive_rows: Any
    ) -> Any:
        # From the anchor to all rows, once for each of its positives: (n, batch_k - 1, c).
        squared = F.expand_dims(pairwise_squared_distances(F, x, candidates), axis=1)
        squared = F.repeat(squared, repeats=self._batch_k - 1, axis=1)
        is_farther = F.broadcast_greater(
            squared, F.pick(squared, positive_rows, axis=2, keepdims=True)
        )
        # Those that are not farther are ranked after all others, the farthest of them first.
        rank = F.where(is_farther, squared, _AFTER_ALL - squared)
        never = _NEVER * F.expand_dims(excluded, axis=1)
        return F.argmin(F.broadcast_add(rank, never), axis=2)


class HardSampling(Sampling):
    """Selects the nearest negative of the batch, the same for all positives of an anchor.

    Parameters, input and outputs are those of :class:`DistanceWeightedSampling`.
    """

    def _negative_rows(
        self, F: Any, x: Any, candidates: Any, excluded: Any, positive_rows: Any
    ) -> Any:
        squared = pairwise_squared_distances(F, x, candidates)
        nearest = F.argmin(squared + _NEVER * excluded, axis=1)
        return F.broadcast_add(F.expand_dims(nearest, axis=1), F.zeros_like(positive_rows))


class DistanceWeightedSampling(Sampling):
    r"""Samples negatives with a probability inverse to the density of their distance.

    Section 4 of Wu et al. (2017): distances between random points of the unit sphere in d
    dimensions have the density :math:`q(D) \propto D^{d-2} (1 - D^2/4)^{(d-3)/2}`. A negative is
    sampled with a probability proportional to :math:`\min(\lambda, 1/q(D))`, so that all distances
    are equally frequent; a lower limit of D, `cutoff`, is that :math:`\lambda`. Weights are
    logarithms relative to the largest candidate of each row, so that they neither overflow nor
    vanish at any dimension.

    Negatives at `nonzero_loss_cutoff` and beyond are not sampled: their margin-based loss is zero.
    The original example has this limit, and the paper's formula has not. Without it, the weight at
    `cutoff` bounds those of the largest distances too. If an anchor has no candidate, its negatives
    are sampled uniformly from the other classes.

    Parameters
    ----------
    batch_k : int
        Images per class; each anchor gets ``batch_k - 1`` negatives, sampled with replacement, one
        for each of its positives.
    cutoff : float
        A smaller distance has the weight of this one.
    nonzero_loss_cutoff : float, optional
        From this distance on, a negative is never sampled. A constant: it does not depend on beta.
        None: there is no such distance.
    normalize_weights : bool
        Scale the log weights of the batch linearly to [0, 1] first, as the PyTorch port's
        ``--normalize-weights`` does. Not in the paper; it makes the sampling nearly uniform.

    Inputs:
        - **x** (n, d): L2-normalized embeddings, n a multiple of `batch_k` and at least
          ``2 * batch_k`` (a single class has no negatives), float32.
        - **memory** (m, d), **memory_labels** (m,), **labels** (n,), all three or none: embeddings
          of earlier batches, among which negatives are sampled too, their classes (below 0: the
          row is empty), and the classes of x. No gradient flows to the memory.

    Outputs, with m = n * (batch_k - 1):
        - **a_indices** (m,): row of each anchor, ascending; float32 as all index arrays here.
        - **anchors**, **positives**, **negatives** (m, d): rows of x. The positives of an anchor
          are all other images of its class, in order.
        - **x** (n, d): the input.

    No gradient flows through the selection of rows.
    """

    def __init__(
        self,
        batch_k: int,
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float | None = 1.4,
        normalize_weights: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_k, **kwargs)
        self.cutoff = cutoff
        self._nonzero_loss_cutoff = nonzero_loss_cutoff
        self._normalize_weights = normalize_weights

    def _negative_rows(
        self, F: Any, x: Any, candidates: Any, excluded: Any, positive_rows: Any
    ) -> Any:
        return self._sample(F, self._weights(F, x, candidates, excluded), positive_rows)

    @property
    def cutoffs(self) -> tuple[float, ...]:
        """`cutoff` and `nonzero_loss_cutoff`: equal weights up to one, none from the other on."""
        upper = self._nonzero_loss_cutoff
        return (self.cutoff,) if upper is None else (self.cutoff, upper)

    def probabilities(self, x: nd.NDArray) -> nd.NDArray:
        """Returns each anchor's probabilities of negatives: x (n, d) -> (n, n), rows sum to 1."""
        with x.context:
            weights = self._weights(nd, x, x, same_class(nd, self._rows(nd, x)[1]))
            return nd.broadcast_div(weights, nd.sum(weights, axis=1, keepdims=True))

    def _weights(self, F: Any, x: Any, candidates: Any, excluded: Any) -> Any:
        """Returns the weights of each row's negatives, (n, c); rows need not sum to 1."""
        squared_distance = pairwise_squared_distances(F, x, candidates)
        log_weights = self._log_inverse_density(F, squared_distance, x)
        other_class = 1.0 - excluded
        candidate = other_class
        if self._nonzero_loss_cutoff is not None:
            candidate = (squared_distance < self._nonzero_loss_cutoff**2) * other_class
        # The softmax subtracts each row's own maximum. In a row without a candidate all logarithms
        # are equal, and so are the weights; the product keeps those of the other classes.
        log_weights = F.where(candidate, log_weights, candidate - _NEVER)
        return F.softmax(log_weights, axis=1) * other_class

    def _log_inverse_density(self, F: Any, squared_distance: Any, x: Any) -> Any:
        """Returns log 1/q(D) up to a constant, (n, c), with the cutoff as lower limit of D."""
        if self._normalize_weights:
            row, column = (F.contrib.arange_like(squared_distance, axis=axis) for axis in (0, 1))
            diagonal = F.broadcast_equal(F.expand_dims(row, axis=1), F.expand_dims(column, axis=0))
            squared_distance = F.where(diagonal, F.ones_like(diagonal), squared_distance)
        smallest = max(self.cutoff**2, _SMALLEST_SQUARE)
        squared = F.maximum(squared_distance, smallest)
        chord_term = F.maximum(1.0 - 0.25 * squared, _SMALLEST_SQUARE)
        dimension = F.cast(F.slice_axis(F.shape_array(x), axis=0, begin=1, end=2), "float32")
        # Halves of the exponents, since the logarithm is taken of the squared distance.
        exponents = (2.0 - dimension) / 2.0, (3.0 - dimension) / 2.0
        log_weights = F.broadcast_mul(F.log(squared), exponents[0]) + F.broadcast_mul(
            F.log(chord_term), exponents[1]
        )
        if self._nonzero_loss_cutoff is None:
            # The paper's lambda: the weight at the cutoff is the largest, at both ends.
            largest = math.log(smallest) * exponents[0]
            largest = largest + math.log(1.0 - 0.25 * smallest) * exponents[1]
            log_weights = F.broadcast_minimum(log_weights, F.expand_dims(largest, axis=0))
        if self._normalize_weights:
            lowest, highest = F.min(log_weights), F.max(log_weights)
            log_weights = F.broadcast_div(
                F.broadcast_sub(log_weights, lowest), highest - lowest + 1e-8
            )
        return log_weights

    def _sample(self, F: Any, weights: Any, like: Any) -> Any:
        """Samples rows by inverting the cumulative weights: (n, batch_k - 1), as `like`."""
        cumulative = F.cumsum(weights, axis=1)
        total = F.slice_axis(cumulative, axis=1, begin=-1, end=None)
        uniform = F.maximum(F.random.uniform_like(like), _SMALLEST_UNIFORM)
        threshold = F.broadcast_mul(uniform, total)
        # The sampled column is the first whose cumulative weight reaches the threshold. A column of
        # weight 0 has the sum of the column before it, and so is never the first.
        below = F.broadcast_lesser(
            F.expand_dims(cumulative, axis=1), F.expand_dims(threshold, axis=2)
        )
        return _count_columns(F, below)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(batch_k={self._batch_k}, cutoff={self.cutoff}, "
            f"nonzero_loss_cutoff={self._nonzero_loss_cutoff})"
        )


def same_class(F: Any, row_class: Any) -> Any:
    """Returns 1 where two rows have the same class, else 0: (n,) -> (n, n)."""
    return F.broadcast_equal(F.expand_dims(row_class, axis=1), F.expand_dims(row_class, axis=0))


def _excluded(F: Any, labels: Any, memory_labels: Any) -> Any:
    """Returns 1 where a memory row is empty or of the anchor's class: (n,), (m,) -> (n, m)."""
    labels, memory_labels = F.expand_dims(labels, axis=1), F.expand_dims(memory_labels, axis=0)
    same = F.broadcast_equal(labels, memory_labels)
    return F.broadcast_maximum(same, memory_labels < 0)


def _count_columns(F: Any, mask: Any) -> Any:
    """Returns how many numbers of the last axis are 1, of the others being 0: (..., c) -> (...)."""
    # A product with ones takes a sixth of the time of a sum.
    return F.dot(mask, F.ones_like(F.contrib.arange_like(mask, axis=-1)))


def pairwise_squared_distances(F: Any, x: Any, y: Any) -> Any:
    """Returns the squared distances of all rows of x to all of y: (n, d), (c, d) -> (n, c).

    Rounding can make those of nearly equal rows slightly negative.
    """
    square = F.sum(F.square(x), axis=1, keepdims=True)
    one = F.ones_like(square)
    square_of_y, one_of_y = square, one
    if y is not x:
        square_of_y = F.sum(F.square(y), axis=1, keepdims=True)
        one_of_y = F.ones_like(square_of_y)
    # One product, |x|² + |y|² - 2xy, instead of three passes over the matrix.
    return F.dot(
        F.concat(-2.0 * x, square, one), F.concat(y, one_of_y, square_of_y), transpose_b=True
    )
