"""Resumable output: the same files at the end, however often it was interrupted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_learning.errors import UsageError
from embedding_learning.inference import resumable_output
from embedding_learning.inference.resumable_output import ResumableOutput, check_output
from embedding_learning.runtime import file_locks
from tests.helpers.paths import ROOT

IMAGES, DIMENSION, AT_ONCE = 23, 3, 4
VECTORS = np.random.default_rng(0).normal(size=(IMAGES, DIMENSION)).astype(np.float32)
BAD = [0, 1, 2, 3, 9, 21]
PATHS = [f"/photos/{row}.jpg" for row in range(IMAGES)]
LABELS = [f"class {row % 3}" for row in range(IMAGES)]


@pytest.fixture(autouse=True)
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable_output, "_SECONDS_BETWEEN_SAVES", -1)


def embed(
    output: Path,
    before_batch: Callable[[int], None] = lambda row: None,
    identity: str = "one",
    overwrite: bool = False,
    vectors: np.ndarray = VECTORS,
    labels: list[str] = LABELS,
) -> int:
    """All that is not done yet, in batches; the number of images that were not."""
    with ResumableOutput(str(output), identity, DIMENSION, overwrite) as file:
        started = file.done
        for row in range(started, IMAGES, AT_ONCE):
            before_batch(row)
            rows = range(row, min(row + AT_ONCE, IMAGES))
            bad = [image for image in rows if image in BAD]
            good = [image for image in rows if image not in BAD]
            file.append(vectors[good], len(rows), bad)
        assert file.left_out == BAD
        assert file.finish(PATHS, labels, identity) == IMAGES - len(BAD)
    return IMAGES - started


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_whole(output: Path, vectors: np.ndarray = VECTORS) -> None:
    found = np.load(output, mmap_mode="r", allow_pickle=False)
    np.testing.assert_array_equal(found, np.delete(vectors, BAD, axis=0))
    assert found.dtype == np.float32
    assert output.stat().st_size == 128 + found.nbytes
    lines = output.with_suffix(".csv").read_text().splitlines()
    kept = [row for row in range(IMAGES) if row not in BAD]
    expected = [f"{number},{PATHS[row]},{LABELS[row]}" for number, row in enumerate(kept)]
    assert lines == ["row,path,label", *expected]
    name = output.name
    assert names(output.parent) == [output.with_suffix(".csv").name, name, f"{name}.json"]


def test_both_files_are_there_in_the_end_and_nothing_else(tmp_path: Path) -> None:
    assert embed(tmp_path / "e.npy") == IMAGES
    assert_whole(tmp_path / "e.npy")


@pytest.mark.parametrize("at", range(0, IMAGES, AT_ONCE))
def test_what_ends_it_costs_nothing_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(resumable_output, "_SECONDS_BETWEEN_SAVES", 1000)

    def stop(row: int) -> None:
        if row == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(tmp_path / "e.npy", stop)
    # What holds nothing is not left behind.
    assert names(tmp_path) == (["e.npy.partial", "e.npy.partial.json"] if at else [])
    assert embed(tmp_path / "e.npy") == IMAGES - at
    assert_whole(tmp_path / "e.npy")


def watch_system(monkeypatch: pytest.MonkeyPatch, before_call: Callable[..., None]) -> None:
    """Has a function called before each call that brings something to the disk or renames it."""

    def watched(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def watch_first(*arguments: object) -> object:
            before_call(name, *arguments)
            return call(*arguments)

        return watch_first

    for name in ("fsync", "replace", "remove"):
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))


def test_a_kill_at_any_call_to_the_system_leaves_what_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files as each call found them, as a kill there would have left them."""
    home, seen = tmp_path / "home", []
    home.mkdir()

    def copy(*_: object) -> None:
        seen.append(tmp_path / f"kill {len(seen)}")
        shutil.copytree(home, seen[-1])

    watch_system(monkeypatch, copy)
    embed(home / "e.npy")
    monkeypatch.undo()
    assert len(seen) > 30
    done = set()
    for folder in seen:
        done.add(IMAGES - embed(folder / "e.npy"))
        assert_whole(folder / "e.npy")
    assert done == {*range(0, IMAGES, AT_ONCE), IMAGES}


