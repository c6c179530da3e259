"""How much time a whole training step adds to the backbone's forward, backward and update.

    python -m tests.benchmarks.training_step --model resnet18_v1

The batch is in memory already. The bare backbone is the same network up to its features under a
plain sum, hybridized and updated in the same way. The whole step adds the normalization of pixels,
embedding, sampling, loss and beta. Prints the milliseconds of both, and their ratio.
"""

from __future__ import annotations

import argparse

from embedding_learning.cli.train_flags import parse
from embedding_learning.model import backbones
from embedding_learning.training import loop
from tests.benchmarks.random_training import build_learner, random_batch
from tests.benchmarks.timing import interleaved, print_ratios

# isort: split
import mxnet as mx
from mxnet import autograd, gluon, nd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18_v1")
    parser.add_argument("--batch-size", type=int, default=70)
    parser.add_argument("--crop-size", type=int, default=224, help="pixels of an image's side")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    config = parse(
        [
            f"--model={args.model}",
            f"--batch-size={args.batch_size}",
            f"--crop-size={args.crop_size}",
        ]
    )
    learner, batch = build_learner(config), random_batch(config)
    step_number = iter(range(10**6))

    def whole_step() -> None:
        loop.seed_step(1, next(step_number))
        learner.step(batch)

    devices = [mx.cpu()]
    bare = backbones.create(args.model, devices)
    bare.initialize(mx.init.Xavier(magnitude=2), ctx=devices)
    bare.hybridize(static_alloc=True, static_shape=True)
    images = nd.random.normal(shape=batch.data[0].shape)
    bare(images)
    trainer = gluon.Trainer(bare.collect_params(), "adam", {"learning_rate": 1e-4})

    def bare_step() -> None:
        with autograd.record():
            features = bare(images)
        features.backward()
        trainer.step(args.batch_size)

    print(f"{args.model}, batches of {args.batch_size}, {args.crop_size}x{args.crop_size} pixels")
    functions = {"bare backbone": bare_step, "whole training step": whole_step}
    print_ratios(interleaved(functions, args.rounds), "bare backbone")


if __name__ == "__main__":
    main()
