"""How fast is exact search here, in faiss and in the original example, and how much memory?

    python -m tests.benchmarks.search --faiss-python VENV/bin/python --original PATH

VENV is an environment with faiss-cpu; PATH is the folder example/gluon/embedding_learning of
apache/mxnet 1.9.1, which needs the package bottleneck. A program that is not given is left out.
Each program is a process with the same number of threads, and waits while another one computes.

The embeddings are random and have 128 dimensions. The tasks, all of them unless --tasks names some:

- `1000`, `5924`, `60502`: Recall@1 to 16 of so many embeddings among each other.
- `1000000`: Recall@1 to 16 of 2,000 queries in a gallery of a million.
- `sop`: Recall@1, 10, 100, 1000 of 60,502 images of 11,316 classes, as Stanford Online Products.
- `cub`: that of 5,924 images of 100 classes, as CUB-200-2011, in the original's way.
- `million`: the 10 nearest of 1,000 queries in a million, which is mapped from a file.

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
from typing import NamedTuple

import numpy as np

DIMENSIONS = 128
SOP_RANKS, CUB_RANKS, NEAREST = (1, 10, 100, 1000), (1, 2, 4, 8, 16), 10
ROOT = Path(__file__).resolve().parents[2]


class Task(NamedTuple):
    """Embeddings that are searched, and the ranks of the recalls; none for distances alone.

    Attributes
    ----------
    images, classes : int
    noise : float
        The size of the difference from the class's center, so that classes overlap.
    ranks : tuple of int
    against : str
        The other program.
    queries : int
        Further embeddings of these classes that are searched for; 0: the images themselves.
    """

    images: int
    classes: int
    noise: float
    ranks: tuple[int, ...]
    against: str = "faiss"
    queries: int = 0


TASKS = {
    "1000": Task(1000, 17, 3.0, CUB_RANKS),
    "5924": Task(5924, 100, 3.0, CUB_RANKS),
    "60502": Task(60_502, 11_316, 1.3, CUB_RANKS),
    "1000000": Task(1_000_000, 100_000, 1.3, CUB_RANKS, queries=2000),
    "sop": Task(60_502, 11_316, 1.3, SOP_RANKS),
    "cub": Task(5924, 100, 3.0, CUB_RANKS, "original"),
    "million": Task(1_000_000, 1, 1e9, (), queries=1000),
}


def write_embeddings(folder: Path, name: str, scale: float) -> None:
    """Writes unit rows in classes that overlap, as those of a trained network do."""
    task, rng = TASKS[name], np.random.default_rng(0)
    classes = max(2, round(scale * task.classes))
    centers = rng.normal(size=(classes, DIMENSIONS))
    for part, count in (("images", task.images), ("queries", task.queries)):
        labels = np.sort(rng.integers(0, classes, round(scale * count)))
        np.save(folder / f"{name}_{part}_labels.npy", labels)
        shape = (len(labels), DIMENSIONS)
        file = np.lib.format.open_memmap(folder / f"{name}_{part}.npy", "w+", np.float32, shape)
        for start in range(0, len(labels), 10_000):
            rows = centers[labels[start : start + 10_000]]
            rows = rows + task.noise * rng.normal(size=rows.shape)
            file[start : start + len(rows)] = normalize(rows)
        file.flush()


def normalize(rows: np.ndarray) -> np.ndarray:
    """Returns the rows with unit length, as float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def load_program(name: str, folder: Path, original: Path | None) -> Callable[[], object]:
    """Returns the function to time; `name` is a task and a program, such as "sop faiss".

    It imports what it needs now, since each environment lacks packages that another one has.
    """
    name, _, program = name.partition(" ")
    task = TASKS[name]
    if not task.ranks:
        return load_million(folder, program)
    rows, labels = (np.load(folder / f"{name}_images{end}.npy") for end in ("", "_labels"))
    searched = ()
    if task.queries:
        searched = rows, labels
        rows, labels = (np.load(folder / f"{name}_queries{end}.npy") for end in ("", "_labels"))
    if program == "faiss":
        return load_faiss_recalls(task, rows, labels, *searched)
    if program == "original":
        return load_original_recalls(original, rows, labels)
    from embedding_learning.evaluation.metrics import recall_at_k

    return lambda: list(recall_at_k(rows, labels, task.ranks, *searched).values())


def load_faiss_recalls(
    task: Task,
    rows: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> Callable[[], object]:
    """Returns a search. It returns a function that computes the recalls: they are not timed."""
    import faiss

    index = faiss.IndexFlatL2(DIMENSIONS)
    index.add(rows if gallery is None else gallery)
    row_labels = labels if gallery_labels is None else gallery_labels
    listed = max(task.ranks) + (gallery is None)

    def search() -> Callable[[], object]:
        _, nearest = index.search(rows, listed)

        def recalls() -> list[float]:
            hits = np.zeros(listed)
            for query, neighbors in enumerate(nearest):
                others = neighbors[neighbors != query] if gallery is None else neighbors
                matches = row_labels[others] == labels[query]
                hits[matches.argmax()] += matches.any()
            return [float(hits[:k].sum() / len(rows)) for k in task.ranks]

        return recalls

    return search


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


def load_million(folder: Path, program: str) -> Callable[[], object]:
    """Returns the search of the queries' nearest rows in a file."""
    queries = np.load(folder / "million_queries.npy")
    gallery = np.load(folder / "million_images.npy", mmap_mode="r")
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
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the tasks")
    parser.add_argument("--work", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work[0], Path(args.work[1]), args.original and Path(args.original))
        return
    others = {"faiss": args.faiss_python, "original": args.original}
    print(f"{args.threads} threads, {args.rounds} rounds; median (minimum to maximum)")
    for task in args.tasks:
        with tempfile.TemporaryDirectory() as folder:
            write_embeddings(Path(folder), task, args.scale)
            against = TASKS[task].against
            names = [f"{task} here", *([f"{task} {against}"] if others[against] else [])]
            compare(names, args, Path(folder))


if __name__ == "__main__":
    main()
