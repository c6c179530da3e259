"""The backbone alone: forward and backward pass on a batch in memory, as a bound of the others.

    python -m tests.benchmarks.contenders.bare --model resnet18_v1 --data-path ''

The network is set up as in this program; data, embedding, sampling, loss and update are left out.
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
    make_parser,
)

# isort: split
import mxnet as mx
from mxnet import autograd
from mxnet.gluon import HybridBlock


def training_flops(net: HybridBlock) -> int:
    """Returns the floating point operations of an image's forward and backward pass.

    They are counted from the shapes of convolutions and dense layers, two for a multiplication and
    its addition. The gradients of the weights and of the input need as many each as the output. The
    gradient of the images themselves is not computed.
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
    args = make_parser(__doc__).parse_args()
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
