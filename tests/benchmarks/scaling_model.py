"""Predicts the time of a training step from the numbers of workers and servers.

A step computes for `compute` seconds, then exchanges its gradients. An array passes three stages:
the link to its server, where the copies of all workers arrive; the server, which adds them up; and
the link back. The stages work at the same time, each on one array after the other (in scheduling: a
flow shop).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from embedding_learning.distributed.dmlc_environment import BIG_ARRAY

_ELEMENT_BYTES = 4


class Prediction(NamedTuple):
    """The prediction for a step.

    Attributes
    ----------
    seconds : float
        Of the whole step.
    exchange : float
        Seconds of the exchange alone.
    limit : str
        What takes the most time: ``compute``, ``worker's link``, ``server's link`` or
        ``server's adding``.
    """

    seconds: float
    exchange: float
    limit: str


def place_arrays(arrays: Mapping[int, int], servers: int) -> list[list[int]]:
    """Returns the sizes in bytes of the arrays that each server receives.

    `arrays` are the numbers of elements by the key in the store, in the order of sending. An array
    smaller than BIG_ARRAY goes to the server of number key * 9973 modulo their count, as in
    kvstore_dist.h. A larger array is cut into equal parts, one for each server.
    """
    of_servers: list[list[int]] = [[] for _ in range(servers)]
    for key, elements in arrays.items():
        if elements < BIG_ARRAY:
            of_servers[key * 9973 % servers].append(elements * _ELEMENT_BYTES)
        else:
            for of_server in of_servers:
                of_server.append(elements * _ELEMENT_BYTES // servers)
    return of_servers


def predict(
    arrays: Mapping[int, int],
    workers: int,
    servers: int,
    compute: float,
    bandwidth: float,
    rate: float,
    overlap: float = 0.0,
) -> Prediction:
    """Returns the prediction for a step.

    Parameters
    ----------
    arrays : mapping
        As in `place_arrays`.
    workers, servers : int
    compute : float
        Seconds of a worker's step without exchange.
    bandwidth : float
        Bytes a second that each machine's link carries in each direction.
    rate : float
        Bytes a second that a server receives, adds up and sends if its link does not limit it.
    overlap : float
        The part of `compute` during which gradients are already exchanged.
    """
    busiest = max(place_arrays(arrays, servers), key=sum)
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
    """Returns the seconds that arrays take for link, server and link.

    `arrays` are in bytes, `link` and `rate` in bytes a second.
    """
    free = [0.0, 0.0, 0.0]
    for size in arrays:
        ready = 0.0
        for stage, speed in enumerate((link, rate, link)):
            free[stage] = ready = max(ready, free[stage]) + size / speed
    return free[-1]
