"""ProxyNCA (Movshovitz-Attias et al., No Fuss Distance Metric Learning using Proxies, 2017)."""

from __future__ import annotations

from typing import Any

from mxnet.gluon import HybridBlock

from embedding_learning.model.label_losses.similarities import cosines, log_sum_exp_of_others


class ProxyNCALoss(HybridBlock):
    r"""ProxyNCA, section 3.2 of the paper: each class has a proxy, which is learned.

    The mean over the batch of
    :math:`-\log \frac{e^{-s D^2(x, p(x))}}{\sum_{z \ne p(x)} e^{-s D^2(x, z)}}`, where x is an
    embedding, p(x) the proxy of its class, z the proxies of all other classes, and D the Euclidean
    distance of rows of unit length.

    Parameters
    ----------
    scale : float
        s; the paper has none, which is 1.

    Inputs, for n images of d dimensions and c classes:
        - **embeddings** (n, d), of unit length.
        - **labels** (n,): classes from 0.
        - **proxies** (c, d), of any length.

    Output: the loss, (1,).
    """

    def __init__(self, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._scale = scale

    def hybrid_forward(self, F: Any, embeddings: Any, labels: Any, proxies: Any) -> Any:
        closeness = 2.0 * self._scale * (cosines(F, embeddings, proxies) - 1.0)
        log_sum = log_sum_exp_of_others(F, closeness, labels, proxies)
        return F.mean(log_sum - F.pick(closeness, labels, axis=1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scale={self._scale})"
