"""The flags: the original's names, types and defaults, and one line for every bad value."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedding_learning.cli.train_flags import (
    add_flags,
    build_parser,
    find_key,
    given,
    leave_out_unused,
    parse,
    spelled_out,
)
from embedding_learning.data.datasets import NAMES
from embedding_learning.errors import UsageError
from tests.helpers.paths import ROOT

# What the original example defines, in its order: flag, the text it takes, the value read from
# it, and the value without the flag.
ORIGINAL: list[tuple[str, str, Any, Any]] = [
    ("--data-path", "birds", "birds", "data/CUB_200_2011"),
    ("--embed-dim", "64", 64, 128),
    ("--batch-size", "35", 35, 70),
    ("--batch-k", "7", 7, 5),
    ("--gpus", "0,2,5", [0, 2, 5], []),
    ("--epochs", "3", 3, 20),
    ("--optimizer", "sgd", "sgd", "adam"),
    ("--lr", "0.5", 0.5, 0.0001),
    ("--lr-beta", "0", 0.0, 0.1),
    ("--margin", "1", 1.0, 0.2),
    ("--beta", "0.9", 0.9, 1.2),
    ("--nu", "0.25", 0.25, 0.0),
    ("--factor", "0.1", 0.1, 0.5),
    ("--steps", "1,3", [1, 3], [12, 14, 16, 18]),
    ("--wd", "0", 0.0, 0.0001),
    ("--seed", "7", 7, 123),
    ("--model", "alexnet", "alexnet", "resnet50_v2"),
    ("--save-model-prefix", "mine", "mine", "margin_loss_model"),
    ("--use-pretrained", "", True, False),
    ("--kvstore", "local", "local", "device"),
    ("--log-interval", "5", 5, 20),
]
# The same for the flags of the PyTorch port.
PORT: list[tuple[str, str, Any, Any]] = [
    ("--start-epoch", "2", 2, 0),
    ("--workers", "0", 0, 4),
    ("--feat-dim", "256", 256, None),
    ("--classes", "98", 98, None),
    ("--batch-num", "50", 50, 200),
    ("--total-batch-size", "20", 20, 70),
    ("--momentum", "0.5", 0.5, 0.9),
    ("--resume", "old.params", "old.params", None),
    ("--normalize-weights", "", True, False),
]
OTHERS: list[tuple[str, str, Any, Any]] = [
    ("--dataset", "inshop", "inshop", None),
    ("--bbox", "", True, True),
    ("--train-classes", "90", 90, None),
    ("--small-classes", "repeat", "repeat", "error"),
    ("--skip-bad-images", "", True, False),
    ("--cache", "none", "none", "pixels"),
    ("--image-size", "300", 300, 256),
    ("--crop-size", "64", 64, 224),
    ("--pretrained-params", "zoo.params", "zoo.params", None),
    ("--evaluate-first", "", True, False),
    ("--cpu-contexts", "2", 2, 1),
]
FLOATS = [flag for flag, _, value, _ in ORIGINAL + PORT if isinstance(value, float)]
OF_ANY_SIGN = ("--beta", "--lr-beta", "--margin")


def value_of(flag: str, options: Any) -> Any:
    return options.as_flags()[flag.lstrip("-").replace("-", "_")]


@pytest.fixture(scope="module")
def help_text() -> str:
    done = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("flag, text, value, default", ORIGINAL + PORT + OTHERS)
def test_a_flag_has_its_type(flag: str, text: str, value: Any, default: Any) -> None:
    found = value_of(flag, parse([flag, text] if text else [flag]))
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("flag, text, value, default", ORIGINAL + PORT + OTHERS)
def test_a_flag_has_its_default(flag: str, text: str, value: Any, default: Any) -> None:
    found = value_of(flag, parse([]))
    assert (type(found), found) == (type(default), default)


def test_images_can_be_left_whole() -> None:
    assert parse(["--no-bbox"]).data.bbox is False
    assert parse(["--bbox", "--no-bbox"]).data.bbox is False
    assert parse(["--no-bbox", "--bbox"]).data.bbox is True


@pytest.mark.parametrize("flag, names", [
    ("--dataset", NAMES),
    ("--small-classes", ("error", "drop", "repeat")),
    ("--cache", ("pixels", "none")),
])  # fmt: skip
def test_of_some_words_each_is_taken_and_the_help_lists_them(
    flag: str, names: tuple[str, ...], help_text: str
) -> None:
    for name in names:
        assert value_of(flag, parse([flag, name])) == name
    assert f": {', '.join(names)}" in " ".join(help_text.split())


@pytest.mark.parametrize("model", ["inceptionv3", "inception_v3", "InceptionV3"])
def test_inception_v3_has_the_sizes_that_its_features_need(model: str) -> None:
    def sizes(*flags: str) -> tuple[int, int]:
        data = parse(["--model", model, *flags]).data
        return data.image_size, data.crop_size

    assert sizes() == (342, 299)
    assert sizes("--crop-size", "256") == (342, 256)
    assert sizes("--image-size", "320") == (320, 299)
    assert sizes("--image-size", "256", "--crop-size", "224") == (256, 224)


def test_images_can_be_as_large_as_4096_pixels() -> None:
    assert parse(["--image-size", "4096"]).data.image_size == 4096


def test_a_run_can_begin_with_its_last_epoch_or_have_none() -> None:
    assert parse(["--epochs", "3", "--start-epoch", "2"]).run.start_epoch == 2
    assert parse(["--epochs", "0", "--start-epoch", "2"]).run.epochs == 0


def test_drawn_images_are_cached_below_the_cache_folder_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/of/user")
    assert parse([]).data.cache_dir == "/of/user/embedding_learning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert parse([]).data.cache_dir == "/home/user/.cache/embedding_learning"
    assert parse(["--cache-dir", "cache"]).data.cache_dir == "cache"


@pytest.mark.parametrize(
    "alias, flag, value",
    [("--print-freq", "--log-interval", 7), ("--save-prefix", "--save-model-prefix", "7")],
)
def test_an_alias_sets_the_flag_that_it_is_another_name_of(
    alias: str, flag: str, value: Any
) -> None:
    assert value_of(flag, parse([alias, "7"])) == value
    assert value_of(flag, parse([flag, "6", alias, "7"])) == value
    assert value_of(flag, parse([alias, "6", flag, "7"])) == value


def test_help_lists_the_flags_of_the_original_first_and_in_its_order(help_text: str) -> None:
    flags = re.findall(r"^  (--[a-z-]+)", help_text, re.MULTILINE)
    assert flags[: len(ORIGINAL)] == [flag for flag, *_ in ORIGINAL]
    first, *groups = re.split(r"^(?=\S.*:$)", help_text, flags=re.MULTILINE)[1:]
    assert re.findall(r"^  (--[a-z-]+)", first, re.MULTILINE) == flags[: len(ORIGINAL)]
    assert len(groups) >= 2


def test_help_tells_every_default_of_the_original(help_text: str) -> None:
    one_line = " ".join(help_text.split())
    entries = dict(re.findall(r"(--[a-z-]+) [A-Z_]+ ((?:(?! --[a-z-]+ [A-Z_]+ ).)*)", one_line))
    for flag, _, _, default in ORIGINAL:
        if default not in (False, []):
            text = ",".join(map(str, default)) if isinstance(default, list) else default
            assert f"(default: {text})" in entries[flag], flag


def test_the_flags_are_read_without_mxnet_and_what_decodes() -> None:
    code = "import sys, embedding_learning.cli.train_flags as o; o.parse([]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"mxnet", "cv2", "scipy", "gluoncv"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "flags, total",
    [
        ("", 70),
        ("--gpus 0,1,3", 210),
        ("--cpu-contexts 2 --batch-size 10", 20),
        ("--total-batch-size 40 --cpu-contexts 2", 40),
        ("--total-batch-size 40 --gpus 3,1", 40),
    ],
)
def test_a_batch_is_what_all_devices_hold_together(flags: str, total: int) -> None:
    assert parse(flags.split()).batch.total == total


def test_gpus_keep_the_order_they_are_given_in() -> None:
    assert parse(["--gpus", "1,0"]).devices.gpus == (1, 0)


def test_flags_that_stand_among_the_arguments_are_reported_from_defaults() -> None:
    typed = "--print-freq 20 --seed=123 --no-bbox --use-pretrained --gpus 0,0 --embed 128"
    assert given(typed.split()) == {
        "log_interval": 20, "seed": 123, "bbox": False, "use_pretrained": True, "gpus": "0,0",
        "embed_dim": 128,
    }  # fmt: skip
    assert given([]) == {}
    with pytest.raises(UsageError, match="--lr"):
        given(["--lr=x"])


# What the original takes


def original_parser() -> argparse.ArgumentParser:
    """Reads the original's flags as the original does."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    for flag, text, value, _ in ORIGINAL:
        if text:
            kind = str if isinstance(value, list) else type(value)
            parser.add_argument(flag, type=kind)
        else:
            parser.add_argument(flag, action="store_true")
    return parser


