"""Every backbone builds, makes a training step at its own size of images, is saved and loads.

    python -m tests.benchmarks.families                  # all: half an hour on one core
    python -m tests.benchmarks.families resnet50 dla34

Four images of random pixels, a process each. A line a backbone: pixels, seconds of building and of
the step, the process's largest memory, and whether the loaded network embeds as the saved one, or
the line in which it was refused. Exit status 1 if any was.
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
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(tried(options.names[0]))
        return 0
    failed = 0
    print(f"{'backbone':24}{'pixels':>7}{'build':>8}{'step':>8}{'memory':>10}  loaded")
    for name in options.names or [*ARCHITECTURES, *TORCHVISION_NAMES]:
        command = [sys.executable, "-m", "tests.benchmarks.families", "--one", name]
        result = subprocess.run(command, capture_output=True, text=True)
        failed += result.returncode != 0 or not result.stdout.rstrip().endswith("same")
        lines = (result.stdout or result.stderr or "nothing said").strip().splitlines()
        print(f"{name:24}{lines[-1]}", flush=True)
    return int(failed > 0)


def tried(name: str) -> str:
    """What the line says of a backbone."""
    # Only in a process of its own.
    from embedding_learning.cli.train_flags import parse
    from embedding_learning.inference.embedding_model import load_model
    from embedding_learning.model.description import describe
    from embedding_learning.model.weights.params_file import save_parameters
    from embedding_learning.training import build

    # isort: split
    import mxnet as mx
    import numpy as np

    options = parse([f"--model={name}", "--batch-size=4", "--batch-k=2", "--lr=1e-5"])
    build.check(options)
    size, devices = options.crop_size, [mx.cpu()]
    mx.random.seed(1)
    begin = time.perf_counter()
    net = build.build_network(options, devices)
    made = build.build(options, np.arange(2)[:, None], net, devices)
    built = time.perf_counter()
    rng = np.random.default_rng(0)
    pixels = mx.nd.array(rng.integers(0, 256, (4, 3, size, size)), dtype=np.uint8)
    labels = mx.nd.array([0, 0, 1, 1])
    made.step(mx.io.DataBatch(data=[pixels], label=[labels], pad=0))
    mx.nd.waitall()
    stepped = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/net.params"
        save_parameters(net, path, describe(options, "noise", 0, 0.5))
        loaded = load_model(path).net.embed(pixels).asnumpy()
    expected = net.embed(pixels).asnumpy()
    is_same = np.isfinite(expected).all() and np.allclose(loaded, expected, rtol=1e-3, atol=1e-5)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"{size:7}{built - begin:7.1f}s{stepped - built:7.1f}s{memory:7.0f} MB  "
        f"{'same' if is_same else 'another'}"
    )


if __name__ == "__main__":
    sys.exit(main())
