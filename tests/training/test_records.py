"""A run's records: written and read, and cut off where a resumed run starts."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from embedding_learning.errors import DataError
from embedding_learning.training import records
from embedding_learning.training.records import Recorder, RunInfo
from embedding_learning.training.run_folder import RECORDS


def write(folder: Path, size: int, batches: range, loss: float = 0.5) -> int:
    with Recorder(folder, size, 10.0, None) as recorder:
        for batch in batches:
            with recorder.waiting():
                pass
            recorder.interval(0, batch, batch, 70, {"loss": loss}, {})
        return recorder.flush()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 3))
    first, second = records.read(tmp_path)
    assert (first["kind"], first["epoch"], first["batch"], first["loss"]) == ("interval", 0, 1, 0.5)
    assert 10 <= first["seconds"] <= second["seconds"] < 60
    assert first["images_per_second"] > 0
    assert 0 <= first["waiting_share"] <= 1


def test_distances_are_counted(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0, 10.0, None)
    distances = {
        "all_negative_distances": np.array([0.0, 1.0, 1.01, 2.0]),
        "negative_distances": np.float32([1.0]),
        "positive_distances": np.float32([0.3, 0.3]),
        "active": np.array([True]),
    }
    recorder.distances(2, 20, 128, (0.5, 1.4), distances)
    recorder.distances(2, 40, 128, (), distances)
    recorder.__exit__()
    first, second = records.read(tmp_path)
    assert list(first) == ["kind", "epoch", "batch", "seconds", "dimension", "cutoffs",
                           "negatives", "drawn", "positives"]  # fmt: skip
    assert [first[name] for name in ("kind", "epoch", "batch")] == ["distances", 2, 20]
    assert (first["dimension"], first["cutoffs"], second["cutoffs"]) == (128, [0.5, 1.4], [])
    for name, expected in (
        ("negatives", {0: 1, 40: 2, 79: 1}),
        ("drawn", {40: 1}),
        ("positives", {12: 2}),
    ):
        assert len(first[name]) == 80
        assert {bin: count for bin, count in enumerate(first[name]) if count} == expected


def test_going_on_cuts_off_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    size = write(tmp_path, 0, range(1, 3))
    write(tmp_path, size, range(3, 6))
    write(tmp_path, size, range(3, 5), loss=0.25)
    assert [record["batch"] for record in records.read(tmp_path)] == [1, 2, 3, 4]
    assert [record["loss"] for record in records.read(tmp_path)] == [0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("is_missing", [False, True])
def test_going_on_after_records_that_are_cut_off_keeps_the_whole_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_missing: bool
) -> None:
    size = write(tmp_path, 0, range(1, 4))
    file = tmp_path / RECORDS
    os.truncate(file, size - 9)
    if is_missing:
        file.unlink()
    write(tmp_path, size, range(4, 6))
    assert [r["batch"] for r in records.read(tmp_path)] == ([] if is_missing else [1, 2]) + [4, 5]
    found = 0 if is_missing else size - 9
    (line,) = caplog.messages
    assert line == f"{file}: records are missing: it has {found} bytes of the run, not {size}."


def test_records_that_were_removed_are_written_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0, 0.0, None)
    recorder.evaluation(0, 1, 1, {"nmi": 0.5})
    recorder.flush()
    (tmp_path / RECORDS).unlink()
    recorder.write_again()
    recorder.evaluation(1, 1, 2, {"nmi": 0.75})
    recorder.__exit__()
    assert [record["nmi"] for record in records.read(tmp_path)] == [0.5, 0.75]


def test_a_full_disk_is_raised_once_and_closing_is_quiet(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0, 0.0, None)
    recorder._file.close()
    recorder._file = open("/dev/full", "wb")  # noqa: SIM115
    recorder.evaluation(0, 1, 1, {"nmi": 0.5})
    with pytest.raises(OSError, match="No space left"):
        recorder.flush()
    recorder.__exit__()


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 2), loss=float("nan"))
    (record,) = records.read(tmp_path)
    assert record["loss"] is None


def test_a_last_line_that_is_cut_off_is_left_out_and_others_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 3))
    file = tmp_path / RECORDS
    whole = file.read_text()
    file.write_text(whole[:-20])
    assert len(records.read(tmp_path)) == 1
    file.write_text("{" + whole)
    with pytest.raises(DataError, match=f"{RECORDS}:1: is not a JSON object"):
        records.read(tmp_path)
    file.write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=f"{RECORDS}: is no text; the file was changed"):
        records.read(tmp_path)
    file.unlink()
    message = f"{RECORDS}: cannot be read: No such file or directory; name the folder of a run$"
    with pytest.raises(DataError, match=message):
        records.read(tmp_path)


def test_the_run_is_described(tmp_path: Path) -> None:
    info = RunInfo(["--lr=1", "--data-path=a b"], "Birds", {"numpy": "2.1.3"})
    info.write(tmp_path)
    assert RunInfo.read(tmp_path) == info


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"arguments": "x", "data": 1, "made_with": {}}', "[" * 10000,
     '{"arguments": [1], "data": "x", "made_with": {}}'],
)  # fmt: skip
def test_run_info_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(DataError, match="is missing or damaged"):
        RunInfo.read(tmp_path)


def test_a_run_goes_on_without_tensorboard_when_its_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, by no traceback of the thread that writes, and for one board alone."""
    pytest.importorskip("tensorboardX")
    from tensorboardX import record_writer

    from embedding_learning.training.tensorboard import TensorBoard

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    board = TensorBoard(str(tmp_path / "full"), 0)
    with monkeypatch.context() as patch:
        patch.setattr(record_writer.RecordWriter, "write", full)
        patch.setattr(record_writer.RecordWriter, "flush", full)
        for step in range(50):
            board.scalars("interval", step, {"loss": 0.5})
        pixels = np.zeros((6, 40, 40, 3), np.uint8)
        board.project(1, np.eye(6, dtype=np.float32), np.arange(6), list("abcdef"), pixels)
        board.close()
    assert caplog.messages == [
        f"--tensorboard {tmp_path / 'full'}: cannot be written to: No space left on "
        "device; the run continues without it."
    ]
    other = TensorBoard(str(tmp_path / "other"), 0)
    other.scalars("interval", 1, {"loss": 0.5})
    other.close()
    assert b"interval/loss" in next((tmp_path / "other").glob("events*")).read_bytes()


