"""Kills one run of train.py again and again, and compares what it becomes with a run left alone.

    python -m tests.benchmarks.kills [--kills 50] [--signal KILL] [flags of train.py]

Each time the same command is typed with --resume auto, and is killed after a random time. A third
of the kills wait for a file to be in writing and come within some milliseconds of it.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    *("--data-path=glyphs", "--model=squeezenet1.1", "--image-size=40", "--crop-size=32"),
    *("--batch-size=20", "--embed-dim=32", "--epochs=30", "--batch-num=12", "--log-interval=5"),
    *("--checkpoint-interval=3", "--lr=0.001", "--steps=10,20"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--signal", default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    arguments, flags = parser.parse_known_args()
    number = signal.Signals[f"SIG{arguments.signal}"]
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone, killed = folder / "alone", folder / "killed"
        alone.mkdir()
        killed.mkdir()
        started = time.perf_counter()
        expected = finish(start(alone, flags))
        seconds = time.perf_counter() - started
        print(f"left alone: {seconds:.0f} s")

        kills, in_writing, lines = 0, 0, ""
        while True:
            process = start(killed, [*flags, "--resume=auto"])
            if kills < arguments.kills:
                wait_for_training(process, killed)
                if rng.random() < 1 / 3:
                    wait_for_writing(process, killed)
                    time.sleep(rng.uniform(0, 0.02))
                else:
                    time.sleep(rng.uniform(0, seconds / arguments.kills))
                process.send_signal(number)
            lines += finish(process)
            if process.returncode == 0:
                break
            kills += 1
            in_writing += any(killed.rglob("*.partial"))
            for line in lines.splitlines():
                if "Traceback" in line:
                    sys.exit(lines)
        print(f"killed {kills} times, {in_writing} of them with a file half written")
        compare(alone, killed, logged(expected), logged(lines))


def start(folder: Path, flags: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), *FLAGS, *flags]
    log = open(folder / "log", "w+")  # noqa: SIM115
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, text=True)
    process.log = log  # type: ignore[attr-defined]
    return process


def finish(process: subprocess.Popen[str]) -> str:
    """Everything it printed."""
    process.wait()
    log = process.log  # type: ignore[attr-defined]
    log.seek(0)
    with log:
        return str(log.read())


def wait_for_training(process: subprocess.Popen[str], folder: Path) -> None:
    while process.poll() is None and "learning rate" not in (folder / "log").read_text():
        if "Resuming" in (folder / "log").read_text():
            return
        time.sleep(0.01)


def wait_for_writing(process: subprocess.Popen[str], folder: Path) -> None:
    while process.poll() is None and not any(folder.rglob("*.partial")):
        time.sleep(0.0005)


def logged(lines: str) -> dict[str, str]:
    """The last value of each logged quantity; times are not compared."""
    found = {}
    for line in lines.splitlines():
        if match := re.fullmatch(r"INFO:root:(\[?Epoch .*)=(\S+)", line):
            found[match[1]] = match[2]
    return found


def compare(alone: Path, killed: Path, expected: dict[str, str], found: dict[str, str]) -> None:
    best = [(folder / "margin_loss_model.params").read_bytes() for folder in (alone, killed)]
    last = [
        sorted((folder / "margin_loss_model.run").glob("check*"))[-1] for folder in (alone, killed)
    ]
    print(f"the best network: {'identical' if best[0] == best[1] else 'DIFFERS'}")

    arrays = [load_file(path) for path in last]
    same = arrays[0].keys() == arrays[1].keys() and all(
        arrays[0][name].tobytes() == arrays[1][name].tobytes() for name in arrays[0]
    )
    print(f"the last state's {len(arrays[0])} arrays: {'identical' if same else 'DIFFER'}")
    print(f"{len(expected)} logged values: {'identical' if expected == found else 'DIFFER'}")
    if best[0] != best[1] or not same or expected != found:
        sys.exit(1)


if __name__ == "__main__":
    main()
