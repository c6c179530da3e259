"""Training here, in the original example and in PyTorch, beside the machine's bounds: one table.

    python -m tests.benchmarks.against_others --original PATH --pytorch-python VENV/bin/python \
        --data-path ../shared/data/cub_crops

PATH is the folder example/gluon/embedding_learning of apache/mxnet 1.9.1; VENV an environment of
its own, since gluoncv refuses PyTorch: torch, pytorch-metric-learning, faiss-cpu, tqdm and
opencv-python-headless. The machine has to be quiet. With two cores, ResNet-50 takes some ten
minutes a round, the three models together some sixteen.

Every contender is a process of its own in every round, so that none keeps what another could use,
and they take turns, so that a drifting machine is fair; ratios are formed round by round. All train
on the same images, in batches of the same make, from random weights. All compute with as many
threads as there are cores, but for the original as shipped, which is left to its own choice. What
contenders do is told in contenders/, a file each; table.py prints the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from embedding_learning.cli.train_flags import parse
from embedding_learning.data.build import open_data, read_split
from tests.benchmarks import table

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = "tests.benchmarks.contenders"
# What decides the number of threads and how they wait: no contender may see the user's own.
_THREAD_SETTINGS = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "MXNET_")


def contenders(args: argparse.Namespace) -> dict[str, tuple[list[str], int | None]]:
    """By name: the command, and its number of threads unless that is left to itself."""
    here = [sys.executable, "-m", f"{PROGRAMS}.here"]
    original = [sys.executable, "-m", f"{PROGRAMS}.original", "--original", args.original]
    pytorch = [args.pytorch_python, "-m", f"{PROGRAMS}.pytorch"]
    return {
        table.HERE: (here, args.threads),
        "original as shipped": (original, None),
        "original, threads set": (original, args.threads),
        "pytorch": (pytorch, args.threads),
        "pytorch, channels last": ([*pytorch, "--channels-last"], args.threads),
        table.BARE: ([sys.executable, "-m", f"{PROGRAMS}.bare"], args.threads),
    }


def parts(args: argparse.Namespace) -> dict[str, tuple[list[str], int | None]]:
    """The same of what is measured once a round, whatever the model."""
    batch = f"--batch-size={args.batch_size}"
    mxnet = [sys.executable, "-m", f"{PROGRAMS}.parts", "--original", args.original, batch]
    pytorch = [args.pytorch_python, "-m", f"{PROGRAMS}.pytorch_parts", batch]
    return {
        "parts in MXNet": (mxnet, args.threads),
        "parts in PyTorch": (pytorch, args.threads),
        "peak": ([sys.executable, "-m", f"{PROGRAMS}.peak"], args.threads),
    }


def run(command: list[str], threads: int | None) -> dict:
    """What a contender printed, or why it failed, as `error`."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith(_THREAD_SETTINGS)}
    if threads:
        settings["OMP_NUM_THREADS"] = settings["OPENBLAS_NUM_THREADS"] = str(threads)
    started = time.time()
    try:
        process = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
    except OSError as error:
        return {"error": str(error)}
    if process.returncode < 0:
        return {"error": f"ended by {signal.Signals(-process.returncode).name}"}
    if process.returncode:
        return {"error": (process.stderr.strip().splitlines() or ["no word"])[-1]}
    result = json.loads(process.stdout.splitlines()[-1])
    if "first_step_at" in result:
        result["first_step"] = result.pop("first_step_at") - started
    return result


def measure(args: argparse.Namespace, model: str | None, number: int) -> list[dict]:
    """A round: each contender of a model once or, without one, each of the parts."""
    commands, flags = parts(args), []
    if model:
        commands = contenders(args)
        flags = [
            f"--model={model}",
            f"--data-path={args.data_path}",
            f"--batch-size={args.batch_size}",
            f"--steps={args.steps}",
        ]
    names = list(commands)
    first = number % len(names)
    records = []
    for name in names[first:] + names[:first]:
        command, threads = commands[name]
        record = {"model": model, "round": number, "contender": name}
        record |= run([*command, *flags], threads)
        if model and "error" not in record:
            # Not the median: where steps overlap, one that was held up makes the next look short.
            record["rate"] = args.batch_size / statistics.mean(record["seconds"])
        told = record.get("error") or (f"{record['rate']:.2f} images/s" if model else "done")
        title = f"{model}, {name}" if model else name
        print(f"round {number + 1}, {title}: {told}", file=sys.stderr)
        records.append(record)
    return records


def machine(args: argparse.Namespace) -> dict:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "threads": args.threads,
        "load_before": os.getloadavg()[0],
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "steps": args.steps,
    }


def fill_store(data_path: str) -> None:
    """Decodes what this program's store lacks, so that every run finds it warm."""
    options = parse([f"--data-path={data_path}"])
    open_data(read_split(options), options).close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", required=True, help="folder of the original example")
    parser.add_argument("--pytorch-python", required=True, help="a Python that has PyTorch")
    parser.add_argument("--data-path", required=True, help="images in the layout of CUB-200-2011")
    parser.add_argument("--models", default="resnet50_v2,resnet18_v1,squeezenet1.1")
    parser.add_argument("--batch-size", type=int, default=70)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, help="a file to write every figure to, JSON lines")
    args = parser.parse_args()
    # Contenders run in the project's folder.
    for path in ("original", "data_path"):
        setattr(args, path, os.path.abspath(getattr(args, path)))
    args.pytorch_python = os.path.abspath(args.pytorch_python)
    fill_store(args.data_path)

    records = [machine(args)]
    for model in (None, *args.models.split(",")):
        for number in range(args.rounds):
            records += measure(args, model, number)
            if args.output:
                lines = [json.dumps(record) + "\n" for record in records]
                args.output.write_text("".join(lines), encoding="utf-8")
    table.print_all(records)


if __name__ == "__main__":
    main()
