"""What several of these losses compute: cosines, masks of classes, logarithms of sums."""

from __future__ import annotations

from typing import Any

# The exponential of its negative is 0.
_NEVER = 1e30


def cosines(F: Any, embeddings: Any, proxies: Any) -> Any:
    """Returns the cosines between unit rows and rows of any length: (n, d), (c, d) -> (n, c)."""
    return F.dot(embeddings, F.L2Normalization(proxies, mode="instance"), transpose_b=True)


def is_own_class(F: Any, labels: Any, proxies: Any) -> Any:
    """Returns 1 where a proxy is that of the row's class, else 0: (n,), (c, d) -> (n, c)."""
    classes = F.contrib.arange_like(F.stop_gradient(proxies), axis=0)
    return F.broadcast_equal(F.expand_dims(labels, axis=1), F.expand_dims(classes, axis=0))


def log_sum_exp(F: Any, values: Any, mask: Any, axis: int, first: float | None = None) -> Any:
    """Returns log(e^first + the sum of e^value where the mask is 1), along an axis that vanishes.

    Without `first`, it is the sum alone, and the mask must not be 0 along the whole axis. The
    largest value is subtracted first, so that nothing overflows.
    """
    values = F.where(mask, values, mask - _NEVER)
    largest = F.max(values, axis=axis, keepdims=True)
    if first is not None:
        largest = F.maximum(largest, first)
    largest = F.stop_gradient(largest)
    total = F.sum(F.exp(F.broadcast_sub(values, largest)), axis=axis, keepdims=True)
    if first is not None:
        total = total + F.exp(first - largest)
    return F.squeeze(largest + F.log(total), axis=axis)
