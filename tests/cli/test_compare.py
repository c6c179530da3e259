"""`compare`: its checks, its runs, how it resumes, and one complete comparison."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from embedding_learning import plots
from embedding_learning.cli import compare, train
from embedding_learning.cli.train_flags import leave_out_unused, parse
from embedding_learning.errors import DataError, Interrupted, UsageError
from embedding_learning.experiments import process_pool, results, sweep
from embedding_learning.experiments.results import Cell, Trial
from embedding_learning.model.weights.params_file import read_description
from tests.helpers.fake_trials import write_run
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.tiny_backbone import PYTHONPATH

# Stands in for train.py: writes its arguments, then the records of a run. The file `what` next to
# it decides whether it fails, waits to be stopped after its first epoch, or follows one that waits.
STAND_IN = """
import json, os, pathlib, signal, sys, time

def flag(name):
    flags = ["--held-out=", "--held-out-fold=0", *sys.argv]
    return [f.split("=", 1)[1] for f in flags if f.startswith(name + "=")][-1]

place, epochs = flag("--save-model-prefix"), int(flag("--epochs"))
here, what = pathlib.Path(__file__).parent, {}
if (here / "what").exists():
    what = json.loads((here / "what").read_text())
ends = what.get(os.path.basename(place))

def note(text):
    with open(here / "calls", "a") as file:
        file.write(json.dumps([text, sys.argv[1:], os.environ["OMP_NUM_THREADS"]]) + "\\n")

def stop(*_):
    note("stopped")
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
# Ctrl-C is for the comparison alone, which passes it on.
assert os.getsid(0) == os.getpid()
note("start")
print("begun", flush=True)
if ends == "fails":
    print("Oh dear.\\ntrain.py: stopped: it\\033 diverged", file=sys.stderr)
    sys.exit(3)
while ends == "follows" and not (here / "waits").exists():
    time.sleep(0.01)
run = pathlib.Path(place + ".run")
run.mkdir(exist_ok=True)
info = {"arguments": sys.argv[1:], "data": "Birds | whole", "made_with": {}}
(run / "run.json").write_text(json.dumps(info))
file = run / "metrics.jsonl"
done = len(file.read_text().splitlines()) if file.exists() else 0
for epoch in range(done, epochs):
    recalls = [0.75, 0.5, 0.25] if flag("--held-out") == "0" else [0.25, 0.75, 0.5]
    if flag("--held-out-fold") in ("2", "3") and flag("--held-out") != "0":
        recalls = [0.25, 0.6, 0.9]
    recall = recalls[epoch] + int(flag("--seed")) / 100
    if ends == "idles":
        continue
    line = {"kind": "evaluation", "epoch": epoch, "seconds": epoch + 1.0, "recall@1": recall}
    with open(file, "a") as records:
        records.write(json.dumps(line) + "\\n")
    if ends == "waits":
        (here / "waits").touch()
        time.sleep(10**6)
while (here / "calls").read_text().count('["start"') < what.get("at_once", 0):
    time.sleep(0.01)
