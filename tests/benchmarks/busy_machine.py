"""How fast are training and embedding next to other programs, by how threads wait?

    python -m tests.benchmarks.busy_machine [--model squeezenet1.1] [--loops 2]

Each line is a new process, on the idle machine and next to programs that compute all the time. The
settings take turns. GOMP_SPINCOUNT=300000 is what libgomp does if nothing is set.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

SETTINGS = {
    "libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    "spinning 10,000 times": {"GOMP_SPINCOUNT": "10000"},
    "not spinning (here)": {"OMP_WAIT_POLICY": "passive"},
}
SIZE, BATCH_SIZE = 224, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="squeezenet1.1")
    parser.add_argument("--loops", type=int, default=2, help="programs that compute all the time")
    parser.add_argument("--seconds", type=float, default=6, help="of each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", choices=list(WORKS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(images_per_second(WORKS[args.work](args.model), args.seconds))
        return
    lines = [(work, setting) for work in ("train", "embed") for setting in SETTINGS]
    lines.append(("embed with onnxruntime", "not spinning (here)"))
    print(f"{args.model}, images a second: idle, next to {args.loops} programs")
    rates = {}
    for loops in (0, args.loops):
        others = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)
        ]
        try:
            for _ in range(args.rounds):
                for line in lines:
                    rates.setdefault((line, loops), []).append(run(*line, args))
        finally:
            for other in others:
                other.kill()
    for line in lines:
        idle, busy = (statistics.median(rates[line, loops]) for loops in (0, args.loops))
        print(f"| {line[0]} | {line[1]} | {idle:.1f} | {busy:.1f} |")


def run(work: str, setting: str, args: argparse.Namespace) -> float:
    flags = [f"--model={args.model}", f"--seconds={args.seconds}", f"--work={work}"]
    variables = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in variables}
    result = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.busy_machine", *flags],
        env={**environment, **SETTINGS[setting]},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return float(result.stdout.splitlines()[-1])


def images_per_second(function: Callable[[], object], seconds: float) -> float:
    function()
    function()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        function()
        count += BATCH_SIZE
    return count / (time.perf_counter() - begin)


def train(model: str) -> Callable[[], object]:
    from embedding_learning.cli.train_flags import parse
    from tests.benchmarks.random_training import build_learner, random_batch

    # isort: split
    import mxnet as mx

    config = parse([f"--model={model}", f"--batch-size={BATCH_SIZE}", "--batch-k=5"])
    learner, batch = build_learner(config), random_batch(config)

    def step() -> None:
        learner.step(batch)
        mx.nd.waitall()

    return step


def embed(model: str) -> Callable[[], object]:
    from embedding_learning.inference.embedding_graph import EmbeddingGraph
    from tests.benchmarks.export_families import random_net, random_pixels

    graph, pixels = EmbeddingGraph(random_net(model, SIZE)), random_pixels(BATCH_SIZE, SIZE, 1)
    return lambda: graph(pixels).asnumpy()


def embed_with_onnxruntime(model: str) -> Callable[[], object]:
    from embedding_learning.inference.onnxruntime_engine import OnnxRuntimeEngine
    from tests.benchmarks.export_families import random_net, random_pixels

    engine = OnnxRuntimeEngine(random_net(model, SIZE), SIZE)
    pixels = random_pixels(BATCH_SIZE, SIZE, 1)
    return lambda: engine(pixels).asnumpy()


WORKS = {"train": train, "embed": embed, "embed with onnxruntime": embed_with_onnxruntime}

if __name__ == "__main__":
    main()