ABBREVIATIONS = [
    (flag[:end], flag)
    for flag, *_ in ORIGINAL
    for end in range(3, len(flag))
    if sum(other.startswith(flag[:end]) for other in [*(f for f, *_ in ORIGINAL), "--help"]) == 1
]


@pytest.mark.slow
@pytest.mark.parametrize("short, flag", ABBREVIATIONS)
def test_what_the_original_takes_for_a_flag_is_that_flag(short: str, flag: str) -> None:
    """This holds also if a newer flag has the same beginning, as --dataset has."""
    text = next(text for name, text, *_ in ORIGINAL if name == flag)
    expected = vars(original_parser().parse_args([f"{short}={text}"] if text else [short]))
    for typed in ([short, text], [f"{short}={text}"]) if text else ([short],):
        (found,) = given(typed).items()
        assert found == (flag.lstrip("-").replace("-", "_"), expected[found[0]])
        assert value_of(flag, parse(typed)) == value_of(
            flag, parse([flag, text] if text else [flag])
        )


def test_no_flag_is_an_abbreviation_of_the_originals() -> None:
    """The same text would be another flag here than in the original."""
    shorts = {short for short, _ in ABBREVIATIONS}
    assert not shorts & {
        name for action in build_parser()._actions for name in action.option_strings
    }


