"""A job whose every process has a machine of its own: a network namespace with its own address.

    sudo python -m tests.benchmarks.cluster [--machines 4] [--servers 1] [flags of train.py]
    sudo python -m tests.benchmarks.cluster --kill worker [flags of train.py]

The first form prints Recall@1 by epoch beside that of one process with as many CPU contexts, which
trains on the same batches, and whether all workers have learned the same to the byte: weights,
beta, statistics and the optimizers' state. The second kills a process after the first line of
training, prints how long each of the others goes on and what it says, and resumes the job.
Without flags it needs ../shared and takes some eight minutes on two cores, four with --kill.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from embedding_learning.distributed.dmlc_environment import ROLES
from embedding_learning.errors import Interrupted
from embedding_learning.runtime.signals import raise_on_signals
from tests.benchmarks.namespaces import Machine, Unavailable, network
from tests.benchmarks.processes import (
    ROOT,
    Command,
    JobFailed,
    Process,
    job,
    wait_for,
)

_FLAGS = [
    *("--data-path=../shared/data/cub_crops", "--model=squeezenet1.1"),
    *("--pretrained-params=../shared/weights/squeezenet1.1.params", "--batch-size=20"),
    *("--epochs=3", "--batch-num=20", "--log-interval=5", "--checkpoint-interval=2", "--workers=1"),
]
# Seconds for a whole job, and for the survivors of a killed process to end.
_PATIENCE, _END = 3600, 120


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--machines", type=int, default=4, help="that train")
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--kill", choices=("none", *ROLES), default="none")
    text = "instead of killing it, take its machine from the network"
    parser.add_argument("--unplug", action="store_true", help=text)
    parser.add_argument("--bandwidth", type=float, help="of each machine, in bits/s")
    arguments, flags = parser.parse_known_args()
    count = 1 + arguments.servers + arguments.machines
    try:
        with (
            raise_on_signals(),
            tempfile.TemporaryDirectory() as folder,
            network(count, arguments.bandwidth) as machines,
        ):
            flags = [*_FLAGS, *flags]
            if arguments.kill == "none":
                return compare(arguments, flags, Path(folder), machines)
            return kill(arguments, flags, Path(folder), machines)
    except Interrupted as interrupted:
        return 128 + interrupted.number
    except (Unavailable, JobFailed) as error:
        sys.exit(str(error))


def start(arguments: argparse.Namespace, flags: list[str], machines: Sequence[Machine]):
    """The job's processes, as a context."""
    flags = [*flags, "--kvstore=dist_sync"]
    command = Command(
        [sys.executable, "-m", "tests.benchmarks.telling_worker", *flags],
        [sys.executable, str(ROOT / "train.py"), *flags],
    )
    return job(command, arguments.machines, arguments.servers, Path.cwd(), machines)


def compare(
    arguments: argparse.Namespace, flags: list[str], folder: Path, machines: Sequence[Machine]
) -> int:
    """Trains with the machines and in one process; 1 if the workers have learned different."""
    started = time.monotonic()
    with start(arguments, [*flags, f"--save-model-prefix={folder}/job"], machines) as processes:
        workers = processes[1 + arguments.servers :]
        wait_for("learned", workers, processes, _PATIENCE)
        seconds = time.monotonic() - started
        outputs = [worker.output() for worker in workers]
    digests = {re.search(r"learned (\w+)", output)[1] for output in outputs}
    found = max((recalls(output) for output in outputs), key=len)

    alone = [sys.executable, str(ROOT / "train.py"), *flags, f"--save-model-prefix={folder}/alone"]
    started = time.monotonic()
    process = Process(
        "one process", [*alone, f"--cpu-contexts={arguments.machines}"], Path.cwd(), {}
    )
    try:
        wait_for("Best validation", [process], [process], _PATIENCE)
        seconds_alone = time.monotonic() - started
    finally:
        process.kill()
    expected = recalls(process.output())

    print(f"Recall@1    {arguments.machines} machines   one process")
    for epoch in sorted(found):
        print(f"epoch {epoch:3d} {found[epoch]:11.4f} {expected[epoch]:13.4f}")
    print(f"seconds   {seconds:11.0f} {seconds_alone:13.0f}")
    same = "the same" if len(digests) == 1 else "DIFFERENT"
    print(f"learned by the {len(outputs)} workers: {same}, {', '.join(sorted(digests))}")
    return int(len(digests) > 1)


def kill(
    arguments: argparse.Namespace, flags: list[str], folder: Path, machines: Sequence[Machine]
) -> int:
    """Kills a process, waits for the others, and resumes; 1 if one goes on or the resume fails."""
    flags = [*flags, f"--save-model-prefix={folder}/job"]
    with start(arguments, flags, machines) as processes:
        wait_for("training loss", processes, processes, _PATIENCE, least=1)
        number = max(n for n, process in enumerate(processes) if process.role == arguments.kill)
        victim = processes[number]
        if arguments.unplug:
            machines[number].unplug()
        else:
            victim.kill()
        killed = time.monotonic()
        how = "unplugged" if arguments.unplug else "killed"
        print(f"{how}: {victim.role}, process {victim.popen.pid}")
        left = [process for process in processes if arguments.unplug or process is not victim]
        while left and time.monotonic() < killed + _END:
            for process in [process for process in left if process.popen.poll() is not None]:
                left.remove(process)
                seconds, status = time.monotonic() - killed, process.popen.returncode
                print(f"after {seconds:5.2f} s, status {status}: {process.last_line()}")
            time.sleep(0.01)
        for process in left:
            print(f"STILL THERE after {_END} s: {process.role}: {process.last_line()}")

    if arguments.unplug:
        machines[number].plug()
    with start(arguments, [*flags, "--resume=auto"], machines) as processes:
        wait_for("learned", processes[1 + arguments.servers :], processes, _PATIENCE)
        lines = [line for process in processes for line in process.output().splitlines()]
    print("resumed:")
    for line in lines:
        if re.search(r"Resuming|Recall@1=|Best validation|^learned", line):
            print(f"  {line}")
    return int(bool(left))


def recalls(output: str) -> dict[int, float]:
    """Recall@1 by epoch."""
    found = re.findall(r"\[Epoch (\d+)\] validation: Recall@1=([\d.]+)", output)
    return {int(epoch): float(value) for epoch, value in found}


if __name__ == "__main__":
    sys.exit(main())
