"""The machine's peak in float32, in GFLOP/s: the best of several products of large matrices.

    python -m tests.benchmarks.contenders.peak

The products are computed by MXNet's dense layer, since oneDNN computes it, as it does convolutions.
MXNet's dot uses OpenBLAS, which reached a fifth of this rate on a machine with AVX-512.
"""

from __future__ import annotations

import json
from functools import partial

from tests.benchmarks.timing import interleaved

# isort: split
import mxnet as mx

SIDE, CALLS = 4096, 10


def main() -> None:
    a, b = (mx.nd.random.normal(shape=(SIDE, SIDE)) for _ in range(2))
    product = partial(mx.nd.FullyConnected, a, b, num_hidden=SIDE, no_bias=True)
    seconds = interleaved({"product": product}, CALLS)
    print(json.dumps({"gflops": 2 * SIDE**3 / min(seconds["product"]) / 1e9}), flush=True)


if __name__ == "__main__":
    main()
