"""Prints the figures of against_others as Markdown tables.

    python -m tests.benchmarks.table FILE

FILE is the --output of against_others.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

HERE, BARE = "here", "bare backbone"
_PARTS = {"sampling": "Sampling and loss", "evaluation": "Recall@1 to 16 of 5,924 images"}


def print_all(records: list[dict]) -> None:
    """Prints all tables. `records` are the machine and, for each round, a record per contender."""
    machine, *runs = records
    print(
        f"{machine['processor']}, {machine['threads']} threads, load {machine['load_before']:.2f} "
        f"before; batches of {machine['batch_size']}; {machine['rounds']} rounds of "
        f"{machine['steps']} timed steps after at least two of warm-up: median (minimum to "
        "maximum) of the rounds."
    )
    peaks = [run["gflops"] for run in runs if "gflops" in run]
    peak = max(peaks, default=None)
    if peak:
        print(f"\nPeak in float32, of a product of 4096x4096 matrices: {peak:.0f} GFLOP/s.")
    print_parts([run for run in runs if run["model"] is None])
    for model in dict.fromkeys(run["model"] for run in runs if run["model"]):
        print_model(model, [run for run in runs if run["model"] == model], peak)
    for run in runs:
        if "error" in run:
            name = ", ".join(filter(None, (run["model"], run["contender"])))
            print(f"\nFailed: {name}, round {run['round'] + 1}: {run['error']}")


def print_parts(runs: list[dict]) -> None:
    for part, title in _PARTS.items():
        seconds: dict[str, dict[int, float]] = {}
        for run in runs:
            for name, values in run.get(part, {}).items():
                seconds.setdefault(name, {})[run["round"]] = statistics.median(values)
        print_header(title, "ms", "row / here")
        for name in (HERE, "original", "pytorch"):
            if name not in seconds:
                print_row(name, "failed", "")
                continue
            times = [1e3 * value for value in seconds[name].values()]
            print_row(name, spread(times), spread(ratios(seconds[name], seconds.get(HERE, {}))))


def print_model(model: str, runs: list[dict], peak: float | None) -> None:
    completed = [run for run in runs if "rate" in run]
    names = {run["contender"] for run in runs}
    rates = {
        name: {run["round"]: run["rate"] for run in completed if run["contender"] == name}
        for name in names
    }
    flops = next((run["flops_per_image"] for run in completed if "flops_per_image" in run), None)
    bound = peak * 1e9 / flops if peak and flops else None
    columns = (
        "images/s",
        "of peak",
        "here / row",
        "peak memory, MB",
        "workers, MB",
        "first step, s",
    )
    print_header(model, *columns)
    # This program is the first row, the bound the last.
    for name in sorted(names, key=lambda name: (name == BARE, name != HERE, name)):
        done = [run for run in completed if run["contender"] == name]
        if not done:
            print_row(name, *["failed"] * len(columns))
            continue
        failed = sum("error" in run for run in runs if run["contender"] == name)
        workers = max(run["workers_mb"] for run in done)
        print_row(
            name,
            spread(list(rates[name].values())) + (f", {failed} failed" if failed else ""),
            f"{statistics.median(rates[name].values()) / bound:.0%}" if bound else "",
            spread(ratios(rates[HERE], rates[name])),
            f"{max(run['peak_mb'] for run in done):,.0f}",
            f"{workers:,.0f}" if workers else "",
            spread([run["first_step"] for run in done]),
        )
    if bound:
        print(
            f"\nAn image takes {flops / 1e9:.2f} GFLOP forward and backward: at most {bound:.2f} "
            "images/s at peak."
        )
    counts = {run["parameters"] for run in completed if "parameters" in run}
    if len(counts) > 1:
        print(f"\nNot the same architecture: {sorted(counts)} parameters.")


def ratios(values: dict[int, float], base: dict[int, float]) -> list[float]:
    """Returns values divided by those of the base, for the rounds that both completed."""
    return [values[number] / base[number] for number in values if number in base]


def spread(values: list[float]) -> str:
    """Returns the text "median (minimum to maximum)", with three digits."""
    if not values:
        return ""
    digits = max(0, 2 - math.floor(math.log10(min(values))))
    median, lowest, highest = statistics.median(values), min(values), max(values)
    return f"{median:,.{digits}f} ({lowest:,.{digits}f} to {highest:,.{digits}f})"


def print_header(title: str, *columns: str) -> None:
    print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")


def print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="the --output of against_others")
    lines = parser.parse_args().file.read_text(encoding="utf-8").splitlines()
    print_all([json.loads(line) for line in lines])


if __name__ == "__main__":
    main()
