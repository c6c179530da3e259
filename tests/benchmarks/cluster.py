"""A worker group whose processes each have their own machine: a network namespace with an address.

    sudo python -m tests.benchmarks.cluster [--machines 4] [--servers 1] [flags of train.py]
    sudo python -m tests.benchmarks.cluster --kill worker [flags of train.py]

The first form trains with the group, and in one process with as many CPU contexts and the same
batches. It prints Recall@1 of both by epoch, and whether all workers have learned the same bytes:
weights, beta, statistics and optimizer states. The second form kills a process after the first line
of training, prints after how many seconds each of the others ended and its last line, and resumes
the run. Without flags it needs ../shared and takes eight minutes on two cores, four with --kill.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from embedding_learning.distributed.dmlc_environment import ROLES
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

_FLAGS = [
    *("--data-path=../shared/data/cub_crops", "--model=squeezenet1.1"),
    *("--pretrained-params=../shared/weights/squeezenet1.1.params", "--batch-size=20"),
    *("--epochs=3", "--batch-num=20", "--log-interval=5", "--checkpoint-interval=2", "--workers=1"),
]
# Seconds for a whole run, and for the other processes to end after one was killed.
_RUN_TIMEOUT, _END_TIMEOUT = 3600, 120


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--machines", type=int, default=4, help="number of workers")
    parser.add_argument("--servers", type=int, default=1)
    text = "the role of a process to kill during training"
    parser.add_argument("--kill", choices=("none", *ROLES), default="none", help=text)
    text = "take its machine from the network instead of killing it"
    parser.add_argument("--unplug", action="store_true", help=text)
    parser.add_argument("--bandwidth", type=float, help="of each machine, in bits/s")
    args, flags = parser.parse_known_args()
    count = 1 + args.servers + args.machines
    try:
        with (
            raise_on_signals(),
            tempfile.TemporaryDirectory() as folder,
            network(count, args.bandwidth) as machines,
        ):
            flags = [*_FLAGS, *flags]
            if args.kill == "none":
                return compare(args, flags, Path(folder), machines)
            return kill(args, flags, Path(folder), machines)
    except Interrupted as interrupted:
        return 128 + interrupted.number
    except (Unavailable, GroupFailed) as error:
        sys.exit(str(error))


def start(
    args: argparse.Namespace, flags: list[str], machines: Sequence[Machine]
) -> AbstractContextManager[list[Process]]:
    """Starts the processes of a run; see `start_group`."""
    flags = [*flags, "--kvstore=dist_sync"]
    commands = Commands(
        [sys.executable, "-m", "tests.benchmarks.digest_worker", *flags],
        [sys.executable, str(ROOT / "train.py"), *flags],
    )
    return start_group(commands, args.machines, args.servers, Path.cwd(), machines)


def compare(
    args: argparse.Namespace, flags: list[str], folder: Path, machines: Sequence[Machine]
) -> int:
    """Trains with the group and in one process. Returns 1 if the workers' results differ."""
    started = time.monotonic()
    with start(args, [*flags, f"--save-model-prefix={folder}/group"], machines) as processes:
        workers = processes[1 + args.servers :]
        wait_for("learned", workers, processes, _RUN_TIMEOUT)
        seconds = time.monotonic() - started
        outputs = [worker.output() for worker in workers]
    digests = {re.search(r"learned (\w+)", output)[1] for output in outputs}
    group_recalls = max((recalls(output) for output in outputs), key=len)

    single = [sys.executable, str(ROOT / "train.py"), *flags, f"--cpu-contexts={args.machines}"]
    started = time.monotonic()
    process = Process(
        "one process", [*single, f"--save-model-prefix={folder}/single"], Path.cwd(), {}
    )
    try:
        wait_for("Best validation", [process], [process], _RUN_TIMEOUT)
        single_seconds = time.monotonic() - started
    finally:
        process.kill()
    single_recalls = recalls(process.output())

    print(f"Recall@1    {args.machines} machines   one process")
    for epoch in sorted(group_recalls):
        print(f"epoch {epoch:3d} {group_recalls[epoch]:11.4f} {single_recalls[epoch]:13.4f}")
    print(f"seconds   {seconds:11.0f} {single_seconds:13.0f}")
    verdict = "the same" if len(digests) == 1 else "DIFFERENT"
    print(f"learned by the {len(outputs)} workers: {verdict}, {', '.join(sorted(digests))}")
    return int(len(digests) > 1)


def kill(
    args: argparse.Namespace, flags: list[str], folder: Path, machines: Sequence[Machine]
) -> int:
    """Kills a process, waits for the others, and resumes. Returns 1 if one of them did not end."""
    flags = [*flags, f"--save-model-prefix={folder}/group"]
    with start(args, flags, machines) as processes:
        wait_for("training loss", processes, processes, _RUN_TIMEOUT, at_least=1)
        number = max(n for n, process in enumerate(processes) if process.role == args.kill)
        victim = processes[number]
        if args.unplug:
            machines[number].unplug()
        else:
            victim.kill()
        killed = time.monotonic()
        action = "unplugged" if args.unplug else "killed"
        print(f"{action}: {victim.role}, process {victim.popen.pid}")
        left = [process for process in processes if args.unplug or process is not victim]
        while left and time.monotonic() < killed + _END_TIMEOUT:
            for process in [process for process in left if process.popen.poll() is not None]:
                left.remove(process)
                seconds, status = time.monotonic() - killed, process.popen.returncode
                print(f"after {seconds:5.2f} s, status {status}: {process.last_line()}")
            time.sleep(0.01)
        for process in left:
            print(f"STILL RUNS after {_END_TIMEOUT} s: {process.role}: {process.last_line()}")

    if args.unplug:
        machines[number].plug()
    with start(args, [*flags, "--resume=auto"], machines) as processes:
        wait_for("learned", processes[1 + args.servers :], processes, _RUN_TIMEOUT)
        lines = [line for process in processes for line in process.output().splitlines()]
    print("resumed:")
    for line in lines:
        if re.search(r"Resuming|Recall@1=|Best validation|^learned", line):
            print(f"  {line}")
    return int(bool(left))


def recalls(output: str) -> dict[int, float]:
    """Returns Recall@1 by epoch."""
    lines = re.findall(r"\[Epoch (\d+)\] validation: Recall@1=([\d.]+)", output)
    return {int(epoch): float(value) for epoch, value in lines}


if __name__ == "__main__":
    sys.exit(main())
