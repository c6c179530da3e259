"""The configuration of a run: from Python as from the command line, and back to flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedding_learning.cli.train_flags import parse
from embedding_learning.config import FLAGS, TrainConfig
from embedding_learning.errors import UsageError
from embedding_learning.training import presets
from embedding_learning.training.settings import as_arguments, make_config


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--gpus=0,2", "--kvstore=local", "--steps=", "--no-bbox", "--epochs=3"],
        ["--loss=contrastive", "--sampling=random", "--metrics=nmi,recall@4"],
        ["--model=inceptionv3", "--exif-orientation", "--resize=area", "--grad-clip=2.5"],
        ["--resize-to=shorter-side", "--train-crop=random-resized"],
        ["--nonzero-loss-cutoff=none", "--cutoff=0.3", "--beta-per=common"],
        ["--total-batch-size=40", "--cpu-contexts=2", "--skip-bad-images", "--lr-beta=-1"],
        *(["--preset", name] for name in presets.SETTINGS),
    ],
)
def test_a_configuration_survives_as_flags(flags: list[str]) -> None:
    config = parse(flags)
    assert parse(as_arguments(config), is_past=True) == config
    assert TrainConfig.from_flags(config.as_flags()).as_flags() == config.as_flags()


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], False),
        (["--evaluate-first"], True),
        (["--use-pretrained"], True),
        (["--pretrained-params=x.pth"], True),
        (["--use-pretrained", "--no-evaluate-first"], False),
        (["--init-from=x.params"], False),
    ],
)
def test_a_pretrained_backbone_is_evaluated_first(flags: list[str], expected: bool) -> None:
    assert parse(flags).run.evaluate_first is expected


def test_python_gives_the_same_as_the_command_line() -> None:
    settings = {"epochs": 3, "steps": [1, 2], "lr": 1, "gpus": (0, 1), "metrics": ["nmi"]}
    flags = ["--epochs=3", "--steps=1,2", "--lr=1", "--gpus=0,1", "--metrics=nmi"]
    assert make_config(settings) == parse(flags)
    assert make_config({}) == parse([])
    assert make_config({"data_path": Path("birds")}) == parse(["--data-path=birds"])


@pytest.mark.parametrize(
    "settings, line",
    [
        ({"epoch": 3}, "--epoch: unknown; train.py --help lists the flags"),
        ({"batch-size": 70}, "'batch-size': is no key of a setting; write 'batch_size'"),
        ({"--lr": 0.1}, "'--lr': is no key of a setting; write 'lr'"),
        ({"epochs": "3"}, "--epochs '3': must be of type int, not str"),
        ({"gpus": 0}, "--gpus 0: a list or a text expected"),
        ({"steps": None}, "--steps None: a list or a text expected"),
        ({"epochs": True}, "--epochs True: must be of type int"),
        ({"bbox": 1}, "--bbox 1: must be of type bool"),
        ({"lr": None}, "--lr None: must be of type float"),
        ({"epochs": -1}, "--epochs -1: must be at least 0"),
        ({"held_out": 1.0}, "--held-out 1.0: must be at least 0 and below 1"),
        ({"nonzero_loss_cutoff": 0.0}, "--nonzero-loss-cutoff 0.0: must be above 0"),
        ({"cutoff": 2.0}, "--cutoff 2.0: must be at least 0 and below 2"),
        ({"grad_clip": 0.0}, "--grad-clip 0.0: must be above 0"),
        ({"loss": "ratio"}, "--loss ratio: unknown; choose one of "),
        ({"metrics": ["recall"]}, "--metrics recall: "),
        ({"gpus": [0, 0]}, "--gpus 0,0: different whole numbers expected"),
    ],
)
def test_a_wrong_setting_is_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_config(settings)
    assert str(caught.value).startswith(line)


def test_every_flag_has_a_default_of_its_type() -> None:
    for flag in FLAGS.values():
        assert flag.default is None or type(flag.default) is flag.type, flag.key
        assert flag.help, flag.key


@pytest.mark.parametrize("key", [key for key, flag in FLAGS.items() if flag.is_path])
def test_a_home_folder_may_be_written_short(
    key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A shell leaves the ~ of --flag=~/name as it is; a folder named ~ would be made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_config({key: "~/name"}).as_flags()[key] == str(tmp_path / "name")
