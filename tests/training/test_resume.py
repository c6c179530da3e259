"""Resuming: the progress of a run, the flags that must agree, and the images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_learning.cli.train_flags import parse
from embedding_learning.config import TrainConfig
from embedding_learning.data import build
from embedding_learning.errors import UsageError
from embedding_learning.training import resume
from embedding_learning.training.checkpoint_file import FORMAT, Checkpoint
from embedding_learning.training.progress import Progress

PATH = Path("p.run/checkpoint-0003-000007.safetensors")
START = f"--resume {PATH}: "
PROGRESS = Progress(3, 7, 1.5, 20.25, 33.1, 0.61, 2, 0.4, to_beat=0.61)
# Each with another value than in a run without flags; the batch still fits.
OTHERS = {
    "model": "--model=vgg11",
    "pool": "--pool=avg",
    "embed_dim": "--embed-dim=64",
    "feat_dim": "--feat-dim=512",
    "batch_k": "--batch-k=7",
    "total_batch_size": "--total-batch-size=35",
    "batch_num": "--batch-num=100",
    "image_size": "--image-size=300",
    "crop_size": "--crop-size=200",
    "exif_orientation": "--exif-orientation",
    "resize": "--resize=area",
    "resize_to": "--resize-to=shorter-side",
    "train_crop": "--train-crop=random-resized",
    "normalize_weights": "--normalize-weights",
    "optimizer": "--optimizer=sgd",
    "seed": "--seed=7",
    "dtype": "--dtype=float16",
    "loss": "--loss=triplet",
    "sampling": "--sampling=hard",
    "beta_per": "--beta-per=image",
    "beta_optimizer": "--beta-optimizer=adam",
    "cutoff": "--cutoff=0.25",
    "nonzero_loss_cutoff": "--nonzero-loss-cutoff=1.5",
    "memory": "--memory=512",
    "scale": "--scale=3.5",
    "lr_proxies": "--lr-proxies=0.02",
    "negatives": "--negatives=batch",
    "memory_from": "--memory-from=2",
    "saved_epoch": "--saved-epoch=last",
    "lr": "--lr=0.01",
    "lr_beta": "--lr-beta=0.2",
    "margin": "--margin=0.3",
    "nu": "--nu=0.1",
    "factor": "--factor=0.1",
    "steps": "--steps=5,6",
    "wd": "--wd=0.5",
    "momentum": "--momentum=0.5",
    "kvstore": "--kvstore=local",
    "on_nonfinite": "--on-nonfinite=skip",
    "freeze_bn": "--freeze-bn",
    "lr_mult_backbone": "--lr-mult-backbone=0.5",
    "warm_up_epochs": "--warm-up-epochs=1",
    "wd_exclude_bn_bias": "--wd-exclude-bn-bias",
    "grad_clip": "--grad-clip=2.5",
}


# Flags that have an effect only next to others.
NEEDS = {
    "scale": ["--loss=proxy-nca"],
    "lr_proxies": ["--loss=proxy-nca"],
    "negatives": ["--cpu-contexts=2"],
    "memory_from": ["--memory=512"],
}
# Only distance weighted sampling has these, and only the margin-based loss has a beta.
NOT_WITH_ANOTHER_METHOD = (
    *("normalize_weights", "cutoff", "nonzero_loss_cutoff"),
    *("beta_per", "beta_optimizer"),
)


def checkpoint_of(*flags: str, progress: Progress = PROGRESS, **changes: Any) -> Checkpoint:
    """Returns the checkpoint of a run with these flags, as it is read."""
    config = parse([*flags])
    devices = {"devices": config.devices.count}
    state = {**resume.describe(config, "digest", progress), "learner": devices, **changes}
    return Checkpoint(PATH, {}, json.loads(json.dumps(state)))


def refusal(checkpoint: Checkpoint, options: TrainConfig) -> str:
    with pytest.raises(UsageError) as error:
        resume.check_flags(checkpoint, options)
    line = str(error.value)
    assert line.startswith(START)
    assert line.isprintable()
    assert len(line) < 2000
    return line.removeprefix(START)


# Progress


@pytest.mark.parametrize(
    "progress",
    [Progress(), PROGRESS, Progress(5, 200, -1e300, 0.0, 1e9, 1.0, 0, 0.0)],
    ids=["begun", "midway", "extreme"],
)
def test_progress_comes_back(progress: Progress) -> None:
    assert resume.read_progress(checkpoint_of(progress=progress), 200) == progress


COUNTS = [-1, 2**31, 10**400, 1.0, "1", "", True, False, None, [], {}, float("nan")]
NUMBERS = ["1", "", True, False, None, [], {}, [1.0], 10**400, -(10**400)]
NUMBERS += [float(text) for text in ("nan", "inf", "-inf")]
OPTIONAL = {"best_epoch", "before", "to_beat"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*asdict(PROGRESS)])
def test_progress_that_makes_no_sense_is_refused(name: str) -> None:
    is_count = name in ("epoch", "batch", "best_epoch")
    for value in COUNTS if is_count else NUMBERS:
        if value is None and name in OPTIONAL:
            continue
        progress = {**asdict(PROGRESS), name: value}
        checkpoint = checkpoint_of()
        checkpoint.state["progress"] = progress
        with pytest.raises(UsageError, match=re.escape(START) + "does not show how far") as error:
            resume.read_progress(checkpoint, 200)
        assert str(error.value).isprintable()


def test_progress_of_other_fields_is_refused() -> None:
    whole = asdict(PROGRESS)
    others: list[Any] = [None, [], 3, "progress", {}, [*whole.items()], {**whole, "more": 1}]
    # Without `to_beat` it is of an earlier format.
    others += [
        {key: value for key, value in whole.items() if key != name}
        for name in whole.keys() - {"to_beat"}
    ]
    for progress in others:
        checkpoint = checkpoint_of()
        checkpoint.state["progress"] = progress
        with pytest.raises(UsageError, match="does not show how far"):
            resume.read_progress(checkpoint, 200)
    del checkpoint.state["progress"]
    with pytest.raises(UsageError, match="does not show how far"):
        resume.read_progress(checkpoint, 200)


@pytest.mark.parametrize(
    "progress, expected",
    [
        (Progress(), None),
        (Progress(2), None),  # nothing was recalled, so nothing was saved
        (Progress(2, best=0.5, best_epoch=1), 0.5),
        (Progress(2, best=0.5, best_epoch=0), 0.5),
        (Progress(2, best=0.0, best_epoch=1), 0.0),  # the last epoch was to be saved
        (Progress(0, before=0.25), None),  # --evaluate-first
        (Progress(1, best=0.25, before=0.25), 0.25),  # a network was resumed
    ],
)
def test_what_a_network_has_to_beat_in_a_checkpoint_of_format_1(
    progress: Progress, expected: float | None
) -> None:
    checkpoint = checkpoint_of(progress=progress, format=1)
    del checkpoint.state["progress"]["to_beat"]
    assert resume.read_progress(checkpoint, 200) == replace(progress, to_beat=expected)


@pytest.mark.parametrize(
    "progress, flags, is_left, is_lacking",
    [
        (Progress(1, 2), ["--epochs=2"], True, False),
        (Progress(2, best_epoch=0, to_beat=0.5), ["--epochs=2"], False, False),
        (Progress(2, best_epoch=0, to_beat=0.5), ["--epochs=2", "--saved-epoch=last"], True, True),
        (
            Progress(2, best_epoch=1, to_beat=0.5),
            ["--epochs=2", "--saved-epoch=last"],
            False,
            False,
        ),
        (Progress(2), ["--epochs=2"], True, True),
        (Progress(2, to_beat=0.5), ["--epochs=2"], False, False),  # the resumed one was better
        (Progress(2, 3), ["--epochs=1", "--saved-epoch=last"], False, False),
        (Progress(), ["--epochs=0"], False, False),
        (Progress(3), ["--epochs=0", "--start-epoch=3"], False, False),
    ],
)
def test_a_finished_run_may_lack_the_network_to_save(
    progress: Progress, flags: list[str], is_left: bool, is_lacking: bool
) -> None:
    run = parse(flags).run
    assert progress.has_work_left(run) == is_left
    assert progress.lacks_network(run) == is_lacking


def test_an_epoch_has_no_more_batches_than_it_has() -> None:
    """The last is done when the epoch is being evaluated."""
    checkpoint = checkpoint_of(progress=Progress(batch=200))
    assert resume.read_progress(checkpoint, 200).batch == 200
    with pytest.raises(UsageError, match="how far"):
        resume.read_progress(checkpoint, 199)


# Flags


def test_the_same_flags_agree_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for flags in ([], _all_but(*NOT_WITH_ANOTHER_METHOD), _all_but("sampling", "loss")):
        resume.check_flags(checkpoint_of(*flags), parse(flags))
    assert caplog.messages == []


def test_a_run_of_before_there_were_these_flags_goes_on_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    checkpoint = checkpoint_of()
    for name in resume._FORMERLY:
        del checkpoint.state["flags"][name]
    resume.check_flags(checkpoint, parse([]))
    assert caplog.messages == []


def test_a_rate_of_beta_is_of_no_matter_to_a_loss_without_one() -> None:
    resume.check_flags(checkpoint_of("--loss=triplet"), parse(["--loss=triplet", "--lr-beta=0"]))
    line = refusal(checkpoint_of(), parse(["--lr-beta=0"]))
    assert line.startswith("was made with --lr-beta 0.1; ")


def _all_but(*names: str) -> list[str]:
    """All flags of OTHERS without those of these names, and without those that need others."""
    return [flag for other, flag in OTHERS.items() if other not in (*names, *NEEDS)]


@pytest.mark.parametrize("name", resume._MUST_AGREE)
def test_a_flag_that_must_agree_is_named_with_the_value_to_give(name: str) -> None:
    base = ["--batch-size=70"]
    line = refusal(checkpoint_of(*base), parse([*base, OTHERS[name]]))
    default = parse([]).as_flags()[name]
    flag = "--" + name.replace("_", "-")
    setting = f"no {flag}" if default is None or default is False else f"{flag} {default}"
    assert line == f"was made with {setting}; give these, or start from scratch without --resume"
    back = refusal(checkpoint_of(*base, OTHERS[name]), parse(base))
    assert back.startswith(f"was made with {OTHERS[name].replace('=', ' ')}; ")


def test_all_that_differ_are_named_in_one_line() -> None:
    flags = _all_but(*NOT_WITH_ANOTHER_METHOD)
    line = refusal(checkpoint_of(*flags), parse([]))
    for name in {*resume._MUST_AGREE} - {*NOT_WITH_ANOTHER_METHOD}:
        assert OTHERS[name].replace("=", " ") in line


@pytest.mark.parametrize("name", resume._MAY_CHANGE)
def test_a_flag_that_leads_to_another_model_is_logged(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    needed = NEEDS.get(name, [])
    resume.check_flags(checkpoint_of(*needed), parse([*needed, OTHERS[name]]))
    former = parse(needed).as_flags()[name]
    assert caplog.messages == [
        f"The run continues with {OTHERS[name].replace('=', ' ')} instead of {former}."
    ]


@pytest.mark.parametrize(
    "flag",
    [
        *("--epochs=99", "--workers=0", "--log-interval=1", "--cache=none", "--cache-dir=x"),
        *("--keep=5", "--checkpoint-interval=3", "--evaluate-first"),
        *("--save-model-prefix=other", "--data-path=elsewhere", "--classes=100", "--no-bbox"),
        *("--resume=auto", "--batch-size=70", "--total-batch-size=70"),
    ],
)
def test_a_flag_without_influence_or_that_the_images_show_may_change_in_silence(
    flag: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    resume.check_flags(checkpoint_of(), parse([flag]))
    resume.check_flags(checkpoint_of(flag), parse([]))
    assert caplog.messages == []


def test_a_first_epoch_of_its_own_is_said_to_have_no_effect_on_a_run_that_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = "--start-epoch=2"
    resume.check_flags(checkpoint_of(first), parse([first]))
    resume.check_flags(checkpoint_of(first), parse([]))
    assert caplog.messages == []
    resume.check_flags(checkpoint_of(), parse([first]))
    assert caplog.messages == [
        "--start-epoch: has no effect: the run continues where its checkpoint was written."
    ]


def test_a_run_whose_optimizer_was_spelled_otherwise_goes_on_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    checkpoint = checkpoint_of()
    checkpoint.state["flags"]["optimizer"] = "Adam"
    resume.check_flags(checkpoint, parse(["--optimizer=ADAM"]))
    assert caplog.messages == []


def test_every_flag_has_been_thought_of() -> None:
    """A new one belongs in one of these lists."""
    shown_by_the_images = {
        *("data_path", "dataset", "bbox", "train_classes", "classes", "small_classes"),
        *("skip_bad_images", "held_out", "held_out_fold"),
    }
    without_influence = {
        *("epochs", "workers", "log_interval", "cache", "cache_dir", "keep", "evaluate_first"),
        *("checkpoint_interval", "start_epoch", "save_model_prefix", "resume"),
        *("metrics", "tensorboard", "init_from", "preset"),
    }
    told_apart = {
        *("use_pretrained", "pretrained_params", "gpus", "cpu_contexts", "batch_size"),
        "processes",
    }
    first_value_only = {"beta"}
    thought_of = [
        *(shown_by_the_images, without_influence, told_apart, first_value_only),
        *({*resume._MUST_AGREE}, {*resume._MAY_CHANGE}),
    ]
    assert sum(map(len, thought_of)) == len(set.union(*thought_of))
    assert set.union(*thought_of) == parse([]).as_flags().keys()


def test_pretrained_weights_from_anywhere_are_pretrained_weights() -> None:
    """They decide the convolutions' learning rate, whatever their source."""
    ways = ["--use-pretrained"], ["--pretrained-params=x.params"], ["--pretrained-params=y.params"]
    for former in ways:
        for now in ways:
            resume.check_flags(checkpoint_of(*former), parse(now))
        line = refusal(checkpoint_of(*former), parse([]))
        assert line.startswith("was made with pretrained weights; give these")
        assert refusal(checkpoint_of(), parse(former)).startswith("was made with random weights; ")


