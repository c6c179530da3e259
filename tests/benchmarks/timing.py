"""Times several functions in turn, so that changes of the machine's speed affect all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import embedding_learning  # noqa: F401  prepares the import of MXNet

# isort: split
import mxnet as mx


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1, warmup: int = 2
) -> dict[str, list[float]]:
    """Returns the seconds of one call of each function, for each round.

    A round is `calls` calls in a row, without waiting for the device in between. The device is idle
    before and after each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warmup + rounds):
        for name, function in functions.items():
            mx.nd.waitall()
            started = time.perf_counter()
            for _ in range(calls):
                function()
            mx.nd.waitall()
            if number >= warmup:
                seconds[name].append((time.perf_counter() - started) / calls)
    return seconds


def print_ratios(seconds: Mapping[str, list[float]], base: str) -> None:
    """Prints median, minimum and maximum of each, and the median of its ratios to `base`.

    The ratios are computed round by round.
    """
    for name, values in seconds.items():
        ratio = statistics.median(v / b for v, b in zip(values, seconds[base]))
        print(
            f"{name:36s} {statistics.median(values) * 1e3:10.2f} ms"
            f"  ({min(values) * 1e3:.2f} to {max(values) * 1e3:.2f})  {ratio:8.3f} x {base}"
        )