def test_at_no_time_do_the_files_belong_to_different_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "e.npy"
    seen = set()

    def look(*_: object) -> None:
        if output.exists():
            label = (tmp_path / "e.csv").read_text().splitlines()[1].split(",")[2]
            model = json.loads((tmp_path / "e.npy.json").read_text())["model"]
            seen.add((label, model, float(np.load(output)[0, 0])))

    embed(output)
    before = set(os.listdir(tmp_path))
    watch_system(monkeypatch, look)
    embed(output, identity="two", vectors=VECTORS + 1, labels=["new"] * IMAGES)
    look()
    assert seen == {(LABELS[4], "one", VECTORS[4, 0]), ("new", "two", (VECTORS + 1)[4, 0])}
    assert set(os.listdir(tmp_path)) == before


def test_vectors_reach_the_disk_before_the_state_that_speaks_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / "e.npy.partial"
    safe, states = [0], []

    def note(call: str, *arguments: Any) -> None:
        if call == "fsync" and os.fstat(arguments[0]).st_ino == partial.stat().st_ino:
            safe.append(partial.stat().st_size)
        if call == "replace" and arguments[1] == f"{partial}.json":
            state = json.loads(Path(arguments[0]).read_text())
            rows = state["done"] - len(state["left_out"])
            states.append(state["done"])
            assert rows == 0 or safe[-1] == 128 + rows * DIMENSION * 4
        if call == "replace" and arguments[1] == str(tmp_path / "e.npy"):
            assert np.load(partial).shape == (IMAGES - len(BAD), DIMENSION)
            assert safe[-2:] == [partial.stat().st_size] * 2

    watch_system(monkeypatch, note)
    embed(tmp_path / "e.npy")
    assert states == [0, *range(AT_ONCE, IMAGES, AT_ONCE), IMAGES, IMAGES]


