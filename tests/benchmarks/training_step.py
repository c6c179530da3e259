"""A whole training step, data ready, over the bare backbone's forward, backward and update.

    python -m tests.benchmarks.training_step --model resnet18_v1

The bare backbone is the same network up to its features under a plain sum, hybridized and updated
in the same way; the step adds normalisation of the pixels, embedding, sampling, loss and beta.
"""

from __future__ import annotations

import argparse

from embedding_learning.cli.train_flags import parse
from embedding_learning.model import backbones
from embedding_learning.training import build, loop
from tests.benchmarks.timing import interleaved, print_ratios

# isort: split
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18_v1")
    parser.add_argument("--batch-size", type=int, default=70)
    parser.add_argument("--crop-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    devices = [mx.cpu()]
    options = parse(
        [
            f"--model={args.model}",
            f"--batch-size={args.batch_size}",
            f"--crop-size={args.crop_size}",
        ]
    )
    learning = build.build(
        options, np.arange(100)[:, None], build.build_network(options, devices), devices
    )
    shape = (args.batch_size, 3, args.crop_size, args.crop_size)
    pixels = nd.array(np.random.default_rng(0).integers(0, 256, shape), dtype=np.uint8)
    labels = nd.array(np.arange(args.batch_size) // options.batch_k)
    batch = mx.io.DataBatch(data=[pixels], label=[labels])
    step = iter(range(10**6))

    def whole_step() -> None:
        loop.seed_step(1, next(step))
        learning.step(batch)

    bare = backbones.create(args.model, devices)
    bare.initialize(mx.init.Xavier(magnitude=2), ctx=devices)
    bare.hybridize(static_alloc=True, static_shape=True)
    images = nd.random.normal(shape=shape)
    bare(images)
    trainer = gluon.Trainer(bare.collect_params(), "adam", {"learning_rate": 1e-4})

    def bare_step() -> None:
        with autograd.record():
            features = bare(images)
        features.backward()
        trainer.step(args.batch_size)

    print(f"{args.model}, batch {args.batch_size}, {args.crop_size}x{args.crop_size} pixels")
    functions = {"bare backbone": bare_step, "whole training step": whole_step}
    print_ratios(interleaved(functions, args.rounds), "bare backbone")


if __name__ == "__main__":
    main()
