"""What limits training with many workers: a prediction from measurements with a few workers.

    sudo python -m tests.benchmarks.scaling [--model resnet18_v1] [--crop-size 64]
    python -m tests.benchmarks.scaling --step-seconds 0.2 --bandwidth 10e9 --rate 8e8 \
        --model resnet50_v2 --crop-size 224

The first form measures the step of one worker, and the exchange of the network's gradients among 1,
2 and 4 workers: over loopback, and between network namespaces of limited bandwidth. It prints the
predictions of scaling_model.py next to the measurements, and predicts 1 to 64 workers. It takes ten
minutes on an idle machine with two cores. The second form only predicts. Its input are the seconds
of a step, the bits a second of each machine's link, and the bytes a second that a server adds up.

Exchanges are real: MXNet's servers, and the trainers and the store of training. In the rows `sleep`
computing is replaced by a sleep as long as the measured step, since the workers share the cores of
this machine. In the rows `compute` each worker has one thread, and the prediction divides the cores
among them.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from embedding_learning.cli.train_flags import parse
from embedding_learning.config import TrainConfig
from embedding_learning.distributed import dmlc_environment
from embedding_learning.distributed.synchronous import KEYS_OF_TRAINER
from embedding_learning.errors import Interrupted
from embedding_learning.runtime.signals import raise_on_signals
from tests.benchmarks.namespaces import Machine, Unavailable, network
from tests.benchmarks.processes import (
    ROOT,
    Commands,
    GroupFailed,
    Process,
    start_group,
    wait_for,
)
from tests.benchmarks.random_training import build_learner
from tests.benchmarks.scaling_model import Prediction, predict

# isort: split
from mxnet import gluon

# The share of a TCP packet of 1,514 bytes that is payload.
_PAYLOAD = 1448 / 1514
# The numbers of workers and servers in the table of predictions.
_WORKERS = [2**n for n in range(7)]
_SERVERS = [1, 2, 4, 8, 16]
# Seconds for a worker group to start, and for its steps.
_TIMEOUT = 600
_PROGRAM = [sys.executable, "-m", "tests.benchmarks.exchange"]
_FLAGS = ["--model=resnet18_v1", "--crop-size=64", "--batch-size=70"]

# The parameters of each trainer.
Parameters = list[list[gluon.Parameter]]


class Measured(NamedTuple):
    """Measurements of a worker group.

    Attributes
    ----------
    seconds : float
        Of a step of the slowest worker.
    server_seconds : float
        The processor time of all servers in all timed steps.
    """

    seconds: float
    server_seconds: float


def main() -> int:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after two of warm-up")
    parser.add_argument("--workers-here", type=int, nargs="+", default=[1, 2, 4], help="to measure")
    parser.add_argument("--servers-here", type=int, nargs="+", default=[1, 2], help="to measure")
    parser.add_argument(
        "--bandwidths", type=float, nargs="+", default=[1e9, 2e8], help="to measure, bits/s"
    )
    parser.add_argument("--step-seconds", type=float, help="only predict, with such steps")
    parser.add_argument("--rate", type=float, help="of a server, bytes/s; with --step-seconds")
    parser.add_argument("--bandwidth", type=float, default=10e9, help="to predict, bits/s")
    args, flags = parser.parse_known_args()
    if args.step_seconds and not args.rate:
        parser.error("--step-seconds: needs --rate too")
    flags = _FLAGS + flags
    config = parse(flags)
    batch_size = config.batch.per_device
    parameters = all_parameters(config)
    arrays = gradient_sizes(parameters, servers=1)
    print(
        f"{config.model.backbone}: {4 * sum(arrays.values()) / 1e6:.1f} MB of gradients in "
        f"{len(arrays)} arrays, the largest {4 * max(arrays.values()) / 1e6:.1f} MB; batches of "
        f"{batch_size}"
    )
    compute, rate = args.step_seconds, args.rate
    if not compute:
        try:
            with raise_on_signals():
                compute, rate = measure(args, flags, parameters, batch_size)
        except Interrupted as interrupted:
            return 128 + interrupted.number
        except (Unavailable, GroupFailed) as error:
            sys.exit(str(error))
    print_predictions(parameters, batch_size, compute, args.bandwidth, rate)
    return 0


def all_parameters(config: TrainConfig) -> Parameters:
    """Returns the parameters of each trainer."""
    return [trainer._params for trainer in build_learner(config).trainers]


def gradient_sizes(parameters: Parameters, servers: int) -> dict[int, int]:
    """Returns the number of elements of each gradient, by its key in the store."""
    sizes = {}
    for number, of_trainer in enumerate(parameters):
        loads = [0] * servers
        for index, parameter in enumerate(of_trainer):
            elements = math.prod(parameter.shape)
            first = number * KEYS_OF_TRAINER
            key = dmlc_environment.least_loaded_key(first, index, elements, loads)
            if parameter.grad_req != "null":
                sizes[key] = elements
    return sizes


def measure(
    args: argparse.Namespace,
    flags: list[str],
    parameters: Parameters,
    batch_size: int,
) -> tuple[float, float]:
    """Measures and prints. Returns the seconds of a step with all cores, and a server's bytes/s."""
    cores = len(os.sched_getaffinity(0))
    flags = [f"--steps={args.steps}", *flags]
    compute, compute_one = (step_alone(flags, threads) for threads in (cores, 1))
    print(f"a step alone: {compute:.3f} s with {cores} threads, {compute_one:.3f} s with 1")
    elements = sum(gradient_sizes(parameters, servers=1).values())
    rate = measure_servers(args, flags, 4 * elements)
    for bandwidth in args.bandwidths:
        print(f"\nNamespaces, {bandwidth / 1e6:.0f} Mbit/s: predicted, measured (ratio)")
        for workers in args.workers_here:
            # The workers' threads share the cores.
            shared = compute_one * max(1, workers / cores)
            steps = {
                "only exchange": (0.0, ["--step=sleep"]),
                "sleep": (compute, ["--step=sleep", f"--seconds={compute}"]),
                "compute": (shared, ["--step=compute"]),
            }
            for servers in args.servers_here:
                measured = {}
                for name, (seconds, step) in steps.items():
                    prediction = predict(
                        gradient_sizes(parameters, servers),
                        workers,
                        servers,
                        seconds,
                        bandwidth / 8 * _PAYLOAD,
                        rate,
                    )
                    result = run_group([*step, *flags], workers, servers, bandwidth)
                    expected, actual = prediction.seconds, result.seconds
                    measured[name] = actual
                    rates = [workers * batch_size / value for value in (expected, actual)]
                    print(
                        f"{workers} workers, {servers} servers, {name:13s} {expected:7.3f} s "
                        f"{actual:7.3f} s ({actual / expected:4.2f}) {rates[0]:7.1f} "
                        f"{rates[1]:7.1f} images/s; {prediction.limit}",
                        flush=True,
                    )
                in_turn = shared + measured["only exchange"]
                print(
                    "    computing with exchange takes "
                    f"{measured['compute'] / in_turn:.2f} of the time of both in turn"
                )
    return compute, rate


