"""Does every backbone train and load: is it built, trained one step, saved and loaded?

    python -m tests.benchmarks.families                  # all: half an hour on one core
    python -m tests.benchmarks.families resnet50 dla34

Each backbone gets four images of random pixels, of its own size, in a process of its own. Prints a
line per backbone: the pixels of a side, the seconds of building and of the step, the peak memory of
the process, and whether the loaded network gives the embeddings of the saved one. If the backbone
was refused, the line is the message. Exit status 1 if any backbone failed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time

from embedding_learning.model.weights.catalog import ARCHITECTURES, TORCHVISION_NAMES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="backbones (default: all)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(try_backbone(args.names[0]))
        return 0
    failures = 0
    print(f"{'backbone':24}{'pixels':>7}{'build':>8}{'step':>8}{'memory':>10}  loaded")
    for name in args.names or [*ARCHITECTURES, *TORCHVISION_NAMES]:
        command = [sys.executable, "-m", "tests.benchmarks.families", "--one", name]
        result = subprocess.run(command, capture_output=True, text=True)
        failures += result.returncode != 0 or not result.stdout.rstrip().endswith("same")
        lines = (result.stdout or result.stderr or "no output").strip().splitlines()
        print(f"{name:24}{lines[-1]}", flush=True)
    return int(failures > 0)


def try_backbone(name: str) -> str:
    """Builds, trains, saves and loads a backbone, and returns its line of the table."""
    # Imported here, since the parent process does not need MXNet.
    from embedding_learning.cli.train_flags import parse
    from embedding_learning.inference.embedding_model import load_model
    from embedding_learning.model.description import describe
    from embedding_learning.model.weights.params_file import save_parameters
    from embedding_learning.training import build
    from tests.benchmarks.random_training import build_learner, random_batch

    # isort: split
    import mxnet as mx
    import numpy as np

    config = parse([f"--model={name}", "--batch-size=4", "--batch-k=2", "--lr=1e-5"])
    build.check(config)
    mx.random.seed(1)
    begin = time.perf_counter()
    learner = build_learner(config)
    built = time.perf_counter()
    batch = random_batch(config)
    learner.step(batch)
    mx.nd.waitall()
    stepped = time.perf_counter()
    net, pixels = learner.net, batch.data[0]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/net.params"
        save_parameters(net, path, describe(config.model, config.data, "noise", 0, 0.5))
        loaded = load_model(path).net.embed(pixels).asnumpy()
    expected = net.embed(pixels).asnumpy()
    is_same = np.isfinite(expected).all() and np.allclose(loaded, expected, rtol=1e-3, atol=1e-5)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"{config.data.crop_size:7}{built - begin:7.1f}s{stepped - built:7.1f}s{memory:7.0f} MB  "
        f"{'same' if is_same else 'another'}"
    )


if __name__ == "__main__":
    sys.exit(main())
