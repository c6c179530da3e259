"""Losses on (anchor, positive, negative) triples: one HybridBlock per method of the paper."""

from __future__ import annotations

import numbers
from typing import Any

from mxnet import gluon, nd
from mxnet.gluon import HybridBlock

# Keeps the square root's gradient finite for equal rows.
_DISTANCE_EPSILON = 1e-8


class MarginLoss(HybridBlock):
    r"""Margin-based loss, section 4.2 of Wu et al. (2017).

    :math:`[\alpha + y (D - \beta)]_+` summed over positive pairs (y = 1) and negative pairs
    (y = -1), plus :math:`\nu \sum \beta` over the anchors, divided by the number of pairs whose
    loss is above zero (the positive and the negative pair of a triple are counted apart). With no
    such pair, loss and gradient are 0.

    Parameters
    ----------
    margin : float
        alpha: how far from the boundary beta a pair must lie to cost nothing.
    nu : float
        Regularisation of a learned beta; a constant beta is not regularised.

    Inputs, for m triples of d dimensions:
        - **anchors**, **positives**, **negatives** (m, d).
        - **beta**: with `labels`, one boundary per class, (C,), as an NDArray or a Parameter;
          without, one constant for all, a number or an NDArray of one element.
        - **labels** (m,): index into beta of each anchor's class, or None.

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
        regularisation = 0.0
        if labels is not None:
            beta = F.take(beta, labels)
            regularisation = self._nu * F.sum(beta)
        positive_loss, negative_loss = self._pair_losses(F, anchors, positives, negatives, beta)
        active = F.stop_gradient(F.sum((positive_loss > 0.0) + (negative_loss > 0.0)))
        total = F.sum(positive_loss + negative_loss) + regularisation
        return total * (active > 0.0) / F.maximum(active, 1.0)

    def pair_losses(
        self,
        anchors: nd.NDArray,
        positives: nd.NDArray,
        negatives: nd.NDArray,
        beta: nd.NDArray | gluon.Parameter | float,
        labels: nd.NDArray | None = None,
    ) -> tuple[nd.NDArray, nd.NDArray]:
        """The loss of each positive pair (m,) and of each negative pair (m,)."""
        with anchors.context:
            beta = _on_device_of(anchors, beta)
            beta = beta if labels is None else nd.take(beta, labels)
            return self._pair_losses(nd, anchors, positives, negatives, beta)

    def _pair_losses(
        self, F: Any, anchors: Any, positives: Any, negatives: Any, beta: Any
    ) -> tuple[Any, Any]:
        return (
            F.maximum(F.broadcast_sub(distances(F, anchors, positives), beta) + self._margin, 0.0),
            F.maximum(F.broadcast_sub(beta, distances(F, anchors, negatives)) + self._margin, 0.0),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(margin={self._margin}, nu={self._nu})"


def _on_device_of(anchors: nd.NDArray, beta: nd.NDArray | gluon.Parameter | float) -> nd.NDArray:
    if isinstance(beta, gluon.Parameter):
        return beta.data(anchors.context)
    if isinstance(beta, numbers.Real):
        return nd.full((1,), beta, ctx=anchors.context)
    return beta


def distances(F: Any, x: Any, y: Any) -> Any:
    """Euclidean distance row by row: (m, d), (m, d) -> (m,)."""
    ones = F.reshape(F.ones_like(F.slice_axis(x, axis=0, begin=0, end=1)), (-1,))
    # A product with ones takes a sixth of the time of a sum along an axis.
    return F.sqrt(F.dot(F.square(x - y), F.stop_gradient(ones)) + _DISTANCE_EPSILON)
