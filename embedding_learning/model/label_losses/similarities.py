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


def log_sum_exp_of_others(F: Any, values: Any, labels: Any, proxies: Any) -> Any:
    """Returns log(the sum of e^value over all classes but the row's own) of each row.

    Shapes (n, c), (n,), (c, d) -> (n,). There are two classes or more.
    """
    others = _leave_out(F, values, is_own_class(F, labels, proxies))
    # The logarithm of a class's share is its value minus the result. Any class but the row's own
    # serves: class 0, or class 1 for rows of class 0. MXNet computes shares faster than the sum.
    other = labels == 0
    log_share = F.pick(F.log_softmax(others, axis=1), other, axis=1)
    return F.pick(values, other, axis=1) - log_share


def log_one_plus_sum_exp(F: Any, values: Any, left_out: Any) -> Any:
    """Returns log(1 + the sum of e^value) of each row: two of (n, c) -> (n,).

    What is left out, where the mask is 1, does not count. The largest value is subtracted first, so
    that nothing overflows.
    """
    values = _leave_out(F, values, left_out)
    largest = F.stop_gradient(F.relu(F.max(values, axis=1, keepdims=True)))
    total = F.sum(F.exp(F.broadcast_sub(values, largest)), axis=1, keepdims=True)
    return F.squeeze(largest + F.log(total + F.exp(-largest)), axis=1)


def _leave_out(F: Any, values: Any, mask: Any) -> Any:
    """Returns the values, but where the mask is 1 numbers so low that their exponentials are 0."""
    return values - _NEVER * mask
