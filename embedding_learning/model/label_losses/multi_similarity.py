"""Multi-similarity (Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019)."""

from __future__ import annotations

from typing import Any

from mxnet.gluon import HybridBlock

from embedding_learning.model.label_losses.similarities import log_one_plus_sum_exp

# The paper's alpha, the scale of positive pairs.
_POSITIVE_SCALE = 2.0
# Its lambda. The paper says 1; its authors' program, and all that follow it, take 0.5.
_CENTER = 0.5
# Beyond all cosines.
_BEYOND = 9.0


class MultiSimilarityLoss(HybridBlock):
    r"""Multi-similarity loss with its selection of pairs, equations 8 to 10 of the paper.

    The mean over the anchors i of :math:`\frac{1}{\alpha} \log(1 + \sum_{k \in P_i}
    e^{-\alpha (S_{ik} - \lambda)}) + \frac{1}{s} \log(1 + \sum_{k \in N_i} e^{s (S_{ik} -
    \lambda)})`, where S are cosines. :math:`N_i` are the negatives that are nearer than the
    farthest positive or less than the margin behind it, :math:`P_i` the positives that are farther
    than the nearest negative or less than the margin before it. No gradient flows through this
    selection.

    Parameters
    ----------
    margin : float
        The paper's epsilon, a difference of cosines.
    scale : float
        s, the paper's beta: the scale of negative pairs.

    Inputs, for n images of d dimensions:
        - **embeddings** (n, d), of unit length.
        - **labels** (n,): their classes.

    Output: the loss, (1,).
    """

    def __init__(self, margin: float = 0.1, scale: float = 50.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._margin = margin
        self._scale = scale

    def hybrid_forward(self, F: Any, embeddings: Any, labels: Any) -> Any:
        cosine = F.dot(embeddings, embeddings, transpose_b=True)
        positive, negative = self._select(F, F.stop_gradient(cosine), labels)
        pull = -_POSITIVE_SCALE * (cosine - _CENTER)
        push = self._scale * (cosine - _CENTER)
        pulled, pushed = (
            log_one_plus_sum_exp(F, values, 1.0 - selected)
            for values, selected in ((pull, positive), (push, negative))
        )
        return F.mean(pulled / _POSITIVE_SCALE + pushed / self._scale)

    def _select(self, F: Any, cosine: Any, labels: Any) -> tuple[Any, Any]:
        """Returns 1 where a pair is a selected positive, and a selected negative, both (n, n)."""
        row = F.contrib.arange_like(labels, axis=0)
        same, itself = (
            F.broadcast_equal(F.expand_dims(x, axis=1), F.expand_dims(x, axis=0))
            for x in (labels, row)
        )
        other = 1.0 - same
        positive = same - itself
        # Without a positive or a negative to compare with, nothing is selected.
        farthest = F.min(F.where(positive, cosine, positive + _BEYOND), axis=1, keepdims=True)
        nearest = F.max(F.where(other, cosine, other - _BEYOND), axis=1, keepdims=True)
        return (
            positive * F.broadcast_lesser(cosine - self._margin, nearest),
            other * F.broadcast_greater(cosine + self._margin, farthest),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(margin={self._margin}, scale={self._scale})"