@pytest.mark.parametrize(
    "short", ["--b", "--batch", "--batch-", "--e", "--s", "--m", "--l", "--be"]
)
def test_what_is_ambiguous_to_the_original_is_never_another_flag_of_its(short: str) -> None:
    """--be was beta's; what was ambiguous stays so, or names none of the original's."""
    if any(short == known for known, _ in ABBREVIATIONS):
        assert given([short, "1"]) == {"beta": 1.0}
    else:
        with pytest.raises(UsageError, match="ambiguous option"):
            given([short, "1"])


def test_abbreviations_of_help_mean_help() -> None:
    assert spelled_out(["--he", "--h=1", "--", "--h"]) == ["--help", "--help=1", "--", "--h"]


@pytest.mark.parametrize("text", ["12,14,16,18", "3,3", "5,2", "2,5,2", "-1,2", "0", " 1, 2", "99"])
def test_the_rates_fall_as_those_of_the_original(text: str) -> None:
    """Its `get_lr` goes through the list as it stands, and multiplies once for each step."""
    options = parse([f"--steps={text}", "--factor=0.5"])
    steps = [int(step) for step in text.split(",")]
    assert list(options.optimizer.steps) == steps
    for epoch in range(20):
        rate = 1.0
        for step in steps:
            if epoch >= step:
                rate *= 0.5
        assert options.optimizer.decay(epoch) == rate


@pytest.mark.parametrize("text, beta", [("-1", 0.0), ("-0.5", 0.0), ("-0.0", 0.0), ("0.2", 0.2)])
def test_beta_is_constant_unless_its_rate_is_above_0(text: str, beta: float) -> None:
    assert parse([f"--lr-beta={text}"]).method.lr_beta == beta