def test_a_learned_beta_and_a_constant_one_are_told_apart() -> None:
    line = refusal(checkpoint_of("--lr-beta=0"), parse([]))
    assert line.startswith("was made with --lr-beta 0.0; ")
    line = refusal(checkpoint_of(), parse(["--lr-beta=0"]))
    assert line.startswith("was made with --lr-beta 0.1; ")


def test_another_constant_beta_is_another_run_and_a_learned_one_has_left_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    resume.check_flags(checkpoint_of("--beta=1.0"), parse([]))
    assert caplog.messages == []
    resume.check_flags(checkpoint_of("--lr-beta=0"), parse(["--lr-beta=0", "--beta=1.0"]))
    assert caplog.messages == ["The run continues with --beta 1.0 instead of 1.2."]


@pytest.mark.parametrize(
    "former, now, message",
    [
        ([], ["--beta=1.0"], "--beta 1.0: has no effect: the run continues with the beta"),
        (
            ["--init-from=a.params"],
            ["--init-from=b.params"],
            "--init-from b.params: has no effect: the run continues with the weights",
        ),
        (
            ["--use-pretrained"],
            ["--pretrained-params=a.params"],
            "--pretrained-params a.params: has no effect: the run continues with the weights",
        ),
    ],
)
def test_what_only_the_start_of_a_run_reads_is_no_longer_read_and_it_says_so(
    former: list[str], now: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    resume.check_flags(checkpoint_of(*now), parse(now))
    assert caplog.messages == []
    resume.check_flags(checkpoint_of(*former), parse(now))
    assert caplog.messages == [f"{message} of its checkpoint."]


@pytest.mark.parametrize(
    "former, now, message",
    [
        (["--cpu-contexts=2"], [], "continues with 1 devices instead of 2"),
        ([], ["--cpu-contexts=2"], "continues with 2 devices instead of 1"),
        (["--gpus=0,1"], ["--gpus=3"], "continues with 1 devices instead of 2"),
        (["--gpus=0,1"], ["--gpus=2,3"], ""),
    ],
)
def test_another_number_of_devices_is_reported_with_its_effects(
    former: list[str], now: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    resume.check_flags(
        checkpoint_of("--total-batch-size=80", *former), parse(["--total-batch-size=80", *now])
    )
    assert len(caplog.messages) == bool(message)
    if message:
        (line,) = caplog.messages
        assert message in line
        for subject in ("Negatives", "running statistics of batch norm"):
            assert subject in line


def test_a_batch_of_each_device_must_make_the_same_whole() -> None:
    """--batch-size is a device's, so that another number of devices needs another one."""
    line = refusal(checkpoint_of("--cpu-contexts=2", "--batch-size=20"), parse(["--batch-size=20"]))
    assert "--total-batch-size 40" in line
    resume.check_flags(
        checkpoint_of("--cpu-contexts=2", "--batch-size=20"), parse(["--batch-size=40"])
    )


def test_other_packages_and_threads_are_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    checkpoint = checkpoint_of()
    assert checkpoint.state["made_with"]["threads"] == "4"
    assert checkpoint.state["made_with"]["numpy"] == np.__version__
    resume.check_flags(checkpoint, parse([]))
    assert caplog.messages == []
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    checkpoint.state["made_with"]["numpy"] = "1.0"
    resume.check_flags(checkpoint, parse([]))
    assert caplog.messages == [
        "Made with threads 4, continues with 2: the last digits may differ.",
        f"Made with numpy 1.0, continues with {np.__version__}: the last digits may differ.",
    ]


UNFIT = ["a\nb", "\x1b[31m", "x" * 501, ["a\n"], [["a"]], [{}], {}, {"a": 1}, [1] * 1000]


@pytest.mark.parametrize("name", [*OTHERS, "beta"])
def test_a_stranger_s_flags_do_not_come_into_a_message(name: str) -> None:
    checkpoint, options = checkpoint_of(), parse([])
    for value in [*UNFIT, 10**4000]:
        checkpoint.state["flags"][name] = value
        assert refusal(checkpoint, options) == "does not show the flags of its run"


@pytest.mark.parametrize("flags", [None, [], 3, "flags", [["lr", 1]]])
def test_flags_that_are_none_are_refused(flags: Any) -> None:
    assert "does not show the flags" in refusal(checkpoint_of(flags=flags), parse([]))
    checkpoint = checkpoint_of()
    del checkpoint.state["flags"]
    assert "does not show the flags" in refusal(checkpoint, parse([]))
    line = refusal(checkpoint_of(flags={}), parse([]))
    assert line.startswith("was made with no --") and ", no --model, " in line


@pytest.mark.parametrize("value", [*UNFIT, None, 3, "text"])
def test_whatever_else_a_stranger_tells_is_one_line_or_none(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it makes a learner is seen when that is restored."""
    caplog.set_level("INFO")
    changes: list[dict[str, Any]] = [
        {"learner": value},
        {"learner": {"devices": value}},
        {"made_with": value},
        {"made_with": {"numpy": value, "threads": value}},
    ]
    for change in changes:
        resume.check_flags(checkpoint_of(**change), parse([]))
    for line in caplog.messages:
        assert line.isprintable()
        assert len(line) < 1000


def test_a_description_is_json_and_names_the_format() -> None:
    description = resume.describe(parse(["--steps=1,2"]), "digest", PROGRESS)
    assert json.loads(json.dumps(description)) == description
    assert (description["format"], description["data"], description["progress"]["epoch"]) == (
        FORMAT,
        "digest",
        3,
    )
    assert description["flags"]["steps"] == [1, 2]


# Images


def test_other_images_are_refused() -> None:
    resume.check_data(checkpoint_of(), "digest", "birds")
    for changes in ({"data": "other"}, {"data": None}, {"data": ["digest"]}):
        with pytest.raises(UsageError) as error:
            resume.check_data(checkpoint_of(**changes), "digest", "birds")
        assert str(error.value).startswith(
            f"{START}was trained on other images, classes, boxes or groups than --data-path birds "
            "holds"
        )


@pytest.fixture
def digest_of(tmp_path: Path) -> Callable[..., str]:
    """A function that gives the digest of a data set read with some flags."""

    def digest_of(folder: Path, *flags: str) -> str:
        quick = ["--image-size=40", "--crop-size=32", "--batch-size=6", "--batch-k=3"]
        quick += [f"--cache-dir={tmp_path}", "--workers=0"]
        options = parse([f"--data-path={folder}", *quick, *flags])
        opened = build.open_data(build.read_split(options), options)
        opened.close()
        return opened.digest

    return digest_of


def test_the_images_show_what_they_are_trained_as(
    digest_of: Callable[..., str], tiny_cub: Path, write_cub: Callable[..., Path], tmp_path: Path
) -> None:
    digest = digest_of(tiny_cub)
    for flag in ("--cache=none", "--small-classes=drop", "--skip-bad-images", "--classes=4"):
        assert digest_of(tiny_cub, flag) == digest
    elsewhere = write_cub(tmp_path / "elsewhere", [4] * 8)
    assert digest_of(elsewhere) == digest
    others = [digest_of(tiny_cub, "--no-bbox"), digest_of(tiny_cub, "--train-classes=5")]
    for images in ([4] * 10, [5] * 8, [4] * 7 + [5], [5] + [4] * 7):
        name = "-".join(map(str, images))
        others.append(digest_of(write_cub(tmp_path / name, images)))
    boxes = elsewhere / "bounding_boxes.txt"
    boxes.write_text(boxes.read_text().replace("7 2.0", "7 3.0"))
    others.append(digest_of(elsewhere))
    assert len({digest, *others}) == len(others) + 1


@pytest.mark.parametrize("row", [1, 25])
def test_an_image_left_out_shows(
    digest_of: Callable[..., str], write_cub: Callable[..., Path], tmp_path: Path, row: int
) -> None:
    folder = write_cub(tmp_path / "birds", [4] * 8)
    whole = digest_of(folder)
    paths = (folder / "images.txt").read_text().split()[1::2]
    (folder / "images" / paths[row]).write_bytes(b"no image")
    assert digest_of(folder, "--skip-bad-images") != whole