def test_tensorboard_is_shown_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensorboard = pytest.importorskip("tensorboardX")
    from embedding_learning.training.tensorboard import TensorBoard

    assert tensorboard
    board = TensorBoard(str(tmp_path / "board"), 0)
    recorder = Recorder(tmp_path, 0, 0.0, board)
    recorder.interval(0, 1, 1, 70, {"loss": 0.5}, {"positive_distances": np.ones(5)})
    recorder.evaluation(0, 1, 1, {"recall@1": 0.75})
    names = ("all_negative_distances", "negative_distances", "positive_distances")
    recorder.distances(0, 1, 8, (), {name: np.ones(5) for name in names})
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), np.uint8)
    names = ["crow", "a\tb\nc", "日本", "d", "e", "f"]
    for step in (1, 2, 2):
        board.project(
            step, np.eye(6, dtype=np.float32), np.arange(6, dtype=np.float32), names, pixels
        )
    recorder.__exit__()
    written = b"".join(file.read_bytes() for file in (tmp_path / "board").glob("events*"))
    for name in (b"interval/loss", b"positive_distances", b"evaluation/recall_1"):
        assert name in written
    for step in ("00001", "00002"):
        projection = tmp_path / "board" / step / "test_images"
        assert (projection / "sprite.png").stat().st_size > 1000
        shown = (projection / "metadata.tsv").read_text(encoding="utf-8").splitlines()
        assert sorted(shown) == sorted(["crow", "a b c", "日本", "d", "e", "f"])
    # Coming to a step again is no matter for a warning.
    assert capsys.readouterr() == ("", "")
    assert json.loads((tmp_path / RECORDS).read_text().splitlines()[1])["recall@1"] == 0.75