def test_margins_may_be_below_0() -> None:
    assert parse(["--margin=-0.1"]).method.margin == -0.1


@pytest.mark.parametrize("name", ["Adam", "ADAM", "SGD", "Nadam", "adam"])
def test_an_optimizer_has_one_spelling_however_it_is_typed(name: str) -> None:
    assert parse(["--optimizer", name]).optimizer.name == name.lower()


def test_a_kvstore_has_one_spelling_however_it_is_typed() -> None:
    assert parse(["--kvstore=Local"]).devices.kvstore == "local"


def test_a_flag_without_effect_is_left_out_however_it_is_typed() -> None:
    for typed in (["--beta-per", "image"], ["--beta-per=image"], ["--beta-p", "image"]):
        flags = spelled_out(["--lr=1", *typed, "--beta", "1"])
        assert leave_out_unused(flags)[0] == flags
        kept, config, reasons = leave_out_unused([*flags, "--loss=triplet"])
        # The original has --beta too, and accepts it always.
        assert kept == ["--lr=1", "--beta", "1", "--loss=triplet"]
        assert (config.method.beta_per, config.method.loss) == ("class", "triplet")
        assert reasons == {"beta_per": "--loss triplet has no beta"}
    flags = ["--wd=0", "--wd-exclude-bn-bias", "--epochs", "3"]
    assert leave_out_unused(flags)[0] == ["--wd=0", "--epochs", "3"]


def test_flags_that_need_one_that_has_no_effect_are_left_out_with_it() -> None:
    flags = ["--loss=arcface", "--memory=9", "--memory-from", "2", "--scale=3"]
    kept, _, reasons = leave_out_unused(flags)
    assert kept == ["--loss=arcface", "--scale=3"]
    assert list(reasons) == ["memory", "memory_from"]
    parse(kept)
    # A memory that stays empty. With --memory alone it would be filled from the start.
    kept, _, reasons = leave_out_unused(["--memory=9", "--memory-from=2", "--epochs=2"])
    assert (kept, {*reasons}) == (["--epochs=2"], {"memory", "memory_from"})


def test_flags_of_the_original_are_left_out_if_that_is_asked_for() -> None:
    flags = ["--loss=triplet", "--nu=0.1"]
    assert leave_out_unused(flags)[::2] == (flags, {})
    kept, _, reasons = leave_out_unused(flags, ["nu", "lr_beta", "lr"])
    assert (kept, {*reasons}) == (flags[:1], {"lr_beta", "nu"})


@pytest.mark.parametrize(
    "name, key",
    [
        ("lr", "lr"), ("embed-dim", "embed_dim"), ("embed", "embed_dim"), ("s", None),
        ("print-freq", "log_interval"), ("no-bbox", None), ("nothing", None), ("", None),
    ],
)  # fmt: skip
def test_the_key_of_a_flag(name: str, key: str | None) -> None:
    assert find_key(name) == key


# Sizes that MXNet cannot read


