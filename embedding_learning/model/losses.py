"""Losses on (anchor, positive, negative) triplets: one HybridBlock per method of the paper."""

from __future__ import annotations

import numbers
from typing import Any

from mxnet import gluon, nd
from mxnet.gluon import HybridBlock

# Keeps the square root's gradient finite for equal rows.
_DISTANCE_EPSILON = 1e-8


class TripletLossBase(HybridBlock):
    """The mean of the terms above zero; 0 if there are none. A subclass computes the terms.

    Terms of zero have no gradient. Counted in the mean, they would make the steps smaller the more
    the network has learned. The original does the same with the margin-based loss.
    """

    def __init__(self, margin: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._margin = margin

    def hybrid_forward(self, F: Any, anchors: Any, positives: Any, negatives: Any) -> Any:
        return _mean_of_active(F, self._terms(F, anchors, positives, negatives))

    def terms(
        self, anchors: nd.NDArray, positives: nd.NDArray, negatives: nd.NDArray
    ) -> list[nd.NDArray]:
        """Returns the terms of the loss, (m,) each: of each kind of pairs, or of the triplets."""
        with anchors.context:
            return self._terms(nd, anchors, positives, negatives)

    def _terms(self, F: Any, anchors: Any, positives: Any, negatives: Any) -> list[Any]:
        """Computes the terms, (m,) each, of anchors, positives and negatives (m, d)."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}(margin={self._margin})"


class ContrastiveLoss(TripletLossBase):
    r"""Contrastive loss (Hadsell et al., 2006), section 3 of Wu et al. (2017).

    :math:`D^2` of a positive pair and :math:`[\alpha - D]_+^2` of a negative one; the sum divided
    by the number of pairs whose loss is above zero.

    Parameters
    ----------
    margin : float
        alpha: the distance from which the loss of a negative pair is 0.

    Inputs, for m triplets of d dimensions:
        - **anchors**, **positives**, **negatives** (m, d).

    Output: the loss, (1,).
    """

    def __init__(self, margin: float = 1.0, **kwargs: Any) -> None:
        super().__init__(margin, **kwargs)

    def _terms(self, F: Any, anchors: Any, positives: Any, negatives: Any) -> list[Any]:
        shortfall = F.maximum(self._margin - rowwise_distance(F, anchors, negatives), 0.0)
        return [rowwise_squared_distance(F, anchors, positives), F.square(shortfall)]


class TripletLoss(TripletLossBase):
    r"""Triplet loss (Schroff et al., 2015), section 3 of Wu et al. (2017).

    :math:`[D_{ap}^2 - D_{an}^2 + \alpha]_+` of each triplet; the sum divided by the number of
    triplets whose loss is above zero.

    Parameters
    ----------
    margin : float
        alpha: by how much the negative's squared distance must exceed the positive's.

    Inputs, for m triplets of d dimensions:
        - **anchors**, **positives**, **negatives** (m, d).

    Output: the loss, (1,).
    """

    def __init__(self, margin: float = 0.2, **kwargs: Any) -> None:
        super().__init__(margin, **kwargs)

    def _terms(self, F: Any, anchors: Any, positives: Any, negatives: Any) -> list[Any]:
        positive = rowwise_squared_distance(F, anchors, positives)
        negative = rowwise_squared_distance(F, anchors, negatives)
        return [F.maximum(positive - negative + self._margin, 0.0)]


class EuclideanTripletLoss(TripletLossBase):
    r"""Triplet loss of plain distances, section 4.2 of Wu et al. (2017).

    :math:`[D_{ap} - D_{an} + \alpha]_+` of each triplet; otherwise as :class:`TripletLoss`. The
    length of its gradient does not depend on the distance of a negative, so it does not vanish for
    near ones.
    """

    def __init__(self, margin: float = 0.2, **kwargs: Any) -> None:
        super().__init__(margin, **kwargs)

    def _terms(self, F: Any, anchors: Any, positives: Any, negatives: Any) -> list[Any]:
        positive = rowwise_distance(F, anchors, positives)
        negative = rowwise_distance(F, anchors, negatives)
        return [F.maximum(positive - negative + self._margin, 0.0)]


class MarginLoss(HybridBlock):
    r"""Margin-based loss, section 4.2 of Wu et al. (2017).

    :math:`[\alpha + y (D - \beta)]_+` summed over positive pairs (y = 1) and negative pairs
    (y = -1), plus :math:`\nu \sum \beta` over the anchors, divided by the number of pairs whose
    loss is above zero (the two pairs of a triplet are counted separately). With no such pair, loss
    and gradient are 0.

    :math:`\beta`, the boundary between positive and negative distances, is a constant or belongs to
    the anchor i (equation 7): :math:`\beta(i) = \beta_0 + \beta^{class}_{c(i)} + \beta^{img}_i`.
    The learned numbers of all classes and images form one array `beta`, and `labels` are the rows
    of it that are summed for each anchor.

    Parameters
    ----------
    margin : float
        alpha: how far from beta a distance must be for the pair's loss to be 0.
    nu : float
        Regularization of a learned beta; a constant beta is not regularized.

    Inputs, for m triplets of d dimensions:
        - **anchors**, **positives**, **negatives** (m, d).
        - **beta**: with `labels`, the terms of beta (b,), such as one for each class, as an NDArray
          or a Parameter. Without, one constant, as a number or an NDArray of one element.
        - **labels** (m,) or (m, j): the row in beta of each anchor's term, such as its class, or
          the rows of its j terms; or None.

    Output: the loss, (1,).
    """

    def __init__(self, margin: float = 0.2, nu: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._margin = margin
        self._nu = nu

    def forward(
        self,
        anchors: Any,
        positives: Any,
        negatives: Any,
        beta: nd.NDArray | gluon.Parameter | float,
        labels: nd.NDArray | None = None,
    ) -> Any:
        beta = _on_device_of(anchors, beta)
        return super().forward(anchors, positives, negatives, beta, labels)

    def hybrid_forward(
        self, F: Any, anchors: Any, positives: Any, negatives: Any, beta: Any, labels: Any = None
    ) -> Any:
        regularization = 0.0
        if labels is not None:
            beta = _sum_beta_terms(F, beta, labels)
            regularization = self._nu * F.sum(beta)
        terms = self._terms(F, anchors, positives, negatives, beta)
        return _mean_of_active(F, terms, regularization)

    def terms(
        self,
        anchors: nd.NDArray,
        positives: nd.NDArray,
        negatives: nd.NDArray,
        beta: nd.NDArray | gluon.Parameter | float,
        labels: nd.NDArray | None = None,
    ) -> list[nd.NDArray]:
        """Returns the loss of each positive pair (m,) and of each negative pair (m,)."""
        with anchors.context:
            beta = _on_device_of(anchors, beta)
            beta = beta if labels is None else _sum_beta_terms(nd, beta, labels)
            return self._terms(nd, anchors, positives, negatives, beta)

    def _terms(self, F: Any, anchors: Any, positives: Any, negatives: Any, beta: Any) -> list[Any]:
        positive = F.broadcast_sub(rowwise_distance(F, anchors, positives), beta)
        negative = F.broadcast_sub(beta, rowwise_distance(F, anchors, negatives))
        return [F.maximum(term + self._margin, 0.0) for term in (positive, negative)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(margin={self._margin}, nu={self._nu})"


def _sum_beta_terms(F: Any, beta: Any, labels: Any) -> Any:
    """Returns the beta of each anchor (equation 7): (b,), labels (m,) or (m, j) -> (m,)."""
    return F.sum(F.take(beta, F.reshape(labels, (0, -1))), axis=1)


def _mean_of_active(F: Any, terms: list[Any], regularization: Any = 0.0) -> Any:
    """Returns terms and regularization, summed and divided by the number of terms above 0: (1,)."""
    active = F.stop_gradient(F.sum(F.add_n(*(term > 0.0 for term in terms))))
    total = F.sum(F.add_n(*terms)) + regularization
    return total * (active > 0.0) / F.maximum(active, 1.0)


def _on_device_of(anchors: nd.NDArray, beta: nd.NDArray | gluon.Parameter | float) -> nd.NDArray:
    if isinstance(beta, gluon.Parameter):
        return beta.data(anchors.context)
    if isinstance(beta, numbers.Real):
        return nd.full((1,), beta, ctx=anchors.context)
    return beta


def rowwise_distance(F: Any, x: Any, y: Any) -> Any:
    """Returns the Euclidean distance of each pair of rows: (m, d), (m, d) -> (m,)."""
    return F.sqrt(rowwise_squared_distance(F, x, y) + _DISTANCE_EPSILON)


def rowwise_squared_distance(F: Any, x: Any, y: Any) -> Any:
    """Returns the squared Euclidean distance of each pair of rows: (m, d), (m, d) -> (m,)."""
    ones = F.reshape(F.ones_like(F.slice_axis(x, axis=0, begin=0, end=1)), (-1,))
    # A product with ones takes a sixth of the time of a sum along an axis.
    return F.dot(F.square(x - y), F.stop_gradient(ones))
