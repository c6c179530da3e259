"""The bound: forward and backward of the backbone alone, on one batch that is ready.

    python -m tests.benchmarks.contenders.bare --model resnet18_v1 --data-path ''

As this program sets it up, but without data, embedding, sampling, loss and update.
"""

from __future__ import annotations

import json
from contextlib import suppress
from math import prod

from embedding_learning.model import backbones
from tests.benchmarks.contenders.protocol import (
    CROP,
    Done,
    StepClock,
    arguments,
)

# isort: split
import mxnet as mx
from mxnet import autograd
from mxnet.gluon import HybridBlock


def training_flops(net: HybridBlock) -> int:
    """Floating point operations of an image's forward and backward pass, from the layers' shapes.

    Those of convolutions and dense layers, two for a multiplication and its addition: as many for
    the gradient of the weights and of the input as for the output. The gradient of the images
    themselves is not computed.
    """
    graph = net(mx.sym.var("data"))
    internals = graph.get_internals()
    _, shapes, _ = internals.infer_shape(data=(1, 3, CROP, CROP))
    shape_of = dict(zip(internals.list_outputs(), shapes))
    nodes = json.loads(graph.tojson())["nodes"]
    multiplications = [
        prod(shape_of[node["name"] + "_output"])
        * prod(shape_of[nodes[node["inputs"][1][0]]["name"]][1:])
        for node in nodes
        if node["op"] in ("Convolution", "FullyConnected")
    ]
    return 2 * (3 * sum(multiplications) - multiplications[0])


def main() -> None:
    args = arguments(__doc__).parse_args()
    net = backbones.create(args.model, [mx.cpu()])
    net.initialize(mx.init.Xavier(magnitude=2))
    net.hybridize(static_alloc=True, static_shape=True)
    images = mx.nd.random.normal(shape=(args.batch_size, 3, CROP, CROP))
    clock = StepClock(args.steps, mx.nd.waitall)
    with suppress(Done):
        while True:
            clock.tick()
            with autograd.record():
                features = net(images)
            features.backward()
            mx.nd.waitall()
    learned = [p.data().size for p in net.collect_params().values() if p.grad_req != "null"]
    clock.print_result(parameters=sum(learned), flops_per_image=training_flops(net))


if __name__ == "__main__":
    main()