@pytest.mark.parametrize(
    "flags, line",
    [
        ("--lr 1e-38", "--lr 1e-38: must be 0 or of a size between 1e-34 and 3e+38"),
        ("--wd 1e-40", "--wd 1e-40: must be 0 or of a size between 1e-34 and 3e+38"),
        ("--grad-clip 1e-300", "--grad-clip 1e-300: must be 0 or of a size between 1e-34 and "
         "3e+38"),
        ("--lr-mult-backbone 1e39", "--lr-mult-backbone 1e+39: must be 0 or of a size between "
         "1e-34 and 3e+38"),
        ("--factor 1e-20 --steps 0,1", "--lr, --factor, --steps: the rate 1e-44 of epoch 19: must "
         "be 0 or of a size between 1e-34 and 3e+38"),
        ("--factor 1e34 --steps 0,0,0,0,0,0,0,0,0,0", "--lr, --factor, --steps: the rate inf of "
         "epoch 19: must be a finite number"),
        ("--lr 1e-20 --lr-mult-backbone 1e-20", "--lr-mult-backbone: the backbone's rate 1e-40: "
         "must be 0 or of a size between 1e-34 and 3e+38"),
        ("--embed-dim 9999999999", "--embed-dim 9999999999: 65536 is the most"),
        ("--feat-dim 99999999999", "--feat-dim 99999999999: 65536 is the most"),
        ("--batch-num 9223372036854775808", "--batch-num 9223372036854775808: 2147483647 is the "
         "most"),
        ("--workers 100000", "--workers 100000: 1024 is the most"),
        ("--batch-size 2147483645 --cpu-contexts 2", "--total-batch-size 4294967290: 2147483647 is "
         "the most"),
    ],
)  # fmt: skip
def test_a_size_that_mxnet_cannot_read_is_refused_with_the_limit(flags: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(flags.split())
    assert str(caught.value) == line


def test_rates_that_no_epoch_reaches_do_not_matter() -> None:
    assert parse(["--factor=1e-20", "--steps=0,1", "--epochs=1"]).run.epochs == 1
    assert parse(["--factor=1e-20", "--steps=20,21"]).optimizer.factor == 1e-20
    assert parse(["--lr=0", "--factor=0", "--wd=0"]).optimizer.lr == 0


def test_no_steps_are_an_empty_list() -> None:
    assert parse(["--steps", ""]).optimizer.steps == ()


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--batch-size 72", "--batch-size 72"),
        ("--batch-size 5", "--batch-size 5"),
        ("--batch-size 0", "--batch-size 0"),
        ("--batch-size -70", "--batch-size -70"),
        ("--batch-size 3.5", "--batch-size"),
        ("--batch-k 1", "--batch-k 1"),
        ("--batch-k 4", "--batch-k 4"),
        ("--held-out 1", "--held-out 1.0"),
        ("--held-out -0.1", "--held-out -0.1"),
        ("--held-out nan", "--held-out nan"),
        ("--total-batch-size 35 --cpu-contexts 2", "--total-batch-size 35"),
        ("--total-batch-size 40 --gpus 0,1,2", "--total-batch-size 40"),
        ("--total-batch-size 24 --gpus 0,1", "--total-batch-size 24"),
        ("--total-batch-size 10 --gpus 0,1", "--total-batch-size 10"),
        ("--steps 1,two", "--steps 1,two"),
        ("--steps 1.5", "--steps 1.5"),
        ("--steps 1,,2", "--steps 1,,2"),
        ("--gpus all", "--gpus all"),
        ("--gpus 0,0", "--gpus 0,0"),
        ("--gpus=-1", "--gpus -1"),
        ("--gpus 0,", "--gpus 0,"),
        ("--gpus 0 --cpu-contexts 2", "--cpu-contexts"),
        ("--kvstore nothing", "--kvstore nothing"),
        ("--embed-dim 0", "--embed-dim 0"),
        ("--embed-dim many", "--embed-dim"),
        ("--epochs -1", "--epochs -1"),
        ("--log-interval 0", "--log-interval 0"),
        ("--print-freq 0", "--log-interval 0"),
        ("--seed -1", "--seed -1"),
        ("--start-epoch -1", "--start-epoch -1"),
        ("--start-epoch 20", "--start-epoch 20"),
        ("--start-epoch 3 --epochs 2", "--start-epoch 3"),
        ("--workers -1", "--workers -1"),
        ("--feat-dim 0", "--feat-dim 0"),
        ("--classes 0", "--classes 0"),
        ("--batch-num 0", "--batch-num 0"),
        ("--total-batch-size 0", "--total-batch-size 0"),
        ("--train-classes 0", "--train-classes 0"),
        ("--cpu-contexts 0", "--cpu-contexts 0"),
        ("--image-size 0", "--image-size 0"),
        ("--crop-size 0", "--crop-size 0"),
        ("--crop-size 257", "--crop-size 257"),
        ("--image-size 200", "--image-size"),
        ("--image-size 4097", "--image-size 4097"),
        ("--model inceptionv3 --image-size 256", "--crop-size 299"),
        ("--dataset birds", "--dataset"),
        ("--dataset CUB200", "--dataset"),
        ("--small-classes fill", "--small-classes"),
        ("--cache memory", "--cache"),
        ("--bbox=yes", "--bbox"),
        ("--skip-bad-images=yes", "--skip-bad-images"),
        ("--save-model-prefix missing/model", "--save-model-prefix missing/model"),
        ("--save-prefix missing/model", "--save-model-prefix missing/model"),
        ("--save-model-prefix=", "--save-model-prefix: the name of a file or folder is empty"),
        ("--save-prefix=", "--save-model-prefix: the name of a file or folder is empty"),
        ("--resume=", "--resume: the name of a file or folder is empty"),
        ("--data-path=", "--data-path: the name of a file or folder is empty"),
        ("--save-model-prefix birds.params", "would be added again; give birds"),
        ("--save-model-prefix ./birds.run", "would be added again; give ./birds"),
        (f"--save-model-prefix {'m' * 240}", "is too long for the names of files"),
        ("--save-model-prefix ./", "--save-model-prefix ./"),
        ("--save-model-prefix taken", "--save-model-prefix taken"),
        ("--nonsense 1", "--nonsense"),
        ("birds", "birds"),
        ("--epochs", "--epochs"),
        ("--use-pretrained=yes", "--use-pretrained"),
        *((f"{flag} {text}", flag) for flag in FLOATS for text in ("nan", "inf", "much")),
        *((f"{flag}=-0.1", f"{flag} -0.1") for flag in FLOATS if flag not in OF_ANY_SIGN),
    ],
)
def test_a_bad_value_is_reported_in_one_line_that_names_the_flag(
    flags: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.params").mkdir()
    with pytest.raises(UsageError) as caught:
        parse(flags.split())
    message = str(caught.value)
    assert named in message
    assert "\n" not in message


def test_a_run_whose_prefix_ends_like_a_file_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "birds.params.run").mkdir()
    assert parse(["--save-model-prefix=birds.params"]).run.prefix == "birds.params"