note("end")
"""
FLAGS = ["--data-path=birds", "--epochs=3"]
PLOT = plots.plot_comparison


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the stand-in of train.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(STAND_IN)
    command = [sys.executable, str(tmp_path / "train.py")]
    monkeypatch.setattr(process_pool, "train_command", lambda: command)
    monkeypatch.setattr(process_pool, "_PAUSE", 0.01)
    monkeypatch.setattr("embedding_learning.data.build.read_split", lambda options: None)
    # Drawing takes longer than all runs of the stand-in.
    monkeypatch.setattr(plots, "plot_comparison", lambda _, path, *__: Path(path).touch())
    return tmp_path


def calls(folder: Path) -> list[tuple[str, list[str], str]]:
    """Returns what the stand-ins wrote: start, end or stopped, the flags, the threads."""
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def flag(flags: list[str], name: str) -> str:
    return [text.split("=", 1)[1] for text in flags if text.startswith(f"{name}=")][-1]


def started(folder: Path) -> list[str]:
    return [
        os.path.basename(flag(flags, "--save-model-prefix"))
        for what, flags, _ in calls(folder)
        if what == "start"
    ]


def read_csv(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--losses=margin,hinge"], "--losses margin,hinge: different names expected"),
        (["--losses=margin,margin"], "--losses margin,margin: different names expected"),
        (["--samplings="], "--samplings : different names expected, with commas between them, of"),
        (["--seeds=0"], "--seeds 0: must be at least 1"),
        (["--parallel=0"], "--parallel 0: must be at least 1"),
        (["--select-on=train"], "argument --select-on: invalid choice"),
        (["--output=no/where"], "--output no/where: "),
        (["--parallel=3", "--", "--gpus=0,1"], "--parallel 3: a run takes one GPU, and --gpus na"),
        (["--", "--lr=x"], "argument --lr: invalid float value: 'x'"),
        (["--", "--epochs=0"], "--epochs 0: there would be nothing"),
        (
            ["--", "--metrics=recall@0"],
            "--metrics recall@0: 'recall@0' is no metric; the metrics are",
        ),
        (["--", "--batch-size=71"], "--batch-size 71: 71 images a device are not whole classes"),
        (["--", "--gpus=0,0"], "--gpus 0,0: different whole numbers"),
        (["--", "--seed=1"], "--seed: differs from run to run"),
        (["--", "--see", "1"], "--seed: differs from run to run"),
        (["--", "--loss=margin"], "--loss: differs from run to run"),
        (["--", "--sampling=hard"], "--sampling: differs from run to run"),
        (["--", "--save-prefix=x"], "--save-model-prefix: differs from run to run"),
        (["--", "--resume=auto"], "--resume: differs from run to run"),
        (["--", "--tensorboard=x"], "--tensorboard: differs from run to run"),
        (["--", "--held-out=0.5"], "--held-out: is for --select-on held-out"),
        (["--folds=3"], "--folds: is for --select-on held-out"),
        (["--folds=0"], "--folds 0: must be at least 1"),
        (
            ["--select-on=held-out", "--folds=3", "--", "--held-out=0.5"],
            "--held-out: --folds says how many",
        ),
        (["--", "--held-out-fold=2"], "--held-out-fold: differs from run to run"),
        (["--select-on=held-out", "--", "--classes=9"], "--classes: differs with and without"),
        (["--select-on=held-out", "--", "--held-out=1"], "--held-out 1.0: must be at least 0"),
        (["--samplings=distance-weighted,hard", "--", "--normalize-weights"], "--normalize-weig"),
        (["--losses=triplet", "--", "--beta-per=image"], "--beta-per: has no effect: --loss tri"),
        (["--vary=lr=1,2", "--", "--lr=3"], "--vary lr: --lr is also among the flags behind --"),
        (["--vary=lr=1,2", "--losses=margin", "--", "--loss=triplet"], "--loss: differs from run"),
        (["--vary=lr=1,2", "--", "--loss=hinge"], "--loss hinge: unknown; choose one of"),
        (["--vary=lr=1,x", "--", *FLAGS], "argument --lr: invalid float value: 'x'"),
        (["--vary=epochs=1,0"], "--epochs 0: there would be nothing"),
        (["--vary=held-out=0.1,0.2"], "--held-out: is for --select-on held-out"),
        (["--vary=held-out=0,0.2", "--select-on=held-out"], "--held-out 0.0: holds out nothing"),
    ],
)
def test_a_mistake_is_reported_before_anything_runs(
    here: Path, arguments: list[str], line: str
) -> None:
    with pytest.raises(UsageError) as error:
        compare.main(arguments)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert [file.name for file in here.iterdir()] == ["train.py"]


def test_what_is_wrong_with_the_data_is_reported_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, DataError), match=r"^nowhere: no such folder"):
        compare.main(["--", "--data-path=nowhere"])
    assert [*(tmp_path / "comparison" / "runs").iterdir()] == []


def test_no_run_begins_after_one_whose_log_cannot_be_written(here: Path) -> None:
    (here / "comparison" / "runs" / "margin_hard_1.log").mkdir(parents=True)
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=9", "--", *FLAGS]
    with pytest.raises(UsageError, match=r"margin_hard_1\.log: cannot be written"):
        compare.main(arguments)
    assert not (here / "calls").exists()


def test_what_cannot_be_written_is_reported_with_its_file(here: Path) -> None:
    (here / "comparison" / "runs" / "margin_hard_1.log").mkdir(parents=True)
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=1", "--", *FLAGS]
    with pytest.raises(UsageError, match=r"margin_hard_1\.log: cannot be written: Is a directory"):
        compare.main(arguments)
    (here / "comparison" / "comparison.json").unlink()
    (here / "comparison" / "comparison.json").mkdir()
    with pytest.raises(UsageError, match=r"comparison\.json: cannot be written: Is a directory"):
        compare.main(arguments)


@pytest.mark.slow
def test_each_run_has_flags_and_files_of_its_own(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--losses=margin,triplet", "--samplings=hard", "--seeds=2", "--output=out"]
    assert compare.main([*arguments, "--", *FLAGS, "--keep=2"]) == 0
    # One seed of all comes first.
    assert started(here) == ["margin_hard_1", "triplet_hard_1", "margin_hard_2", "triplet_hard_2"]
    assert [what for what, *_ in calls(here)] == ["start", "end"] * 4
    assert calls(here)[2][1] == [
        *("--keep=1", *FLAGS, "--keep=2", "--loss=triplet", "--sampling=hard", "--seed=1"),
        *("--save-model-prefix=out/runs/triplet_hard_1", "--resume=auto"),
    ]
    first, second = read_csv(here / "out" / "comparison.csv")
    assert (first["loss"], second["loss"], first["runs"]) == ("margin", "triplet", "2")
    assert float(first["best_recall@1_mean"]) == pytest.approx(0.765)
    assert float(second["last_recall@1_mean"]) == pytest.approx(0.515)
    assert (float(first["best_epoch_mean"]), float(first["seconds_mean"])) == (1.0, 3.0)
    assert len(read_csv(here / "out" / "runs.csv")) == 4 * 3
    shown = capsys.readouterr().out
    assert "Birds | whole; train.py --data-path=birds --epochs=3 --keep=2\n" in shown
    assert "The best epoch was selected on the test classes, as the original example" in shown
    assert "seeds 1 to 2; epochs are counted from 0." in shown
    assert re.search(r"^triplet  hard      2     0\.7650 ± 0\.0071 .* 3\.0 ± 0\.0$", shown, re.M)
    assert r"Birds \| whole" in (here / "out" / "comparison.md").read_text(encoding="utf-8")
    assert (here / "out" / "comparison.png").exists()


@pytest.mark.slow
def test_by_default_the_pairs_of_table_1_are_compared_and_drawn(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The paper has no random sampling with a triplet loss."""
    monkeypatch.setattr(plots, "plot_comparison", PLOT)
    assert compare.main(["--seeds=1", "--", *FLAGS]) == 0
    names = [name.rsplit("_", 2)[:2] for name in started(here)]
    losses = ("margin", "contrastive", "triplet", "triplet-euclidean")
    samplings = ("distance-weighted", "semi-hard", "random")
    assert names == [
        [loss, sampling]
        for loss in losses
        for sampling in samplings[: 2 if loss.startswith("triplet") else 3]
    ]
    assert len(re.findall("± -", capsys.readouterr().out)) == 10 * 4
    assert cv2.imread(str(here / "comparison" / "comparison.png")) is not None


