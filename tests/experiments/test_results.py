"""A comparison's numbers against the definitions, from records written for the purpose."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from embedding_learning.errors import DataError, UsageError
from embedding_learning.experiments import results
from embedding_learning.experiments.results import (
    HELD_OUT,
    TEST,
    Cell,
    Outcome,
    Trial,
)
from tests.helpers.fake_trials import write_run


def test_a_loss_that_takes_the_whole_batch_is_compared_once_without_a_sampling() -> None:
    pairs = results.pair_methods(["margin", "proxy-nca", "multi-similarity"], ["hard", "random"])
    assert pairs == [
        ("margin", "hard"),
        ("margin", "random"),
        ("proxy-nca", "none"),
        ("multi-similarity", "none"),
    ]


RUN = Trial(Cell("margin", "hard"), 4)


def test_a_run_is_named_after_what_it_is() -> None:
    folder = Path("x")
    assert str(results.trial_prefix(folder, RUN)) == "x/runs/margin_hard_4"
    assert str(results.trial_prefix(folder, RUN, results.FINAL)) == "x/runs/margin_hard_4_final"


def test_varied_flags_are_in_the_name_in_any_order_unless_they_have_no_effect() -> None:
    values = ("lr", "0.1"), ("cutoff", results.NO_EFFECT), ("embed-dim", "64")
    for varied in (values, values[::-1]):
        assert Trial(Cell("margin", "hard", varied), 2).name == "margin_hard_embed-dim=64_lr=0.1_2"


def test_a_name_is_safe_and_short_and_still_of_one_cell_only() -> None:
    values = ["a/b.pth", "a-b.pth", "../b", "~x y", "$(x)", "é" * 90, "x" * 90, "y" + "x" * 89]
    names = [Cell("margin", "hard", (("init-from", value),)).name for value in values]
    assert len(set(names)) == len(values)
    assert names[1] == "margin_hard_init-from=a-b.pth"
    assert names[0].startswith("margin_hard_init-from=a-b.pth-")
    for name in names:
        assert re.fullmatch("[A-Za-z0-9._,=+-]{1,80}", name)
    long = [(f"flag-{number}", "x" * 30) for number in range(20)]
    first, second = (Cell("a", "b", tuple(varied)).name for varied in (long, long[:-1]))
    assert first != second and len(first) < 200


def test_evaluations_are_those_recorded_and_nothing_else(tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [0.25, 0.5])
    first, second = results.read_evaluations(results.trial_prefix(tmp_path, RUN))
    assert first == (0, 2.5, {"recall@1": 0.25, "recall@2": 0.625})
    assert second == (1, 5.0, {"recall@1": 0.5, "recall@2": 0.75})
    assert results.read_evaluations(tmp_path / "runs" / "nothing") == []


def test_the_evaluation_before_training_is_of_no_epoch(tmp_path: Path) -> None:
    file = write_run(tmp_path, RUN, [0.25])
    before = '{"kind": "evaluation", "epoch": null, "batch": 0, "seconds": 0.0, "recall@1": 0.9}'
    file.write_text(f"{before}\n{file.read_text()}")
    assert [e.epoch for e in results.read_evaluations(results.trial_prefix(tmp_path, RUN))] == [0]


def test_the_line_that_a_killed_run_was_writing_does_not_count(tmp_path: Path) -> None:
    file = write_run(tmp_path, RUN, [0.25, 0.5])
    file.write_bytes(file.read_bytes()[:-9])
    assert [e.epoch for e in results.read_evaluations(results.trial_prefix(tmp_path, RUN))] == [0]


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "evaluation", "epoch": 0, "seconds": 1.0}',
        '{"kind": "evaluation", "epoch": 0, "seconds": 1.0, "recall@1": null}',
        '{"kind": "evaluation", "epoch": "0", "seconds": 1.0, "recall@1": 0.5}',
        '{"kind": "evaluation", "epoch": 0, "seconds": NaN, "recall@1": 0.5}',
        "no JSON\n{}",
    ],
)
def test_records_that_were_changed_are_reported_with_their_file(tmp_path: Path, line: str) -> None:
    file = write_run(tmp_path, RUN, [0.25])
    file.write_text(line)
    with pytest.raises(DataError, match=r"margin_hard_4\.run/metrics\.jsonl"):
        results.read_evaluations(results.trial_prefix(tmp_path, RUN))


def test_of_equally_good_epochs_the_first_is_the_best_as_in_training(tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [0.1, 0.7, 0.7, 0.3])
    found = results.read_outcome(tmp_path, RUN, 4, TEST)
    assert found
    assert (found.epoch, found.reported["recall@1"], found.other["recall@1"]) == (1, 0.7, 0.3)
    assert found.seconds == 10.0


def test_a_run_that_recalls_nothing_has_a_best_epoch_too(tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [0.0, 0.0])
    found = results.read_outcome(tmp_path, RUN, 2, TEST)
    assert found and found.epoch == 0


@pytest.mark.parametrize("done, finished", [(0, False), (1, False), (2, True)])
def test_a_run_counts_once_its_last_epoch_is_evaluated(
    tmp_path: Path, done: int, finished: bool
) -> None:
    write_run(tmp_path, RUN, [0.5] * done)
    assert (results.read_outcome(tmp_path, RUN, 2, TEST) is not None) == finished


def test_with_held_out_classes_the_final_run_s_last_epoch_is_reported(tmp_path: Path) -> None:
    """Though an earlier one was better on the test classes, which must not be looked at."""
    write_run(tmp_path, RUN, [0.2, 0.9, 0.4])
    assert results.read_outcome(tmp_path, RUN, 3, HELD_OUT) is None
    file = write_run(tmp_path, RUN, [0.8, 0.6], results.FINAL)
    found = results.read_outcome(tmp_path, RUN, 3, HELD_OUT)
    assert found
    assert (found.epoch, found.reported["recall@1"], found.other["recall@1"]) == (1, 0.6, 0.9)
    assert found.seconds == 3 * 2.5 + 2 * 2.5
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]))
    assert results.read_outcome(tmp_path, RUN, 3, HELD_OUT) is None


def test_rows_hold_mean_and_sample_deviation_over_the_seeds() -> None:
    rng = np.random.default_rng(0)
    cells = [
        Cell("margin", "random"),
        Cell("triplet", "random", (("lr", "1"),)),
        Cell("triplet", "random", (("lr", "2"),)),
    ]
    outcomes, values = [], {}
    for cell, seeds in zip(cells, (4, 1, 0)):
        values[cell] = rng.random((seeds, 4))
        outcomes += [
            Outcome(Trial(cell, seed), int(9 * a), {"recall@1": b, "nmi": c}, {"recall@1": c}, d)
            for seed, (a, b, c, d) in enumerate(values[cell], 1)
        ]
    rng.shuffle(outcomes)  # type: ignore[arg-type]
    rows = results.summarize(cells, outcomes)
    assert [row.cell for row in rows] == cells
    for row, cell in zip(rows, cells):
        epoch, reported, other, seconds = values[cell].T
        for spread, expected in (
            (row.epoch, (9 * epoch).astype(int)),
            (row.reported["recall@1"], reported),
            (row.reported["nmi"], other),
            (row.other["recall@1"], other),
            (row.seconds, seconds),
        ):
            assert spread.size == len(expected)
            if len(expected) == 0:
                assert spread.mean is None
            else:
                assert spread.mean == pytest.approx(sum(expected) / len(expected))
            if len(expected) < 2:
                assert spread.deviation is None
            else:
                n, mean = len(expected), sum(expected) / len(expected)
                naive = (sum((x - mean) ** 2 for x in expected) / (n - 1)) ** 0.5
                assert spread.deviation == pytest.approx(naive)


def test_a_folder_with_runs_is_for_the_flags_of_these_runs_alone(tmp_path: Path) -> None:
    plan = {"--lr": 0.1, "--steps": [1, 2], "--use-pretrained": False, "--model": "a"}
    results.claim_folder(tmp_path, plan)
    results.claim_folder(tmp_path, {**plan, "--lr": 0.2})  # nothing was run yet
    write_run(tmp_path, RUN, [0.5])
    results.claim_folder(tmp_path, {**plan, "--lr": 0.2})
    with pytest.raises(UsageError) as error:
        results.claim_folder(tmp_path, {**plan, "--steps": [3], "--use-pretrained": True})
    assert "made with --lr 0.2, --steps 1,2, no --use-pretrained; give these" in str(error.value)


@pytest.mark.parametrize(
    "later, flags",
    [
        ({"--resize": "area"}, "--resize linear"),
        ({"--beta-per": "image"}, "--beta-per class"),
        ({"--exif-orientation": True}, "no --exif-orientation"),
        ({"--preset": "paper-cub"}, "no --preset"),
        ({"--new-flag": 3, "--resize": "area"}, "no --new-flag, --resize linear"),
    ],
)
def test_a_flag_that_an_old_plan_lacks_had_its_former_default(
    tmp_path: Path, later: dict[str, object], flags: str
) -> None:
    write_run(tmp_path, RUN, [0.5])
    (tmp_path / "comparison.json").write_text('{"--lr": 0.1}')
    defaults = {"--resize": "linear", "--beta-per": "class", "--exif-orientation": False}
    results.claim_folder(tmp_path, {"--lr": 0.1, **defaults, "--preset": None, "--new-flag": 0})
    with pytest.raises(UsageError) as error:
        results.claim_folder(tmp_path, {"--lr": 0.1, **later})
    assert f"its runs were made with {flags}; give these" in str(error.value)


@pytest.mark.parametrize("typed", ["nmi, Recall@1", "recall@1,nmi", "nmi"])
def test_an_old_plan_holds_the_metrics_as_they_were_typed(tmp_path: Path, typed: str) -> None:
    write_run(tmp_path, RUN, [0.5])
    (tmp_path / "comparison.json").write_text(json.dumps({"--metrics": typed}))
    results.claim_folder(tmp_path, {"--metrics": ["recall@1", "nmi"]})
    with pytest.raises(UsageError, match="made with --metrics recall@1,nmi; give"):
        results.claim_folder(tmp_path, {"--metrics": ["recall@1", "ami"]})


@pytest.mark.parametrize("content", ["", "[]", "{", "\xff"])
def test_a_damaged_plan_is_reported(tmp_path: Path, content: str) -> None:
    write_run(tmp_path, RUN, [0.5])
    (tmp_path / "comparison.json").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=r"comparison\.json is damaged"):
        results.claim_folder(tmp_path, {})
