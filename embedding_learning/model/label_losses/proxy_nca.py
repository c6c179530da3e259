"""ProxyNCA (Movshovitz-Attias et al., No Fuss Distance Metric Learning using Proxies, 2017)."""

from __future__ import annotations

from typing import Any

from mxnet.gluon import HybridBlock

from embedding_learning.model.label_losses.similarities import cosines, is_own_class, log_sum_exp


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
        squared = 2.0 - 2.0 * cosines(F, embeddings, proxies)
        own = is_own_class(F, labels, proxies)
        to_own = self._scale * F.pick(squared, labels, axis=1)
        return F.mean(to_own + log_sum_exp(F, -self._scale * squared, 1.0 - own, axis=1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scale={self._scale})"
