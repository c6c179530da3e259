"""The cells of `compare`: all combinations, without flags that have no effect, none twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from embedding_learning.cli.compare_cells import Cells, build_cells, parse_vary
from embedding_learning.cli.train_flags import parse
from embedding_learning.errors import UsageError

MARGIN = [("margin", "distance-weighted")]
PREFIX = ["--save-model-prefix=x"]


def cells_of(
    vary: Sequence[str],
    flags: Sequence[str] = (),
    pairs: Sequence[tuple[str, str]] = MARGIN,
) -> tuple[Cells, list[str]]:
    return build_cells(
        pairs, parse_vary(vary, ["seed", "gpus", "resume"]), flags, PREFIX, ["workers"]
    )


def values_of(cells: Cells) -> list[tuple[str, ...]]:
    return [tuple(value for _, value in cell.varied) for cell in cells]


def test_every_combination_is_a_cell_with_its_flags() -> None:
    cells, lines = cells_of(["embed-dim=64,128", "--lr-mult=default,0.1,1"], ["--epochs", "3"])
    assert lines == []
    assert [cell.varied for cell in cells] == [
        (("embed-dim", dim), ("lr-mult-backbone", rate))
        for dim in ("64", "128")
        for rate in ("default", "0.1", "1")
    ]
    for cell, (arguments, config) in cells.items():
        (_, dim), (_, rate) = cell.varied
        own = [] if rate == "default" else [f"--lr-mult-backbone={rate}"]
        expected = ["--epochs", "3", f"--embed-dim={dim}", *own]
        assert [*arguments] == [*expected, "--loss=margin", "--sampling=distance-weighted"]
        assert config == parse([*arguments, *PREFIX])
    assert [config.optimizer.lr_mult_backbone for _, config in cells.values()] == [
        *(None, 0.1, 1.0) * 2
    ]


def test_switches_are_yes_or_no() -> None:
    cells, _ = cells_of(["freeze-bn=no,yes", "bbox=yes,no"])
    assert values_of(cells) == [("no", "yes"), ("no", "no"), ("yes", "yes"), ("yes", "no")]
    assert [(c.model.freeze_bn, c.data.bbox) for _, c in cells.values()] == [
        *((False, True), (False, False), (True, True), (True, False))
    ]
    with pytest.raises(UsageError, match=r"^--vary freeze-bn=maybe: yes or no expected$"):
        cells_of(["freeze-bn=no,maybe"])


def test_values_are_shown_in_one_spelling() -> None:
    cells, _ = cells_of(["lr=1e-5,1", "nonzero-loss-cutoff=none,1.4", "optimizer=Adam"])
    assert values_of(cells) == [
        (lr, cutoff, "adam") for lr in ("1e-05", "1") for cutoff in ("none", "1.4")
    ]


def test_a_flag_without_effect_is_left_out_and_its_combinations_are_one_cell() -> None:
    pairs = [*MARGIN, ("margin", "random"), ("arcface", "none")]
    cells, lines = cells_of(["cutoff=0.3,0.5", "nu=0,0.1"], ["--scale=3"], pairs)
    assert [(cell.loss, cell.sampling, *(v for _, v in cell.varied)) for cell in cells] == [
        *[
            ("margin", "distance-weighted", cutoff, nu)
            for cutoff in ("0.3", "0.5")
            for nu in ["0", "0.1"]
        ],
        *[("margin", "random", "-", nu) for nu in ("0", "0.1")],
        ("arcface", "none", "-", "-"),
    ]
    for cell, (arguments, _) in cells.items():
        assert ("--scale=3" in arguments) == (cell.loss == "arcface")
        parse([*arguments, *PREFIX])
    assert lines == [
        "--vary cutoff: has no effect in some rows (--loss arcface takes the whole batch, without "
        "a sampling): there it is left out, and shown as -.",
        "--vary nu: has no effect in some rows (--loss arcface has no beta): there it is left out, "
        "and shown as -.",
    ]


def test_a_default_and_a_switch_that_is_off_are_no_values_where_the_flag_has_no_effect() -> None:
    cells, _ = cells_of(["wd=0,0.1", "wd-exclude-bn-bias=no,yes", "beta-per=default,common"],
                        pairs=[("triplet", "hard"), *MARGIN])  # fmt: skip
    assert values_of(cells)[:3] == [("0", "-", "-"), ("0.1", "no", "-"), ("0.1", "yes", "-")]
    assert len(cells) == 3 + 3 * 2


@pytest.mark.parametrize(
    "vary, flags, line",
    [
        (["wings=1,2"], [], "--vary wings: unknown; train.py --help lists the flags"),
        (["no-bbox=yes"], [], "--vary no-bbox: unknown"),
        (["=1"], [], "--vary : unknown"),
        (["loss=margin,triplet"], [], "--vary loss: --losses does this; give --losses margin,tri"),
        (["sampling=hard"], [], "--vary sampling: --samplings does this; give --samplings hard"),
        (["resume=auto"], [], "--vary resume: differs from run to run; leave it out"),
        (["seed=1,2"], [], "--vary seed: differs from run to run; give --seeds N for the seeds"),
        (["gpus=0,1"], [], "--vary gpus: differs from run to run; give --gpus behind --, and each"),
        (["lr=1", "lr=2"], [], "--vary lr: is given twice; name all its values in one"),
        (["lr"], [], "--vary 'lr': different values expected, with commas between them"),
        (["lr=1,,2"], [], "--vary 'lr=1,,2': different values expected"),
        (["lr=1,1"], [], "--vary 'lr=1,1': different values expected"),
        (["model=a\nb"], [], "--vary 'model=a\\nb': different values expected"),
        ([f"lr={','.join(map(str, range(1, 1002)))}"], [], "--vary: makes 1001 combinations; 1000"),
        (["embed-dim=0,8"], [], "--embed-dim 0: must be at least 1"),
        (["batch-k=5,4"], [], "--batch-size 70: 70 images a device are not whole classes of --bat"),
        (["lr=0.1,0.10"], [], "--vary: lr=0.1 and lr=0.10 are the same run; leave one out"),
        (["embed-dim=default,128"], [], "--vary: embed-dim=default and embed-dim=128 are the same"),
        (["workers=1,2"], [], "--vary: workers=1 and workers=2 are the same run; leave one out"),
        (
            ["scale=1,2"],
            [],
            "--vary scale: has no effect: --loss margin has no scale; leave it out",
        ),
        (
            ["memory=8,0", "memory-from=0,20"],
            [],
            "--vary: memory=8 memory-from=20 and memory=0 memory-from=0 are the same run; leave",
        ),
        (["lr=1"], ["--scale=3"], "--scale: has no effect: --loss margin has no scale; leave it"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(vary: list[str], flags: list[str], line: str) -> None:
    with pytest.raises(UsageError) as error:
        cells_of(vary, flags)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
