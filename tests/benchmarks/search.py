"""Exact search here, by faiss and by the original example, in turn: seconds and added memory.

    python -m tests.benchmarks.search --faiss-python VENV/bin/python --original PATH

VENV holds faiss-cpu, which may be another environment than this one; PATH is the folder
example/gluon/embedding_learning of apache/mxnet 1.9.1. Without one of them it is left out. Each
contestant is a process of its own with the same number of threads, and waits while others run.

Three tasks, on drawn embeddings of 128 dimensions: the recalls of Stanford Online Products
(60,502 images of 11,316 classes among each other), those of CUB-200-2011 (5,924 of 100), and the
10 nearest of 1,000 queries in a million, which are mapped from a file.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

DIMENSIONS = 128
SOP_RANKS, CUB_RANKS, NEAREST = (1, 10, 100, 1000), (1, 2, 4, 8, 16), 10
ROOT = Path(__file__).resolve().parents[2]


def draw(folder: Path) -> None:
    """Unit rows in classes that overlap, as those of a trained network do."""
    rng = np.random.default_rng(0)
    for name, images, classes, noise in (("sop", 60_502, 11_316, 1.3), ("cub", 5_924, 100, 3.0)):
        labels = np.sort(rng.integers(0, classes, images))
        rows = rng.normal(size=(classes, DIMENSIONS))[labels]
        rows += noise * rng.normal(size=rows.shape)
        np.save(folder / f"{name}.npy", unit(rows))
        np.save(folder / f"{name}_labels.npy", labels)
    file, shape = folder / "million.npy", (1_000_000, DIMENSIONS)
    gallery = np.lib.format.open_memmap(file, "w+", np.float32, shape)
    for start in range(0, len(gallery), 10_000):
        gallery[start : start + 10_000] = unit(rng.normal(size=(10_000, DIMENSIONS)))
    gallery.flush()
    np.save(folder / "queries.npy", unit(rng.normal(size=(1000, DIMENSIONS))))


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def contestant(name: str, folder: Path, original: Path | None) -> Callable[[], object]:
    """What is timed; loaded here, since each environment lacks what another has."""
    task, _, who = name.partition(" ")
    file = {"million": "queries"}.get(task, task)
    rows = np.load(folder / f"{file}.npy")
    if task == "million":
        return million(rows, folder / "million.npy", who)
    labels = np.load(folder / f"{task}_labels.npy")
    if who == "faiss":
        return lambda: faiss_recalls(rows, labels)
    if who == "original":
        return original_recalls(original, rows, labels)
    from embedding_learning.evaluation.metrics import recall_at_k

    ks = SOP_RANKS if task == "sop" else CUB_RANKS
    return lambda: list(recall_at_k(rows, labels, ks).values())


def faiss_recalls(rows: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """The search alone is timed; the recalls are computed after it, to compare them."""
    import faiss

    index = faiss.IndexFlatL2(DIMENSIONS)
    index.add(rows)
    _, found = index.search(rows, max(SOP_RANKS) + 1)

    def recalls() -> list[float]:
        hit = np.zeros(max(SOP_RANKS) + 1)
        for query, neighbors in enumerate(found):
            match = labels[neighbors[neighbors != query]] == labels[query]
            hit[match.argmax()] += match.any()
        return [float(hit[:k].sum() / len(rows)) for k in SOP_RANKS]

    return recalls


def original_recalls(folder: Path, rows: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """The original's two functions; its file as a whole would begin to train."""
    import embedding_learning  # noqa: F401  makes MXNet ready

    # isort: split
    import bottleneck
    from mxnet import nd

    names = {"get_distance_matrix", "evaluate_emb"}
    tree = ast.parse((folder / "train.py").read_text(encoding="utf-8"))
    tree.body = [part for part in tree.body if getattr(part, "name", None) in names]
    found = {"nd": nd, "argpartition": bottleneck.argpartition}
    exec(compile(tree, "train.py", "exec"), found)
    x, y = nd.array(rows), nd.array(labels)
    nd.waitall()
    return lambda: found["evaluate_emb"](x, y)[1]


def million(queries: np.ndarray, file: Path, who: str) -> Callable[[], object]:
    gallery = np.load(file, mmap_mode="r")
    if who == "faiss":
        import faiss

        index = faiss.IndexFlatL2(DIMENSIONS)
        index.add(gallery)
        return lambda: last_distance(np.sqrt(index.search(queries, NEAREST)[0]))
    from embedding_learning.evaluation.neighbors import find_nearest

    return lambda: last_distance(find_nearest(queries, NEAREST, gallery)[0])


def last_distance(distances: np.ndarray) -> float:
    """Mean distance of the last neighbor."""
    return float(distances[:, -1].mean(dtype=np.float64))


def work(name: str, folder: Path, original: Path | None) -> None:
    """For each line of input once: seconds, added memory in MB, and the result."""
    run = contestant(name, folder, original)
    print("ready", flush=True)
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak
        before = memory("VmRSS")
        started = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - started
        added = memory("VmHWM") - before
        print(seconds, added, result() if callable(result) else result, flush=True)
        del result


def memory(kind: str) -> float:
    """Of this process, in MB, pages of mapped files included."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{kind}:\s+(\d+)", status)[1]) / 1e3


def compare(names: list[str], args: argparse.Namespace, folder: Path) -> None:
    """In turn, so that a drifting machine is fair; a first call of each does not count."""
    threads = {name: str(args.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    workers = {}
    for name in names:
        python = args.faiss_python if name.endswith("faiss") else sys.executable
        command = [python, "-m", "tests.benchmarks.search", "--work", name, str(folder)]
        command += ["--original", args.original] if args.original else []
        workers[name] = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | threads, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
    figures: dict[str, list[tuple[float, float, str]]] = {name: [] for name in names}
    for worker in workers.values():
        worker.stdout.readline()
    for _ in range(1 + args.rounds):
        for name, worker in workers.items():
            worker.stdin.write("\n")
            worker.stdin.flush()
            seconds, added, result = worker.stdout.readline().split(maxsplit=2)
            figures[name].append((float(seconds), float(added), result.strip()))
    for worker in workers.values():
        worker.communicate()
    ours = [seconds for seconds, _, _ in figures[names[0]][1:]]
    for name, calls in figures.items():
        seconds = [s for s, _, _ in calls[1:]]
        ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, seconds))
        print(
            f"{name:18s} {statistics.median(seconds):9.3f} s ({min(seconds):.3f} to "
            f"{max(seconds):.3f}), {max(added for _, added, _ in calls):6.0f} MB added at most; "
            f"ours takes {ratio:.3f} of it; {calls[-1][2]}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faiss-python", metavar="PATH", help="a Python that has faiss-cpu")
    parser.add_argument("--original", metavar="PATH", help="folder of the original example")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work[0], Path(args.work[1]), args.original and Path(args.original))
        return
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        print(f"{args.threads} threads, {args.rounds} rounds; median (least to most)")
        faiss, original = ["faiss"] * bool(args.faiss_python), ["original"] * bool(args.original)
        for task, others in (("sop", faiss), ("cub", original), ("million", faiss)):
            names = [f"{task} ours", *(f"{task} {other}" for other in others)]
            compare(names, args, Path(folder))


if __name__ == "__main__":
    main()