@pytest.mark.slow
def test_losses_that_are_typed_are_compared_with_all_samplings(here: Path) -> None:
    assert compare.main(["--losses=triplet", "--seeds=1", "--", *FLAGS]) == 0
    names = ["triplet_distance-weighted_1", "triplet_semi-hard_1", "triplet_random_1"]
    assert started(here) == names


@pytest.mark.slow
def test_what_is_finished_is_not_run_again_and_more_can_be_asked_for(here: Path) -> None:
    arguments = ["--losses=margin", "--samplings=hard"]
    assert compare.main([*arguments, "--seeds=1", "--", *FLAGS]) == 0
    assert compare.main([*arguments, "--seeds=1", "--", *FLAGS, "--workers=0"]) == 0
    assert started(here) == ["margin_hard_1"]
    wider = ["--losses=triplet,margin", "--samplings=hard", "--seeds=2"]
    assert compare.main([*wider, "--", *FLAGS]) == 0
    assert started(here)[1:] == ["triplet_hard_1", "triplet_hard_2", "margin_hard_2"]


def test_other_flags_of_training_are_refused_in_the_same_folder(here: Path) -> None:
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=1"]
    assert compare.main([*arguments, "--", *FLAGS]) == 0
    for others, message in (
        ([*arguments, "--", *FLAGS, "--lr=0.5"], "--output comparison: .* made with --lr 0.0001;"),
        ([*arguments, "--", "--epochs=4"], "made with --data-path birds, --epochs 3; give these"),
        ([*arguments, "--select-on=held-out", "--", *FLAGS], "made with --select-on test, "),
    ):
        with pytest.raises(UsageError, match=message):
            compare.main(others)
    assert started(here) == ["margin_hard_1"]