def measure_servers(args: argparse.Namespace, flags: list[str], size: int) -> float:
    """Returns the bytes a second that one server receives, adds up and sends, the median."""
    print("\nOnly exchange, over loopback, all processes on the same cores:")
    rates = []
    for servers in args.servers_here:
        for workers in args.workers_here:
            result = run_group(["--step=sleep", *flags], workers, servers)
            rate = workers * size / result.seconds
            print(
                f"{workers} workers, {servers} servers {result.seconds:7.3f} s, {rate / 1e6:.0f} "
                f"MB/s; servers' processor time "
                f"{result.server_seconds / args.steps / workers / size * 1e9:.2f} ns a byte",
                flush=True,
            )
            if servers == 1:
                rates.append(rate)
    return statistics.median(rates)


def print_predictions(
    parameters: Parameters,
    batch_size: int,
    compute: float,
    bandwidth: float,
    rate: float,
) -> None:
    """Prints images a second by workers and servers, and what takes most of the step."""

    def step(workers: int, servers: int) -> Prediction:
        arrays = gradient_sizes(parameters, servers)
        return predict(arrays, workers, servers, compute, bandwidth / 8 * _PAYLOAD, rate)

    print(
        f"\nPredicted images/s with {compute:.3f} s a step, {bandwidth / 1e9:g} Gbit/s and servers "
        f"of {rate / 1e6:.0f} MB/s. Limits: c compute, w worker's link, s server's link, a adding"
    )
    print("workers  servers:" + "".join(f"{servers:11d}" for servers in _SERVERS))
    for workers in _WORKERS:
        row = f"{workers:7d}          "
        for servers in _SERVERS:
            seconds, _, limit = step(workers, servers)
            sign = limit.rpartition("'s ")[2][0] if "adding" in limit else limit[0]
            row += f"{workers * batch_size / seconds:9.0f} {sign}"
        print(row)
    for servers in _SERVERS:
        limits = {workers: step(workers, servers).limit for workers in _WORKERS}
        first = next((workers for workers in _WORKERS if limits[workers] != "compute"), None)
        verdict = "is never the limit"
        if first:
            verdict = f"is the limit from {first} workers on: {limits[first]}"
        print(f"with {servers} servers, the exchange {verdict}")


def step_alone(flags: list[str], threads: int) -> float:
    """Returns the seconds of a training step of one process."""
    command = [*_PROGRAM, "--step=compute", *flags]
    with tempfile.TemporaryDirectory() as folder:
        process = Process("worker", command, Path(folder), _environment(threads))
        try:
            wait_for("seconds", [process], [process], _TIMEOUT)
        finally:
            process.kill()
        return _seconds(process)


def run_group(
    flags: list[str], workers: int, servers: int, bandwidth: float | None = None
) -> Measured:
    """Measures a worker group of `exchange`, in namespaces if a bandwidth is given (bits/s)."""
    non_worker = [sys.executable, str(ROOT / "train.py"), "--kvstore=dist_sync"]
    commands = Commands([*_PROGRAM, *flags, "--kvstore=dist_sync"], non_worker)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        machines: Sequence[Machine] = ()
        if bandwidth:
            machines = stack.enter_context(network(1 + servers + workers, bandwidth))
        group = start_group(commands, workers, servers, folder, machines, _environment(1))
        processes = stack.enter_context(group)
        worker_processes, server_processes = processes[1 + servers :], processes[1 : 1 + servers]
        wait_for("begin", worker_processes, processes, _TIMEOUT)
        before = sum(process.cpu_seconds() for process in server_processes)
        wait_for("seconds", worker_processes, processes, _TIMEOUT)
        spent = sum(process.cpu_seconds() for process in server_processes) - before
        return Measured(max(map(_seconds, worker_processes)), spent)


def _environment(threads: int) -> dict[str, str]:
    # Threads that wait actively would use cores that other processes need.
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}


def _seconds(process: Process) -> float:
    words = process.output().split()
    return float(words[words.index("seconds") + 1])


if __name__ == "__main__":
    sys.exit(main())
