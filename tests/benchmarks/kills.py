"""Does a run that is killed many times end as a run that is not?

    python -m tests.benchmarks.kills [--kills 50] [--signal KILL] [flags of train.py]

The run of train.py is started with --resume auto, is killed after a random time, and so on. A third
of the kills wait until a file is being written, and come within 20 milliseconds. At the end the
best network, the arrays of the last checkpoint and the logged values are compared. Exit status 1 if
any of them differ.
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
    parser.add_argument("--signal", default="KILL", help="a name, such as KILL or TERM")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    args, flags = parser.parse_known_args()
    number = signal.Signals[f"SIG{args.signal}"]
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed, killed = folder / "undisturbed", folder / "killed"
        undisturbed.mkdir()
        killed.mkdir()
        started = time.perf_counter()
        expected = finish(start(undisturbed, flags))
        seconds = time.perf_counter() - started
        print(f"the run without kills: {seconds:.0f} s")

        kills, while_writing, lines = 0, 0, ""
        while True:
            process = start(killed, [*flags, "--resume=auto"])
            if kills < args.kills:
                wait_for_training(process, killed)
                if rng.random() < 1 / 3:
                    wait_for_writing(process, killed)
                    time.sleep(rng.uniform(0, 0.02))
                else:
                    time.sleep(rng.uniform(0, seconds / args.kills))
                process.send_signal(number)
            lines += finish(process)
            if process.returncode == 0:
                break
            kills += 1
            while_writing += any(killed.rglob("*.partial"))
            for line in lines.splitlines():
                if "Traceback" in line:
                    sys.exit(lines)
        print(f"killed {kills} times, {while_writing} of them while a file was being written")
        compare(undisturbed, killed, logged_values(expected), logged_values(lines))


def start(folder: Path, flags: list[str]) -> subprocess.Popen[str]:
    """Starts a run in a folder, with its output in the file log."""
    command = [sys.executable, str(ROOT / "train.py"), *FLAGS, *flags]
    log = open(folder / "log", "w+")  # noqa: SIM115
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, text=True)
    process.log = log  # type: ignore[attr-defined]
    return process


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for the end of a run and returns its output."""
    process.wait()
    log = process.log  # type: ignore[attr-defined]
    log.seek(0)
    with log:
        return str(log.read())


def wait_for_training(process: subprocess.Popen[str], folder: Path) -> None:
    """Waits until the run trains, or resumes, or has ended."""
    while process.poll() is None and "learning rate" not in (folder / "log").read_text():
        if "Resuming" in (folder / "log").read_text():
            return
        time.sleep(0.01)


def wait_for_writing(process: subprocess.Popen[str], folder: Path) -> None:
    """Waits until the run writes a file or has ended."""
    while process.poll() is None and not any(folder.rglob("*.partial")):
        time.sleep(0.0005)


def logged_values(lines: str) -> dict[str, str]:
    """Returns the last value of each logged quantity, except times."""
    values = {}
    for line in lines.splitlines():
        if match := re.fullmatch(r"INFO:root:(\[?Epoch .*)=(\S+)", line):
            values[match[1]] = match[2]
    return values


def compare(
    undisturbed: Path, killed: Path, expected: dict[str, str], actual: dict[str, str]
) -> None:
    """Prints whether the two runs are identical; exits with 1 if they are not."""
    folders = (undisturbed, killed)
    best = [(folder / "margin_loss_model.params").read_bytes() for folder in folders]
    last = [sorted((folder / "margin_loss_model.run").glob("check*"))[-1] for folder in folders]
    print(f"the best network: {'identical' if best[0] == best[1] else 'DIFFERS'}")

    arrays = [load_file(path) for path in last]
    is_same = arrays[0].keys() == arrays[1].keys() and all(
        arrays[0][name].tobytes() == arrays[1][name].tobytes() for name in arrays[0]
    )
    verdict = "identical" if is_same else "DIFFER"
    print(f"the {len(arrays[0])} arrays of the last checkpoint: {verdict}")
    print(f"{len(expected)} logged values: {'identical' if expected == actual else 'DIFFER'}")
    if best[0] != best[1] or not is_same or expected != actual:
        sys.exit(1)


if __name__ == "__main__":
    main()