@pytest.mark.slow
def test_a_folder_of_version_0_1_is_resumed_with_the_defaults_of_then(here: Path) -> None:
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=1", "--", *FLAGS]
    assert compare.main(arguments) == 0
    file = here / "comparison" / "comparison.json"
    plan = json.loads(file.read_text())
    for name in ("--beta-per", "--preset", "--exif-orientation", "--resize"):
        del plan[name]
    plan["--metrics"] = "recall@1,recall@2,recall@4,recall@8,recall@16"
    file.write_text(json.dumps(plan))
    assert compare.main(arguments) == 0
    assert len(started(here)) == 1
    with pytest.raises(UsageError, match="its runs were made with --resize linear; give"):
        compare.main([*arguments, "--resize=area"])


@pytest.mark.slow
def test_the_margin_that_a_loss_brings_binds_no_folder(here: Path) -> None:
    """The default margin of the contrastive loss is 1."""
    assert compare.main(["--losses=margin", "--samplings=hard", "--seeds=1", "--", *FLAGS]) == 0
    both = ["--losses=margin,contrastive", "--samplings=hard", "--seeds=1"]
    assert compare.main([*both, "--", *FLAGS]) == 0
    assert started(here) == ["margin_hard_1", "contrastive_hard_1"]


def test_each_combination_of_varied_flags_is_a_row_and_more_can_be_asked_for(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--", *FLAGS, "--loss=triplet"]
    assert compare.main(["--vary=lr=1e-2,0.5", "--vary=batch-k=5", "--seeds=1", *flags]) == 0
    names = [f"triplet_distance-weighted_batch-k=5_lr={lr}_1" for lr in (0.01, 0.5)]
    assert started(here) == names
    assert [flag(flags, "--lr") for what, flags, _ in calls(here) if what == "start"] == [
        *("1e-2", "0.5")
    ]
    rows = read_csv(here / "comparison" / "comparison.csv")
    assert [(row["lr"], row["batch-k"], row["runs"]) for row in rows] == [
        *(("0.01", "5", "1"), ("0.5", "5", "1"))
    ]
    assert re.search(
        r"^triplet  distance-weighted  0\.01  5 +1 +0\.7600 ± - ", capsys.readouterr().out, re.M
    )
    # The order and the spelling of values do not matter.
    wider = ["--vary=batch-k=5,7", "--vary=lr=0.010,0.5", "--seeds=1"]
    assert compare.main([*wider, *flags]) == 0
    assert started(here)[2:] == [name.replace("k=5", "k=7") for name in names]
    for others, message in (
        (["--vary=lr=1", *flags], "its runs were made with --batch-k varied; give these"),
        ([*wider, *flags, "--wd=1"], "its runs were made with --wd 0.0001; give these"),
        (["--losses=triplet", *flags[:-1]], "were made with --lr varied, --batch-k varied; give"),
    ):
        with pytest.raises(UsageError, match=message):
            compare.main(others)
    assert len(started(here)) == 4


def test_a_varied_number_of_epochs_is_that_of_each_run_with_folds_and_side_by_side(
    here: Path,
) -> None:
    arguments = ["--vary=epochs=1,3", "--seeds=1", "--select-on=held-out", "--folds=2"]
    assert compare.main([*arguments, "--parallel=2", "--", "--data-path=birds"]) == 0
    runs = [flags for what, flags, _ in calls(here) if what == "start"]
    epochs = {
        os.path.basename(flag(flags, "--save-model-prefix")): flag(flags, "--epochs")
        for flags in runs
    }
    name = "margin_distance-weighted_epochs="
    # After the second fold's epochs 0.25, 0.6 and 0.9, the mean is highest after the last.
    assert epochs == {
        **{f"{name}1_1_{run}": "1" for run in ("fold1", "fold2", "final")},
        **{f"{name}3_1_{run}": "3" for run in ("fold1", "fold2", "final")},
    }
    assert [row["runs"] for row in read_csv(here / "comparison" / "comparison.csv")] == ["1", "1"]


def test_a_network_that_cannot_be_built_is_reported_before_anything_runs(here: Path) -> None:
    flags = ["--model=squeezenet1.1", "--image-size=32", "--crop-size=32"]
    arguments = ["--vary=freeze-bn=no,yes", "--seeds=1", "--", *FLAGS, *flags]
    with pytest.raises(UsageError, match="--freeze-bn: has no effect: --model squeezenet"):
        compare.main(arguments)
    with pytest.raises(UsageError, match="--model nothing: unknown"):
        compare.main(["--vary=model=nothing,squeezenet1.1", "--", *FLAGS])
    assert not (here / "calls").exists()


@pytest.mark.slow
def test_a_run_that_fails_is_reported_with_its_log_and_the_others_go_on(
    here: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (here / "what").write_text(json.dumps({"margin_hard_1": "fails", "margin_random_1": "idles"}))
    arguments = ["--losses=margin,triplet", "--samplings=hard,random", "--seeds=1", "--", *FLAGS]
    assert compare.main(arguments) == 1
    assert len(started(here)) == 4
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert errors == [
        "margin_hard_1 failed (status 3), its log is comparison/runs/margin_hard_1.log: "
        "train.py: stopped: it  diverged",
        # Ended well and yet recorded nothing: it must not be run again and again.
        "margin_random_1 failed (status 0), its log is comparison/runs/margin_random_1.log: begun",
    ]
    shown = capsys.readouterr().out
    assert "Failed: margin_hard_1, margin_random_1.\n" in shown
    assert re.search(r"^margin   hard +0 of 1  - ", shown, re.M)
    assert re.search(r"^triplet  hard +1       0\.7600 ± - ", shown, re.M)
    (here / "what").unlink()
    assert compare.main(arguments) == 0
    assert started(here)[4:] == ["margin_hard_1", "margin_random_1"]
    assert "Failed" not in capsys.readouterr().out


@pytest.mark.slow
def test_with_held_out_classes_all_are_trained_again_for_the_selected_epochs(
    here: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Reports and saves the last epoch, although an earlier one was better."""
    caplog.set_level("INFO")
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=1", "--select-on=held-out"]
    assert compare.main([*arguments, "--", *FLAGS]) == 0
    (_, first, _), _, (_, final, _), _ = calls(here)
    assert (flag(first, "--held-out"), flag(first, "--epochs")) == ("0.2", "3")
    assert (flag(final, "--held-out"), flag(final, "--epochs")) == ("0", "2")
    assert flag(final, "--saved-epoch") == "last"
    assert [os.path.basename(flag(flags, "--save-model-prefix")) for flags in (first, final)] == [
        *("margin_hard_1", "margin_hard_1_final")
    ]
    assert "margin_hard_1 ends: Recall@1 0.7600 of epoch 1; 1 run is left, about" in caplog.text
    assert "margin_hard_1_final ends: Recall@1 0.5100 of epoch 1; 0 runs" in caplog.text
    shown = capsys.readouterr().out
    assert "The epoch was selected on held-out training classes; then all training" in shown
    line = r"^margin  hard +1 +0\.5100 ± - +0\.7600 ± - +1\.0 ± - +5\.0 ± -$"
    assert re.search(line, shown, re.M)
    (row,) = read_csv(here / "comparison" / "comparison.csv")
    assert "held-out_recall@1_mean" in row and "test_recall@1_mean" in row
    # A fifth is the share where the flags name none.
    assert compare.main([*arguments, "--output=half", "--", *FLAGS, "--held-out=0.5"]) == 0
    assert flag(calls(here)[4][1], "--held-out") == "0.5"


@pytest.mark.slow
def test_with_folds_each_class_is_held_out_once_and_the_mean_selects(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fold 1 alone would select epoch 1; the other two are better after epoch 2."""
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=1", "--select-on=held-out"]
    arguments += ["--folds=3"]
    assert compare.main([*arguments, "--", *FLAGS]) == 0
    names = [*(f"margin_hard_1_fold{fold}" for fold in (1, 2, 3)), "margin_hard_1_final"]
    assert started(here) == names
    runs = [flags for what, flags, _ in calls(here) if what == "start"]
    assert [flag(flags, "--held-out-fold") for flags in runs[:3]] == ["1", "2", "3"]
    assert [float(flag(flags, "--held-out")) for flags in runs] == [1 / 3] * 3 + [0]
    assert [flag(flags, "--epochs") for flags in runs] == ["3"] * 4
    (row,) = read_csv(here / "comparison" / "comparison.csv")
    assert float(row["selected_epoch_mean"]) == 2
    assert float(row["held-out_recall@1_mean"]) == pytest.approx((0.5 + 0.9 + 0.9) / 3 + 0.01)
    assert float(row["seconds_mean"]) == 4 * 3
    tested_on = [line["tested_on"] for line in read_csv(here / "comparison" / "runs.csv")]
    folds = [f"held-out fold{fold}" for fold in (1, 2, 3) for _ in range(3)]
    assert tested_on == [*folds, *["test"] * 3]
    shown = capsys.readouterr().out
    assert "cannot be compared with recall among the test classes" in shown
    assert "in 3 folds, by as many runs; the table has the mean of these." in shown
    # Nothing is left to do; and another number of folds is another comparison.
    assert compare.main([*arguments, "--", *FLAGS]) == 0
    assert len(started(here)) == 4
    with pytest.raises(UsageError, match="made with --folds 3; "):
        compare.main([*arguments[:-1], "--", *FLAGS])


def test_a_failure_before_the_final_training_ends_the_run(here: Path) -> None:
    (here / "what").write_text(json.dumps({"margin_hard_1": "fails"}))
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=1", "--select-on=held-out"]
    assert compare.main([*arguments, "--", *FLAGS]) == 1
    assert started(here) == ["margin_hard_1"]


@pytest.mark.slow
@pytest.mark.parametrize("flags, slots", [([], ["", ""]), (["--gpus=4,7"], ["4", "7"])])
def test_runs_go_on_side_by_side_each_with_its_share_of_the_machine(
    here: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], slots: list[str]
) -> None:
    monkeypatch.setattr(compare.mxnet_compat, "has_chosen_threads", True)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    (here / "what").write_text(json.dumps({"at_once": 2}))
    parallel = [] if flags else ["--parallel=2"]
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=4", *parallel, "--", *FLAGS]
    assert compare.main([*arguments, *flags]) == 0
    at_once = most = 0
    free = sorted(slots)
    for what, of_run, threads in calls(here):
        assert threads == "3"
        gpu = flag(of_run, "--gpus") if flags else ""
        at_once += 1 if what == "start" else -1
        most = max(most, at_once)
        if what == "start":
            free.remove(gpu)
        else:
            free.append(gpu)
    assert most == 2
    assert len(started(here)) == 4


@pytest.mark.slow
def test_fewer_runs_at_a_time_than_there_are_gpus_leave_the_last_idle(here: Path) -> None:
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=3", "--parallel=1", "--", *FLAGS]
    assert compare.main([*arguments, "--gpus=4,7"]) == 0
    assert {flag(of_run, "--gpus") for _, of_run, _ in calls(here)} == {"4"}


def test_threads_that_the_user_has_set_stay(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare.mxnet_compat, "has_chosen_threads", False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=2", "--parallel=2"]
    assert compare.main([*arguments, "--", *FLAGS]) == 0
    assert {threads for *_, threads in calls(here)} == {"5"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_comparison_that_is_stopped_stops_its_runs_and_goes_on_later(
    here: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "what").write_text(json.dumps({"margin_hard_2": "waits"}))
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=3", "--", *FLAGS]

    def signal_once_it_waits() -> None:
        while not (here / "waits").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=signal_once_it_waits)
    thread.start()
    line = r"^1 of 3 runs are finished; the same command resumes"
    with pytest.raises(Interrupted, match=line) as error:
        compare.main(arguments)
    thread.join()
    assert error.value.number == number
    assert [what for what, *_ in calls(here)] == ["start", "end", "start", "stopped"]
    # A run that was stopped has not failed.
    shown = capsys.readouterr().out
    assert "1 of 3" in shown and "Failed" not in shown
    (here / "what").unlink()
    assert compare.main(arguments) == 0
    assert started(here)[2:] == ["margin_hard_2", "margin_hard_3"]
    epochs = [(r["seed"], r["epoch"]) for r in read_csv(here / "comparison" / "runs.csv")]
    assert epochs == [(seed, epoch) for seed in "123" for epoch in "012"]
    log = here / "comparison" / "runs" / "margin_hard_2.log"
    assert log.read_text().splitlines() == ["begun", "begun"]


def test_runs_whose_tables_cannot_be_written_do_not_go_on_unseen(here: Path) -> None:
    what = {"margin_hard_1": "follows", "margin_hard_2": "waits"}
    (here / "what").write_text(json.dumps(what))
    (here / "comparison" / "runs.csv").mkdir(parents=True)
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=2", "--parallel=2", "--", *FLAGS]
    with pytest.raises(UsageError, match=r"runs\.csv: cannot be written"):
        compare.main(arguments)
    assert [what for what, *_ in calls(here)][2:] == ["end", "stopped"]


def test_two_comparisons_cannot_write_to_one_folder(here: Path) -> None:
    other = pytest.raises(UsageError, match="another comparison")
    with compare._hold_folder(Path("comparison")), other:
        compare.main(["--", *FLAGS])
    assert not (here / "calls").exists()


def test_damaged_records_are_reported_with_their_file(here: Path) -> None:
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=1", "--", *FLAGS]
    assert compare.main(arguments) == 0
    place = results.trial_prefix(Path("comparison"), Trial(Cell("margin", "hard"), 1))
    Path(f"{place}.run/metrics.jsonl").write_text('"?"\n{}\n')
    with pytest.raises(DataError, match=r"margin_hard_1\.run/metrics\.jsonl:1"):
        compare.main(arguments)


@pytest.mark.slow
def test_the_time_left_is_reported_after_each_run(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    arguments = ["--losses=margin", "--samplings=hard", "--seeds=3", "--", *FLAGS]
    assert compare.main(arguments) == 0
    ends = [message for message in caplog.messages if " ends: " in message]
    assert re.match(
        r"margin_hard_1 ends: Recall@1 0\.7600 of epoch 1; 2 runs are left, about \d+ \w+\.",
        ends[0],
    )
    assert re.search(r"; 1 run is left, about \d+ \w+\.$", ends[1])
    assert ends[2].endswith("; 0 runs are left.")


@pytest.mark.parametrize(
    "parallel, expected",
    [(1, "5 runs are left, about 50 min"), (2, "5 runs are left, about 25 min")],
)
def test_the_time_left_is_of_the_epochs_left_at_the_pace_so_far(
    tmp_path: Path, parallel: int, expected: str
) -> None:
    cell = Cell("margin", "hard")
    runs = [Trial(cell, seed) for seed in range(1, 8)]
    write_run(tmp_path, runs[0], [0.5, 0.5, 0.5])
    write_run(tmp_path, runs[1], [0.5, 0.5])
    flags = {cell: results.CellFlags((), parse(["--epochs=3"]))}
    work = sweep.Comparison(tmp_path, runs, flags, results.TEST, "", parallel)
    work.failed.append(runs[2])
    assert work._format_time_left() == "5 runs are left"
    work._epochs, work._seconds = 3, 692.3
    assert work._format_time_left() == expected


@pytest.mark.parametrize("recalls, memory", [([0.5, 0.9, 0.1], 0), ([0.5, 0.6, 0.9], 8)])
def test_train_py_takes_the_flags_of_a_final_run_that_ends_before_the_memory_opens(
    tmp_path: Path, recalls: list[float], memory: int
) -> None:
    cell = Cell("margin", "hard")
    arguments = ("--epochs=3", "--held-out=0.2", "--memory=8", "--memory-from=2")
    write_run(tmp_path, Trial(cell, 1), recalls)
    flags = {cell: results.CellFlags(arguments, parse(arguments))}
    work = sweep.Comparison(
        tmp_path, [Trial(cell, 1)], flags, results.HELD_OUT, "", 1,
        leave_out_unused=lambda flags: leave_out_unused(flags)[0],
    )  # fmt: skip
    epochs = work._planned_epochs(Trial(cell, 1), results.FINAL)
    config = parse(work._build_flags(Trial(cell, 1), results.FINAL, epochs))
    assert config.run.epochs == recalls.index(0.9) + 1
    assert config.method.memory == memory


@pytest.mark.parametrize(
    "seconds, expected",
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5400, "90 min"), (9000, "2.5 h")],
)
def test_durations_are_reported_in_the_unit_that_fits(seconds: float, expected: str) -> None:
    assert sweep._duration(seconds) == expected


@pytest.mark.slow
def test_held_out_classes_select_and_the_reported_run_is_train_py_s_own(
    tmp_path: Path,
    write_cub: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    tiny_backbones: None,
) -> None:
    """Runs MXNet from the command line; is stopped once and resumed."""
    data = write_cub(tmp_path / "cub", [4] * 12)
    flags = [
        *(f"--data-path={data}", "--model=tiny", "--image-size=40", "--crop-size=32"),
        *("--embed-dim=16", "--batch-size=6", "--batch-k=3", "--epochs=3", "--batch-num=3"),
        *("--lr=0.001", "--cache=none", "--metrics=recall@1,map@r"),
    ]
    command = [
        *(sys.executable, "-m", "embedding_learning", "compare", "--losses=contrastive"),
        *("--samplings=semi-hard", "--seeds=1", "--select-on=held-out", "--output=out"),
        *("--", *flags, "--held-out=0.3"),
    ]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "out" / "runs" / "contrastive_semi-hard_1.log"
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + HANG_LIMIT
        while not log.exists() or "[Epoch 0] validation" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_LIMIT) == 143
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert compare.main(command[4:]) == 0
    printed = capsys.readouterr().out
    text = log.read_text()
    assert "Resuming from" in text or text.count("There is no run of this prefix") == 2
    assert "tested on held-out training classes: 16 images of 4 classes train, 8 of 2 test" in text
    final = log.with_name("contrastive_semi-hard_1_final.log").read_text()
    assert "24 images of 6 classes train, 24 of 6 test." in final
    (row,) = read_csv(tmp_path / "out" / "comparison.csv")
    epoch = int(float(row["selected_epoch_mean"]))
    held_out = [
        float(line["recall@1"])
        for line in read_csv(tmp_path / "out" / "runs.csv")
        if line["tested_on"] == "held-out"
    ]
    assert len(held_out) == 3 and held_out.index(max(held_out)) == epoch

    caplog.set_level("INFO")
    own = ["--loss=contrastive", "--sampling=semi-hard", "--seed=1", f"--epochs={epoch + 1}"]
    assert train.main([*flags, *own]) == 0
    (recall,) = re.findall(rf"\[Epoch {epoch}\] validation: Recall@1=(\S+)", caplog.text)
    assert float(row["test_recall@1_mean"]) == pytest.approx(float(recall), abs=1e-6)
    assert re.search(rf"^contrastive  semi-hard  1     {float(recall):.4f} ± - ", printed, re.M)
    # So is the network, though an epoch before might have been better.
    saved = log.with_name("contrastive_semi-hard_1_final.params")
    description = read_description(str(saved), "MODEL")
    assert (description["epoch"], f"{description['recall_at_1']:.6f}") == (epoch, recall)