@pytest.mark.parametrize("size, batch_k", [(72, 5), (1, 5), (68, 5), (7, 3), (999, 10)])
def test_the_batch_size_proposed_instead_is_taken(size: int, batch_k: int) -> None:
    with pytest.raises(UsageError) as caught:
        parse(["--batch-size", str(size), "--batch-k", str(batch_k)])
    proposed = re.search(r"(\d+) a device", str(caught.value))
    assert proposed
    parse(["--batch-size", proposed[1], "--batch-k", str(batch_k)])


@pytest.mark.parametrize("total", [1, 10, 11, 15, 20, 21, 64, 100])
@pytest.mark.parametrize("devices", [2, 3])
def test_the_total_batch_size_proposed_instead_is_taken(total: int, devices: int) -> None:
    contexts = f"--cpu-contexts={devices}"
    try:
        parse(["--total-batch-size", str(total), contexts])
    except UsageError as error:
        proposed = re.search(r"\(--total-batch-size (\d+)\)", str(error))
        assert proposed
        parse(["--total-batch-size", proposed[1], contexts])
    else:
        assert total % (5 * devices) == 0 and total >= 10 * devices


def test_some_flags_are_declared_for_another_command() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, ("batch_k", "bbox"))
    assert vars(parser.parse_args(["--no-bbox"])) == {"batch_k": 5, "bbox": False}


def test_a_model_can_be_saved_into_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert parse(["--save-model-prefix", "runs/a"]).run.prefix == "runs/a"
    assert parse(["--save-model-prefix", str(tmp_path / "a")])


def test_a_folder_that_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # The superuser may write everywhere, so the answer of the system is replaced.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(UsageError, match="--save-model-prefix margin_loss_model: the folder"):
        parse([])


def test_a_mistake_is_one_line_and_status_2(
    train_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = train_command(tmp_path, "--batch-size", "72")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"train.py: error: --batch-size 72: .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []
