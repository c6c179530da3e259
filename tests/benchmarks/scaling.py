"""Training with many workers: what limits it, predicted from what one and a few do here.

    sudo python -m tests.benchmarks.scaling [--model resnet18_v1] [--crop-size 64]
    python -m tests.benchmarks.scaling --step-seconds 0.2 --bandwidth 10e9 --rate 8e8 \
        --model resnet50_v2 --crop-size 224

The first form measures the step of one worker, and the exchange of the network's gradients by 1, 2
and 4 workers over loopback and between network namespaces of limited bandwidth; sets the model's
predictions (scaling_model.py) beside it; and predicts 1 to 64 workers. It takes some ten minutes on
a quiet machine with two cores. The second only predicts, for figures given: seconds of a step,
bits a second of each machine's link, bytes a second that a server adds up.

Exchanges are real: MXNet's servers and the program's own trainers and store. Where workers `sleep`,
computing is replaced by a sleep as long as the measured step, since they would share this machine's
cores; where they `compute`, each has one thread, and the model divides the cores among them.
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
from embedding_learning.distributed import dmlc_environment
from embedding_learning.distributed.synchronous import KEYS_OF_TRAINER
from embedding_learning.errors import Interrupted
from embedding_learning.runtime.signals import raise_on_signals
from embedding_learning.training import build
from tests.benchmarks.namespaces import Machine, Unavailable, network
from tests.benchmarks.processes import (
    ROOT,
    Command,
    JobFailed,
    Process,
    job,
    wait_for,
)
from tests.benchmarks.scaling_model import Prediction, predict

# isort: split
import mxnet as mx
import numpy as np
from mxnet import gluon

# Of 1,514 bytes on the wire, a packet of TCP carries this much.
_PAYLOAD = 1448 / 1514
_WORKERS = [2**n for n in range(7)]
_SERVERS = [1, 2, 4, 8, 16]
# Seconds for a job to start, and for its steps.
_PATIENCE = 600
_PROGRAM = [sys.executable, "-m", "tests.benchmarks.exchange"]
_FLAGS = ["--model=resnet18_v1", "--crop-size=64", "--batch-size=70"]


# Those of each trainer.
Parameters = list[list[gluon.Parameter]]


class Measured(NamedTuple):
    """A job.

    Attributes
    ----------
    seconds : float
        Of a step, the slowest worker's.
    server_seconds : float
        The servers' processor time in all of the steps.
    """

    seconds: float
    server_seconds: float


def main() -> int:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=5, help="timed, after two of warm-up")
    parser.add_argument("--workers-here", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--servers-here", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--bandwidths", type=float, nargs="+", default=[1e9, 2e8], help="bits/s")
    parser.add_argument("--step-seconds", type=float, help="measure nothing: predict with this")
    parser.add_argument("--rate", type=float, help="and with servers of these bytes/s")
    parser.add_argument("--bandwidth", type=float, default=10e9, help="bits/s to predict with")
    arguments, flags = parser.parse_known_args()
    if arguments.step_seconds and not arguments.rate:
        parser.error("--rate is missing")
    flags = _FLAGS + flags
    options = parse(flags)
    parameters = all_parameters(options)
    arrays = gradient_sizes(parameters, servers=1)
    print(
        f"{options.model}: {4 * sum(arrays.values()) / 1e6:.1f} MB of gradients in {len(arrays)} "
        f"arrays, the largest {4 * max(arrays.values()) / 1e6:.1f} MB; batches of "
        f"{options.batch_size}"
    )
    compute, rate = arguments.step_seconds, arguments.rate
    if not compute:
        try:
            with raise_on_signals():
                compute, rate = measure(arguments, flags, parameters, options.batch_size)
        except Interrupted as interrupted:
            return 128 + interrupted.number
        except (Unavailable, JobFailed) as error:
            sys.exit(str(error))
    table(parameters, options.batch_size, compute, arguments.bandwidth, rate)
    return 0


def all_parameters(options: argparse.Namespace) -> Parameters:
    """What each trainer gives to the store."""
    devices = [mx.cpu()]
    learning = build.build(
        options, np.arange(100)[:, None], build.build_network(options, devices), devices
    )
    return [trainer._params for trainer in learning.trainers]


def gradient_sizes(parameters: Parameters, servers: int) -> dict[int, int]:
    """Elements of each gradient, by its key in the store."""
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
    arguments: argparse.Namespace,
    flags: list[str],
    parameters: Parameters,
    batch_size: int,
) -> tuple[float, float]:
    """Prints what is measured here; seconds of a step with all cores, and a server's bytes/s."""
    cores = len(os.sched_getaffinity(0))
    flags = [f"--steps={arguments.steps}", *flags]
    compute, compute_one = (step_alone(flags, threads) for threads in (cores, 1))
    print(f"a step alone: {compute:.3f} s with {cores} threads, {compute_one:.3f} s with 1")
    elements = sum(gradient_sizes(parameters, servers=1).values())
    rate = measure_servers(arguments, flags, 4 * elements)
    for bandwidth in arguments.bandwidths:
        print(f"\nNamespaces, {bandwidth / 1e6:.0f} Mbit/s: predicted, measured (ratio)")
        for workers in arguments.workers_here:
            # The workers' threads share the cores.
            shared = compute_one * max(1, workers / cores)
            steps = {
                "only exchange": (0.0, ["--step=sleep"]),
                "sleep": (compute, ["--step=sleep", f"--seconds={compute}"]),
                "compute": (shared, ["--step=compute"]),
            }
            for servers in arguments.servers_here:
                found = {}
                for name, (seconds, step) in steps.items():
                    told = predict(
                        gradient_sizes(parameters, servers),
                        workers,
                        servers,
                        seconds,
                        bandwidth / 8 * _PAYLOAD,
                        rate,
                    )
                    found[name] = run_job([*step, *flags], workers, servers, bandwidth).seconds
                    rates = [workers * batch_size / value for value in (told.seconds, found[name])]
                    print(
                        f"{workers} workers, {servers} servers, {name:13s} {told.seconds:7.3f} s "
                        f"{found[name]:7.3f} s ({found[name] / told.seconds:4.2f}) {rates[0]:7.1f} "
                        f"{rates[1]:7.1f} images/s; {told.limit}",
                        flush=True,
                    )
                in_turn = shared + found["only exchange"]
                print(
                    f"    computing with exchange: {found['compute'] / in_turn:.2f} of both in turn"
                )
    return compute, rate


def measure_servers(arguments: argparse.Namespace, flags: list[str], size: int) -> float:
    """Bytes a second that one server takes in, adds up and gives out, in the median."""
    print("\nOnly exchange over loopback, all processes on the same cores:")
    rates = []
    for servers in arguments.servers_here:
        for workers in arguments.workers_here:
            found = run_job(["--step=sleep", *flags], workers, servers)
            rate = workers * size / found.seconds
            print(
                f"{workers} workers, {servers} servers {found.seconds:7.3f} s, {rate / 1e6:.0f} "
                f"MB/s; servers' processor time "
                f"{found.server_seconds / arguments.steps / workers / size * 1e9:.2f} ns a byte",
                flush=True,
            )
            if servers == 1:
                rates.append(rate)
    return statistics.median(rates)


def table(
    parameters: Parameters,
    batch_size: int,
    compute: float,
    bandwidth: float,
    rate: float,
) -> None:
    """Predicted images a second by workers and servers, and what takes most of the step."""

    def step(workers: int, servers: int) -> Prediction:
        arrays = gradient_sizes(parameters, servers)
        return predict(arrays, workers, servers, compute, bandwidth / 8 * _PAYLOAD, rate)

    print(
        f"\nImages/s predicted with {compute:.3f} s a step, {bandwidth / 1e9:g} Gbit/s, servers "
        f"of {rate / 1e6:.0f} MB/s: c compute, w a worker's link, s a server's link, a adding"
    )
    print("workers  servers:" + "".join(f"{servers:11d}" for servers in _SERVERS))
    for workers in _WORKERS:
        row = f"{workers:7d}          "
        for servers in _SERVERS:
            told = step(workers, servers)
            sign = told.limit.rpartition("'s ")[2][0] if "adding" in told.limit else told.limit[0]
            row += f"{workers * batch_size / told.seconds:9.0f} {sign}"
        print(row)
    for servers in _SERVERS:
        limits = {workers: step(workers, servers).limit for workers in _WORKERS}
        first = next((workers for workers in _WORKERS if limits[workers] != "compute"), None)
        told = f"is the limit from {first} workers on: {limits[first]}" if first else "never is"
        print(f"with {servers} servers, the exchange {told}")


def step_alone(flags: list[str], threads: int) -> float:
    """Seconds of a training step of one process."""
    command = [*_PROGRAM, "--step=compute", *flags]
    with tempfile.TemporaryDirectory() as folder:
        process = Process("worker", command, Path(folder), _environment(threads))
        try:
            wait_for("seconds", [process], [process], _PATIENCE)
        finally:
            process.kill()
        return _seconds(process)


def run_job(
    flags: list[str], workers: int, servers: int, bandwidth: float | None = None
) -> Measured:
    """Workers of `exchange` with these flags, in namespaces if there is a bandwidth (bits/s)."""
    helper = [sys.executable, str(ROOT / "train.py"), "--kvstore=dist_sync"]
    command = Command([*_PROGRAM, *flags, "--kvstore=dist_sync"], helper)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        machines: Sequence[Machine] = ()
        if bandwidth:
            machines = stack.enter_context(network(1 + servers + workers, bandwidth))
        started = job(command, workers, servers, folder, machines, _environment(1))
        processes = stack.enter_context(started)
        working, serving = processes[1 + servers :], processes[1 : 1 + servers]
        wait_for("begin", working, processes, _PATIENCE)
        before = sum(process.cpu_seconds() for process in serving)
        wait_for("seconds", working, processes, _PATIENCE)
        spent = sum(process.cpu_seconds() for process in serving) - before
        return Measured(max(map(_seconds, working)), spent)


def _environment(threads: int) -> dict[str, str]:
    # Threads that wait actively would take the cores from other processes.
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}


def _seconds(process: Process) -> float:
    words = process.output().split()
    return float(words[words.index("seconds") + 1])


if __name__ == "__main__":
    sys.exit(main())
