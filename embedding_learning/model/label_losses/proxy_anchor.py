"""ProxyAnchor (Kim et al., Proxy Anchor Loss for Deep Metric Learning, CVPR 2020)."""

from __future__ import annotations

from typing import Any

from mxnet.gluon import HybridBlock

from embedding_learning.model.label_losses.similarities import (
    cosines,
    is_own_class,
    log_one_plus_sum_exp,
)


class ProxyAnchorLoss(HybridBlock):
    r"""ProxyAnchor, equation 4 of the paper: the proxy of each class is an anchor of the batch.

    :math:`\frac{1}{|P^+|} \sum_{p \in P^+} \log(1 + \sum_{x \in X_p^+} e^{-s (c(x, p) - m)}) +
    \frac{1}{|P|} \sum_{p \in P} \log(1 + \sum_{x \in X_p^-} e^{s (c(x, p) + m)})`, where c is
    the cosine, P are all proxies, :math:`P^+` those whose class is in the batch, and
    :math:`X_p^+`, :math:`X_p^-` the embeddings of the proxy's class and of all others.

    Parameters
    ----------
    margin : float
        m.
    scale : float
        s, the paper's alpha.

    Inputs and output are those of :class:`ProxyNCALoss`.
    """

    def __init__(self, margin: float = 0.1, scale: float = 32.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._margin = margin
        self._scale = scale

    def hybrid_forward(self, F: Any, embeddings: Any, labels: Any, proxies: Any) -> Any:
        # A row for each proxy.
        cosine = F.transpose(cosines(F, embeddings, proxies))
        own = F.transpose(is_own_class(F, labels, proxies))
        pushed = log_one_plus_sum_exp(F, self._scale * (cosine + self._margin), own)
        # A row for each image: the proxy of its class. All images of a class have the same row, so
        # each counts for its share. Other proxies pull nothing: log(1 + 0) = 0.
        cosine, own = F.take(cosine, labels), F.take(own, labels)
        pulled = log_one_plus_sum_exp(F, -self._scale * (cosine - self._margin), 1.0 - own)
        share = 1.0 / F.sum(own, axis=1)
        return F.sum(share * pulled) / F.sum(share) + F.mean(pushed)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(margin={self._margin}, scale={self._scale})"
