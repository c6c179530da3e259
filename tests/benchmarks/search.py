"""How fast is exact search here, in faiss and in the original example, and how much memory?

    python -m tests.benchmarks.search --faiss-python VENV/bin/python --original PATH

VENV is an environment with faiss-cpu; PATH is the folder example/gluon/embedding_learning of
apache/mxnet 1.9.1, which needs the package bottleneck. A program that is not given is left out.
Each program is a process with the same number of threads, and waits while another one computes.

The embeddings are random and have 128 dimensions. The tasks are the recalls of Stanford Online
Products (60,502 images of 11,316 classes among each other), those of CUB-200-2011 (5,924 images of
100 classes), and the 10 nearest of 1,000 queries in a million, which is mapped from a file.
--scale 0.1 makes all of them ten times smaller. Prints seconds and added memory.
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


def write_embeddings(folder: Path, scale: float) -> None:
    """Writes unit rows in classes that overlap, as those of a trained network do."""
    rng = np.random.default_rng(0)
    for name, images, classes, noise in (("sop", 60_502, 11_316, 1.3), ("cub", 5_924, 100, 3.0)):
        images, classes = round(scale * images), max(2, round(scale * classes))
        labels = np.sort(rng.integers(0, classes, images))
        rows = rng.normal(size=(classes, DIMENSIONS))[labels]
        rows += noise * rng.normal(size=rows.shape)
        np.save(folder / f"{name}.npy", normalize(rows))
        np.save(folder / f"{name}_labels.npy", labels)
    shape = (round(scale * 1_000_000), DIMENSIONS)
    gallery = np.lib.format.open_memmap(folder / "million.npy", "w+", np.float32, shape)
    for start in range(0, len(gallery), 10_000):
        rows = gallery[start : start + 10_000]
        rows[:] = normalize(rng.normal(size=rows.shape))
    gallery.flush()
    queries = rng.normal(size=(round(scale * 1000), DIMENSIONS))
    np.save(folder / "queries.npy", normalize(queries))


def normalize(rows: np.ndarray) -> np.ndarray:
    """Returns the rows with unit length, as float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def load_program(name: str, folder: Path, original: Path | None) -> Callable[[], object]:
    """Returns the function to time; `name` is a task and a program, such as "sop faiss".

    It imports what it needs now, since each environment lacks packages that another one has.
    """
    task, _, program = name.partition(" ")
    file = {"million": "queries"}.get(task, task)
    rows = np.load(folder / f"{file}.npy")
    if task == "million":
        return load_million(rows, folder / "million.npy", program)
    labels = np.load(folder / f"{task}_labels.npy")
    if program == "faiss":
        return lambda: faiss_recalls(rows, labels)
    if program == "original":
        return load_original_recalls(original, rows, labels)
    from embedding_learning.evaluation.metrics import recall_at_k

    ks = SOP_RANKS if task == "sop" else CUB_RANKS
    return lambda: list(recall_at_k(rows, labels, ks).values())


def faiss_recalls(rows: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """Searches, and returns a function that computes the recalls; only the search is timed."""
    import faiss

    index = faiss.IndexFlatL2(DIMENSIONS)
    index.add(rows)
    _, nearest = index.search(rows, max(SOP_RANKS) + 1)

    def recalls() -> list[float]:
        hits = np.zeros(max(SOP_RANKS) + 1)
        for query, neighbors in enumerate(nearest):
            matches = labels[neighbors[neighbors != query]] == labels[query]
            hits[matches.argmax()] += matches.any()
        return [float(hits[:k].sum() / len(rows)) for k in SOP_RANKS]

    return recalls


def load_original_recalls(
    folder: Path, rows: np.ndarray, labels: np.ndarray
) -> Callable[[], object]:
    """Returns the original's evaluation. Only two functions are compiled: its file would train."""
    import embedding_learning  # noqa: F401  prepares the import of MXNet

    # isort: split
    import bottleneck
    from mxnet import nd

    names = {"get_distance_matrix", "evaluate_emb"}
    tree = ast.parse((folder / "train.py").read_text(encoding="utf-8"))
    tree.body = [part for part in tree.body if getattr(part, "name", None) in names]
    functions = {"nd": nd, "argpartition": bottleneck.argpartition}
    exec(compile(tree, "train.py", "exec"), functions)
    x, y = nd.array(rows), nd.array(labels)
    nd.waitall()
    return lambda: functions["evaluate_emb"](x, y)[1]


def load_million(queries: np.ndarray, file: Path, program: str) -> Callable[[], object]:
    """Returns the search of the queries' nearest rows in a file."""
    gallery = np.load(file, mmap_mode="r")
    if program == "faiss":
        import faiss

        index = faiss.IndexFlatL2(DIMENSIONS)
        index.add(gallery)
        return lambda: last_distance(np.sqrt(index.search(queries, NEAREST)[0]))
    from embedding_learning.evaluation.neighbors import find_nearest

    return lambda: last_distance(find_nearest(queries, NEAREST, gallery)[0])


def last_distance(distances: np.ndarray) -> float:
    """Returns the mean distance of the last neighbor."""
    return float(distances[:, -1].mean(dtype=np.float64))


def work(name: str, folder: Path, original: Path | None) -> None:
    """Calls the function for each line of input; prints seconds, added MB and the result."""
    run = load_program(name, folder, original)
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


def memory(entry: str) -> float:
    """Returns the memory of this process in MB, pages of mapped files included."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{entry}:\s+(\d+)", status)[1]) / 1e3


def compare(names: list[str], args: argparse.Namespace, folder: Path) -> None:
    """Times the programs in turn, so that changes of the machine's speed affect all alike.

    The first call of each does not count. The first program is this one.
    """
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
    own_seconds = [seconds for seconds, _, _ in figures[names[0]][1:]]
    for name, calls in figures.items():
        seconds = [s for s, _, _ in calls[1:]]
        ratio = statistics.median(own / other for own, other in zip(own_seconds, seconds))
        print(
            f"{name:18s} {statistics.median(seconds):9.3f} s ({min(seconds):.3f} to "
            f"{max(seconds):.3f}), at most {max(added for _, added, _ in calls):6.0f} MB added; "
            f"this program takes {ratio:.3f} of the time; result {calls[-1][2]}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faiss-python", metavar="PATH", help="a Python that has faiss-cpu")
    parser.add_argument("--original", metavar="PATH", help="folder of the original example")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the tasks")
    parser.add_argument("--work", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work[0], Path(args.work[1]), args.original and Path(args.original))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_embeddings(Path(folder), args.scale)
        print(f"{args.threads} threads, {args.rounds} rounds; median (minimum to maximum)")
        faiss, original = ["faiss"] * bool(args.faiss_python), ["original"] * bool(args.original)
        for task, others in (("sop", faiss), ("cub", original), ("million", faiss)):
            names = [f"{task} here", *(f"{task} {other}" for other in others)]
            compare(names, args, Path(folder))


if __name__ == "__main__":
    main()