def test_what_was_not_saved_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between two saves, with values in the file that its state does not speak of."""
    monkeypatch.setattr(resumable_output, "_SECONDS_BETWEEN_SAVES", 1000)
    output, partial = tmp_path / "e.npy", tmp_path / "e.npy.partial"
    file = ResumableOutput(str(output), "one", DIMENSION, False).__enter__()
    file.append(VECTORS[4:8], 8, BAD[:4])
    file._save()
    file.append(VECTORS[[8, 10]], 3, [9])
    file._file.close()
    assert partial.stat().st_size == 128 + 6 * DIMENSION * 4
    assert embed(output) == IMAGES - 8
    assert_whole(output)


def test_it_is_saved_from_time_to_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(resumable_output, "_SECONDS_BETWEEN_SAVES", 10)
    monkeypatch.setattr(resumable_output.time, "monotonic", lambda: now[0])
    state = tmp_path / "e.npy.partial.json"
    with ResumableOutput(str(tmp_path / "e.npy"), "one", DIMENSION, False) as file:
        done = []
        for seconds in (9, 11, 12, 20, 22):
            now[0] = seconds
            file.append(VECTORS[:2], 2, [])
            done.append(json.loads(state.read_text())["done"])
    assert done == [0, 4, 4, 4, 10]
    assert json.loads(state.read_text())["done"] == 10


def test_other_embeddings_are_not_mixed_in(tmp_path: Path) -> None:
    def stop(row: int) -> None:
        if row == 12:
            raise KeyboardInterrupt

    output = tmp_path / "e.npy"
    with pytest.raises(KeyboardInterrupt):
        embed(output, stop)
    before = (tmp_path / "e.npy.partial").read_bytes()
    with pytest.raises(UsageError, match=r"was started with another model.* --overwrite"):
        embed(output, identity="two")
    assert (tmp_path / "e.npy.partial").read_bytes() == before
    # Started from scratch and killed before anything is computed: the first cannot resume it.
    with pytest.raises(KeyboardInterrupt):
        embed(output, lambda row: stop(12), identity="two", overwrite=True)
    assert embed(output, overwrite=True, vectors=VECTORS + 1) == IMAGES
    assert_whole(output, VECTORS + 1)


def test_an_output_is_replaced_only_in_the_end(tmp_path: Path) -> None:
    output = tmp_path / "e.npy"
    embed(output)

    def look(row: int) -> None:
        found = np.load(output)
        np.testing.assert_array_equal(found, np.delete(VECTORS, BAD, axis=0))
        if row == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(output, look, "two", vectors=VECTORS + 1)
    assert embed(output, identity="two", vectors=VECTORS + 1) == IMAGES - 8
    assert_whole(output, VECTORS + 1)


@pytest.mark.parametrize(
    "state",
    [
        "",
        "{",
        "[1]",
        '{"identity": "one"}',
        '{"identity": "one", "done": "8", "left_out": []}',
        '{"identity": "one", "done": 8, "left_out": [3, 1]}',
        '{"identity": "one", "done": 8, "left_out": [8]}',
        '{"identity": "one", "done": 8, "left_out": [-1]}',
        '{"identity": "one", "done": 8, "left_out": [true]}',
        '{"identity": "one", "done": -8, "left_out": []}',
        '{"done": 8, "left_out": []}',
        '{"identity": "one", "done": 1000, "left_out": []}',
        "[" * 5000,
    ],
)
def test_a_damaged_state_starts_from_scratch(tmp_path: Path, state: str) -> None:
    (tmp_path / "e.npy.partial").write_bytes(b"\xff" * 500)
    (tmp_path / "e.npy.partial.json").write_text(state)
    assert embed(tmp_path / "e.npy") == IMAGES
    assert_whole(tmp_path / "e.npy")


def test_a_file_that_lost_values_starts_from_scratch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(row: int) -> None:
        if row == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(tmp_path / "e.npy", stop)
    partial = tmp_path / "e.npy.partial"
    partial.write_bytes(partial.read_bytes()[:-1])
    assert embed(tmp_path / "e.npy") == IMAGES
    assert "is damaged: starting again" in caplog.text
    assert_whole(tmp_path / "e.npy")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    def second(row: int) -> None:
        with pytest.raises(UsageError, match="another process is writing it"):
            embed(tmp_path / "e.npy")

    embed(tmp_path / "e.npy", second)
    assert_whole(tmp_path / "e.npy")


def test_a_file_that_was_finished_meanwhile_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process opens the file, the first finishes it, the second gets the lock."""
    output = tmp_path / "e.npy"
    flock = file_locks.fcntl.flock

    def finish_first(*arguments: object) -> None:
        monkeypatch.undo()
        os.replace(tmp_path / "e.npy.partial", output)
        flock(*arguments)

    monkeypatch.setattr(file_locks.fcntl, "flock", finish_first)
    with pytest.raises(UsageError, match="another process is writing it"):
        embed(output)
    assert output.read_bytes() == b""


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("dear to me")
    (tmp_path / "e.npy.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError):
        embed(tmp_path / "e.npy")
    assert (tmp_path / "mine").read_text() == "dear to me"


def test_all_images_may_be_left_out_so_far(tmp_path: Path) -> None:
    with ResumableOutput(str(tmp_path / "e.npy"), "one", DIMENSION, False) as file:
        file.append(VECTORS[:0], 4, [0, 1, 2, 3])
    with ResumableOutput(str(tmp_path / "e.npy"), "one", DIMENSION, False) as file:
        assert (file.done, file.left_out) == (4, [0, 1, 2, 3])


@pytest.mark.parametrize(
    "name, message",
    [
        ("e.np", "end the name in .npy"),
        ("e", "end the name in .npy"),
        ("nowhere/e.npy", "nowhere does not exist"),
        ("data.npy", "data.csv, which is no list of embeddings; name another"),
        ("folder.npy", "is a folder"),
    ],
)
def test_an_output_that_cannot_be_is_reported_before_anything_is_written(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "data.csv").write_text("path,label,split\n")
    (tmp_path / "folder.npy").mkdir()
    before = names(tmp_path)
    with pytest.raises(UsageError) as caught:
        check_output(str(tmp_path / name))
    assert message in str(caught.value)
    assert names(tmp_path) == before


def test_a_kill_of_the_process_is_gone_on_from(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from tests.inference import test_resumable_output as t\n"
        "t.resumable_output._SECONDS_BETWEEN_SAVES = -1\n"
        "kill = lambda row: os.kill(os.getpid(), 9) if row == 12 else None\n"
        "t.embed(t.Path(sys.argv[1]), kill)\n"
    )
    root = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "e.npy"), root])
    assert done.returncode == -9
    assert embed(tmp_path / "e.npy") == IMAGES - 12
    assert_whole(tmp_path / "e.npy")
