"""How long a training step takes with a number of workers and servers: the mathematics alone.

A step computes for `compute` seconds, then exchanges its gradients. An array passes three stages on
its way: over the link to its server, where all workers' copies arrive; through the server, which
adds them up; and over the link back. The stages work at the same time, each on one array after the
other (in scheduling: a flow shop).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from embedding_learning.distributed.dmlc_environment import BIG_ARRAY

_ELEMENT_BYTES = 4


class Prediction(NamedTuple):
    """A step.

    Attributes
    ----------
    seconds : float
    exchange : float
        Seconds of the exchange alone.
    limit : str
        What takes most of the step: ``compute``, ``worker's link``, ``server's link`` or
        ``server's adding``.
    """

    seconds: float
    exchange: float
    limit: str


def placed(arrays: Mapping[int, int], servers: int) -> list[list[int]]:
    """Bytes of the arrays that each server is given.

    `arrays` are elements by the key of the store, in the order in which they are sent. An array
    smaller than BIG_ARRAY goes to one server, whatever the others hold: kvstore_dist.h takes
    key * 9973 modulo their number. A larger one is cut into equal parts.
    """
    shares: list[list[int]] = [[] for _ in range(servers)]
    for key, elements in arrays.items():
        if elements < BIG_ARRAY:
            shares[key * 9973 % servers].append(elements * _ELEMENT_BYTES)
        else:
            for share in shares:
                share.append(elements * _ELEMENT_BYTES // servers)
    return shares


def predict(
    arrays: Mapping[int, int],
    workers: int,
    servers: int,
    compute: float,
    bandwidth: float,
    rate: float,
    overlap: float = 0.0,
) -> Prediction:
    """A step of the workers.

    Parameters
    ----------
    arrays : mapping
        As in `placed`.
    compute : float
        Seconds of a worker's step alone.
    bandwidth : float
        Bytes a second that each machine's link carries, each way.
    rate : float
        Bytes a second that a server takes in, adds up and gives out if its link does not limit it.
    overlap : float
        The share of `compute` during which gradients are on their way already.
    """
    shares = placed(arrays, servers)
    busiest = max(shares, key=sum)
    own = [elements * _ELEMENT_BYTES for elements in arrays.values()]
    times = {
        "compute": compute,
        "worker's link": sum(own) / bandwidth,
        "server's link": workers * sum(busiest) / bandwidth,
        "server's adding": workers * sum(busiest) / rate,
    }
    limit = max(times, key=lambda name: times[name])
    exchange = max(
        _flow(own, bandwidth, math.inf), _flow(busiest, bandwidth / workers, rate / workers)
    )
    return Prediction(compute + max(0.0, exchange - overlap * compute), exchange, limit)


def _flow(arrays: list[int], link: float, rate: float) -> float:
    """Seconds for arrays of these bytes to pass link, server and link; bytes a second."""
    free = [0.0, 0.0, 0.0]
    for size in arrays:
        ready = 0.0
        for stage, speed in enumerate((link, rate, link)):
            free[stage] = ready = max(ready, free[stage]) + size / speed
    return free[-1]
