"""Compares the training speed with the original example, with PyTorch and with the machine's bound.

    python -m tests.benchmarks.against_others --original PATH --pytorch-python VENV/bin/python \
        --data-path ../shared/data/cub_crops

PATH is the folder example/gluon/embedding_learning of apache/mxnet 1.9.1, which needs the package
bottleneck. VENV is an environment of its own, with torch, pytorch-metric-learning, faiss-cpu, tqdm
and the opencv-python of requirements-common.txt. Run it on an idle machine. With two cores a round
takes ten minutes for ResNet-50, and sixteen for ResNet-50, ResNet-18 and SqueezeNet together.

In every round each contender is a new process, so that none can use what another left. The
contenders take turns, so that changes of the machine's speed affect all alike, and ratios are
computed round by round. All train from random weights on the same images, in batches that are
sampled in the same way. All use as many threads as there are cores, except the original as shipped,
which chooses for itself. contenders/ has a file for each contender; table.py prints the results.
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
PACKAGE = "tests.benchmarks.contenders"
MODELS = "resnet50_v2,resnet18_v1,squeezenet1.1,mobilenet_v2,densenet121"
# Variables that set the number of threads and how they wait. The user's own must not affect a
# contender.
_THREAD_VARIABLES = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "MXNET_")


def training_commands(args: argparse.Namespace) -> dict[str, tuple[list[str], int | None]]:
    """Returns each contender's command and its number of threads (None: its own choice)."""
    here = [sys.executable, "-m", f"{PACKAGE}.here"]
    original = [sys.executable, "-m", f"{PACKAGE}.original", "--original", args.original]
    pytorch = [args.pytorch_python, "-m", f"{PACKAGE}.pytorch"]
    return {
        table.HERE: (here, args.threads),
        "original as shipped": (original, None),
        "original, threads set": (original, args.threads),
        "pytorch": (pytorch, args.threads),
        "pytorch, channels last": ([*pytorch, "--channels-last"], args.threads),
        table.BARE: ([sys.executable, "-m", f"{PACKAGE}.bare"], args.threads),
    }


def part_commands(args: argparse.Namespace) -> dict[str, tuple[list[str], int | None]]:
    """Returns commands and threads of the measurements that do not depend on the model."""
    batch = f"--batch-size={args.batch_size}"
    mxnet = [sys.executable, "-m", f"{PACKAGE}.parts", "--original", args.original, batch]
    pytorch = [args.pytorch_python, "-m", f"{PACKAGE}.pytorch_parts", batch]
    return {
        "parts in MXNet": (mxnet, args.threads),
        "parts in PyTorch": (pytorch, args.threads),
        "peak": ([sys.executable, "-m", f"{PACKAGE}.peak"], args.threads),
    }


def run(command: list[str], threads: int | None) -> dict:
    """Runs a contender and returns what it printed, or as `error` why it failed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_THREAD_VARIABLES)}
    if threads:
        environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = str(threads)
    started = time.time()
    try:
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    except OSError as error:
        return {"error": str(error)}
    if process.returncode < 0:
        return {"error": f"ended by {signal.Signals(-process.returncode).name}"}
    if process.returncode:
        return {"error": (process.stderr.strip().splitlines() or ["no message"])[-1]}
    result = json.loads(process.stdout.splitlines()[-1])
    if "first_step_at" in result:
        result["first_step"] = result.pop("first_step_at") - started
    return result


def measure(args: argparse.Namespace, model: str | None, number: int) -> list[dict]:
    """Runs a round: each contender with a model or, without a model, each of the parts."""
    commands, flags = part_commands(args), []
    if model:
        commands = training_commands(args)
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
            # Not the median: where steps overlap, the next step after a delay looks too short.
            record["rate"] = args.batch_size / statistics.mean(record["seconds"])
        outcome = record.get("error") or (f"{record['rate']:.2f} images/s" if model else "done")
        title = f"{model}, {name}" if model else name
        print(f"round {number + 1}, {title}: {outcome}", file=sys.stderr)
        records.append(record)
    return records


def describe_machine(args: argparse.Namespace) -> dict:
    """Returns the processor, the load, and the flags that decide what is measured."""
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


def fill_pixel_cache(data_path: str) -> None:
    """Decodes the images that are not in the pixel cache yet, so that every run has a full one."""
    config = parse([f"--data-path={data_path}"])
    open_data(read_split(config), config).close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", required=True, help="folder of the original example")
    parser.add_argument("--pytorch-python", required=True, help="a Python that has PyTorch")
    parser.add_argument("--data-path", required=True, help="images in the layout of CUB-200-2011")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--batch-size", type=int, default=70)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, help="a file for all figures, in JSON lines")
    args = parser.parse_args()
    # Contenders run in the project's folder.
    for path in ("original", "data_path"):
        setattr(args, path, os.path.abspath(getattr(args, path)))
    args.pytorch_python = os.path.abspath(args.pytorch_python)
    fill_pixel_cache(args.data_path)

    records = [describe_machine(args)]
    for model in (None, *args.models.split(",")):
        for number in range(args.rounds):
            records += measure(args, model, number)
            if args.output:
                lines = [json.dumps(record) + "\n" for record in records]
                args.output.write_text("".join(lines), encoding="utf-8")
    table.print_all(records)


if __name__ == "__main__":
    main()
