"""Files that version 0.1 wrote are still read, and its runs resume to the same bytes.

Version 0.1 itself writes the files: its last commit is taken from the repository's history and run.
Where the checkout has no history, these tests are skipped.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from embedding_learning import load_model
from embedding_learning.__main__ import main
from embedding_learning.cli import train
from embedding_learning.model.weights.params_file import read_description, read_parameters
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

# The last commit of version 0.1, when all modules lay in one folder.
COMMIT = "337ec14b5e5e41e8b43a22e9debae56c415708a3"
# Two devices, beta of each image and a falling learning rate, so that the state has all its parts.
FLAGS = [
    *("--model=squeezenet1.1", "--image-size=40", "--crop-size=32", "--embed-dim=16", "--lr=0.001"),
    *("--batch-size=6", "--batch-k=3", "--batch-num=3", "--log-interval=2", "--workers=2"),
    *("--cpu-contexts=2", "--beta-per=image", "--steps=1", "--save-model-prefix=birds"),
]
METRICS = "recall@1,recall@2,map@r,r-precision,nmi,ami"


class Former(NamedTuple):
    """The files of version 0.1: folders that the tests copy before they change anything."""

    stopped: Path  # a run after one of two epochs, its network, embeddings and pixel cache
    finished: Path  # the same run, resumed by version 0.1 itself
    metrics: dict[str, float]  # of the network in `stopped`
    found: str  # what a search in the embeddings printed
    data: Path


# Runs several commands in one process, which imports MXNet once; prints their outputs.
COMMANDS = """
import contextlib, io, json, runpy, sys
outputs = []
for words in json.loads(sys.argv[1]):
    sys.argv = words
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            assert end.code == 0, words
    outputs.append(out.buffer.getvalue().decode())
print(json.dumps(outputs))
"""


def run(root: Path, folder: Path, *commands: list[str]) -> list[str]:
    """Runs commands of the checkout at `root`, in a process of its own; their outputs."""
    programs = {True: root / "train.py", False: root / "embedding_learning" / "__main__.py"}
    typed = [[str(programs[words[0].startswith("-")]), *words] for words in commands]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(typed)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT,
    )
    assert done.returncode == 0, done.stderr
    outputs: list[str] = json.loads(done.stdout)
    return outputs


def training(folder: Path, data: Path, *flags: str) -> list[str]:
    return [*FLAGS, f"--data-path={data}", f"--cache-dir={folder / 'cache'}", *flags]


def evaluation(folder: Path, data: Path) -> list[str]:
    flags = [f"--data-path={data}", f"--cache-dir={folder / 'cache'}", f"--metrics={METRICS}"]
    return ["evaluate", "birds.params", "--json", *flags]


EMBEDDING = ["embed", "birds.params", "images", "--output=photographs.npy"]
QUERY = "images/001.Bird_1/2.jpg"
SEARCH = ["search", "birds.params", "photographs.npy", QUERY, "-k=2", "--json"]


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory, write_cub: Callable[..., Path]) -> Former:
    archive = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip("the checkout has no history with version 0.1")
    folder = tmp_path_factory.mktemp("former")
    program = folder / "program"
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(program)
    data = write_cub(folder / "birds", [4] * 8)
    stopped, finished = folder / "stopped", folder / "finished"
    stopped.mkdir()
    (stopped / "images").symlink_to(data / "images")
    begin = training(stopped, data, "--epochs=1")
    *_, found, evaluated = run(
        program, stopped, begin, EMBEDDING, SEARCH, evaluation(stopped, data)
    )
    shutil.copytree(stopped, finished, symlinks=True)
    run(program, finished, training(finished, data, "--epochs=2", "--resume=auto"))
    return Former(stopped, finished, json.loads(evaluated), found, data)


@pytest.fixture
def copy(former: Former, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stopped run, to be changed; the working folder."""
    folder = Path(shutil.copytree(former.stopped, tmp_path / "copy", symlinks=True))
    monkeypatch.chdir(folder)
    return folder


def state(folder: Path) -> dict[str, bytes]:
    """The arrays of the last checkpoint."""
    arrays = load_file(max((folder / "birds.run").glob("checkpoint-*")))
    return {name: array.tobytes() for name, array in arrays.items()}


def network(file: Path) -> tuple[dict[str, bytes], dict[str, object]]:
    """The arrays and the description in a file of parameters."""
    arrays = read_parameters(str(file), "--resume")
    description = read_description(str(file), "--resume")
    assert description
    return {name: array.asnumpy().tobytes() for name, array in arrays.items()}, description


# What differs from run to run, and what version 0.1 computed with the beta of the next step.
NOT_COMPARED = {"seconds", "images_per_second", "waiting_share", "active_share"}


def records(folder: Path) -> list[dict[str, object]]:
    """Returns what the run measured."""
    lines = (folder / "birds.run" / "metrics.jsonl").read_text().splitlines()
    values = map(json.loads, lines)
    return [{name: v for name, v in line.items() if name not in NOT_COMPARED} for line in values]


def pixel_cache(folder: Path) -> dict[Path, tuple[int, int]]:
    """The files of decoded images: which they are, and when they were written."""
    files = (file for file in (folder / "cache").rglob("*") if file.is_file())
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def test_a_run_resumes_to_the_same_bytes(former: Former, copy: Path) -> None:
    assert train.main(training(copy, former.data, "--epochs=2", "--resume=auto")) == 0
    assert state(copy) == state(former.finished)
    assert records(copy) == records(former.finished)
    now, then = (network(folder / "birds.params") for folder in (copy, former.finished))
    assert now[0] == then[0]
    # Later versions may describe more.
    assert {**now[1], **then[1]} == now[1]


def test_a_network_starts_another_run(former: Former, copy: Path) -> None:
    flags = ["--epochs=1", "--init-from=birds.params", "--save-model-prefix=others"]
    assert train.main(training(copy, former.data, *flags)) == 0


def test_a_network_measures_the_same(
    former: Former, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(evaluation(copy, former.data)) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert {name: evaluated[name] for name in former.metrics} == former.metrics


def test_embeddings_are_read_and_are_the_same(
    former: Former, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(str(copy / "birds.params"))
    with open(copy / "photographs.csv", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    np.testing.assert_array_equal(model.embed(paths), np.load(copy / "photographs.npy"))
    capsys.readouterr()
    assert main(SEARCH) == 0
    assert capsys.readouterr().out == former.found


def test_decoded_images_are_kept_apart(former: Former, copy: Path) -> None:
    """Version 0.1 took damaged files for whole ones, so its pixels are not used."""
    before = pixel_cache(copy)
    assert before
    assert train.main(training(copy, former.data, "--epochs=1", "--save-model-prefix=other")) == 0
    after = pixel_cache(copy)
    assert before.items() < after.items()
    assert train.main(training(copy, former.data, "--epochs=1", "--save-model-prefix=next")) == 0
    assert pixel_cache(copy) == after
