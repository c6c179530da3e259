"""Normalized softmax (Zhai and Wu, 2019), with the margin of ArcFace (Deng et al., 2019)."""

from __future__ import annotations

import math
from typing import Any

from mxnet.gluon import HybridBlock

from embedding_learning.model.label_losses.similarities import cosines, log_sum_exp_of_others

# Keeps the square root's gradient finite where an embedding is on its proxy.
_SMALLEST_SQUARE = 1e-10


class NormalizedSoftmaxLoss(HybridBlock):
    r"""Cross entropy of cosines with one learned proxy for each class.

    The mean over the batch of :math:`-\log \frac{e^{s \cos(\theta_y + m)}}{e^{s \cos(\theta_y
    + m)} + \sum_{j \ne y} e^{s \cos \theta_j}}`, where :math:`\theta_j` is the angle between an
    embedding and the proxy of class j, and y its own class. With m = 0 this is equation 3 of Zhai
    and Wu, Classification is a Strong Baseline for Deep Metric Learning, where s is the inverse of
    the temperature; with m > 0 equation 3 of ArcFace. From an angle of pi - m on, where the cosine
    would rise again, cos(theta) - m sin(m) takes its place, as ArcFace's own program has it.

    Parameters
    ----------
    margin : float
        m, in radians, below pi.
    scale : float
        s.

    Inputs and output are those of :class:`ProxyNCALoss`.
    """

    def __init__(self, margin: float = 0.0, scale: float = 20.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._margin = margin
        self._scale = scale

    def hybrid_forward(self, F: Any, embeddings: Any, labels: Any, proxies: Any) -> Any:
        cosine = cosines(F, embeddings, proxies)
        if not self._margin:
            log_shares = F.log_softmax(self._scale * cosine, axis=1)
            return -F.mean(F.pick(log_shares, labels, axis=1))
        own = self._scale * self._with_margin(F, F.pick(cosine, labels, axis=1))
        others = log_sum_exp_of_others(F, self._scale * cosine, labels, proxies)
        # The logarithm of 1 + e^(others - own).
        return F.mean(F.Activation(others - own, act_type="softrelu"))

    def _with_margin(self, F: Any, cosine: Any) -> Any:
        """Returns cos(theta + m) of cos(theta), or what replaces it for large angles."""
        sine = F.sqrt(F.maximum(1.0 - F.square(cosine), _SMALLEST_SQUARE))
        turned = cosine * math.cos(self._margin) - sine * math.sin(self._margin)
        straight = cosine - self._margin * math.sin(self._margin)
        return F.where(cosine >= -math.cos(self._margin), turned, straight)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(margin={self._margin}, scale={self._scale})"
