"""train.py as a user runs it: its lines, its file, its answers to mistakes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mxnet as mx
import pytest

from embedding_learning.cli import evaluate, train
from embedding_learning.data import preprocessing
from embedding_learning.data.datasets import cub200
from embedding_learning.model.weights.params_file import read_description

# Two epochs of three batches from the four training classes of `tiny_cub`. Decoded images are kept
# next to the folder in which the run starts, so that equal runs elsewhere have equal log lines.
QUICK = [
    *("--model=tiny", "--image-size=40", "--crop-size=32", "--embed-dim=16", "--lr=0.001"),
    *("--batch-size=6", "--batch-k=3", "--epochs=2", "--batch-num=3", "--log-interval=2"),
    *("--workers=2", "--cache-dir=../cache"),
]
Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.usefixtures("tiny_backbones")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the one full run of this module was started."""
    folder = tmp_path_factory.mktemp("run") / "here"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def done(train_command: Run, folder: Path, tiny_cub: Path) -> subprocess.CompletedProcess[str]:
    """The finished run in that folder."""
    finished = train_command(folder, f"--data-path={tiny_cub}", *QUICK)
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A function that runs train.py in this process, which spares the import of MXNet."""

    def start(*flags: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train.py", *flags])
        return train.main()

    return start


def logged(text: str) -> list[str]:
    """The log lines but for the times, which no two runs share."""
    return [line for line in text.splitlines() if "time cost" not in line]


def recalls_at_1(text: str) -> list[float]:
    return [float(value) for value in re.findall(r"validation: Recall@1=(\d\.\d+)", text)]


# A run


@pytest.mark.slow
def test_the_log_is_that_of_the_original(done: subprocess.CompletedProcess[str]) -> None:
    number = r"\d+\.\d{6}"
    epoch = "".join(
        rf"INFO:root:{line}\n"
        for line in (
            r"Epoch EPOCH learning rate=0\.001000",
            r"Epoch EPOCH beta learning rate=0\.100000",
            rf"\[Epoch EPOCH, Iter 2\] training loss={number}",
            rf"\[Epoch EPOCH\] training loss={number}",
            rf"\[Epoch EPOCH\] time cost: {number}",
            *(rf"\[Epoch EPOCH\] validation: Recall@{k}={number}" for k in (1, 2, 4, 8, 16)),
        )
    )
    saving = r"INFO:root:Saving margin_loss_model\.\n"
    lines = (
        r"INFO:root:Namespace\(.*\)\n"
        r"INFO:root:CUB-200-2011, cropped to boxes: 16 images of 4 classes train, 16 of 4 test\.\n"
        r"INFO:root:Decoding 32 of 32 images into \.\./cache/pixels/[0-9a-f]{16}\.\n"
        + epoch.replace("EPOCH", "0")
        + saving
        + epoch.replace("EPOCH", "1")
        + f"({saving})?"
    )
    assert re.fullmatch(lines, done.stderr), done.stderr


def test_the_closing_line_tells_the_best_recall(done: subprocess.CompletedProcess[str]) -> None:
    best = max(recalls_at_1(done.stderr))
    assert done.stdout == (
        f"CUB-200-2011, cropped to boxes.\nBest validation Recall@1: {best:.2f}.\n"
    )


def test_the_model_is_saved_whenever_it_is_the_best(
    done: subprocess.CompletedProcess[str],
) -> None:
    first, second = recalls_at_1(done.stderr)
    assert done.stderr.count("Saving") == 1 + (second > first)


def test_the_loss_of_an_epoch_is_the_sum_over_its_batches(
    done: subprocess.CompletedProcess[str],
) -> None:
    for epoch in (0, 1):
        some = re.search(rf"\[Epoch {epoch}, Iter 2\] training loss=(\S+)", done.stderr)
        all_of_it = re.search(rf"\[Epoch {epoch}\] training loss=(\S+)", done.stderr)
        assert some
        assert all_of_it
        assert 0 < float(some[1]) < float(all_of_it[1])


def test_the_run_leaves_the_model_its_folder_and_nothing_else(
    done: subprocess.CompletedProcess[str], folder: Path
) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "margin_loss_model.params",
        "margin_loss_model.run",
    }
    arrays = mx.nd.load(str(folder / "margin_loss_model.params"))
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes["base_net.0.weight"] == (8, 3, 3, 3)
    assert shapes["dense.bias"] == (16,)
    assert {name.split(".")[0] for name in shapes} == {"base_net", "dense"}


@pytest.mark.slow
def test_a_run_repeated_ends_with_the_same_bytes(
    train_command: Run,
    done: subprocess.CompletedProcess[str],
    folder: Path,
    tiny_cub: Path,
    here: Path,
) -> None:
    again = train_command(here, f"--data-path={tiny_cub}", *QUICK)
    assert logged(again.stderr) == logged(done.stderr)
    assert again.stdout == done.stdout
    (file,) = here.glob("*.params")
    assert file.read_bytes() == (folder / file.name).read_bytes()


def test_a_run_that_finds_its_images_decoded_is_the_same_but_for_the_line_that_says_so(
    done: subprocess.CompletedProcess[str],
    start: Callable[..., int],
    folder: Path,
    here: Path,
    tiny_cub: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    flags = [f"--cache-dir={folder.parent / 'cache'}"]
    assert start(f"--data-path={tiny_cub}", *QUICK, *flags) == 0
    lines = [line.replace("INFO:root:", "") for line in logged(done.stderr)]
    first, split, decoding, *others = lines
    assert first.startswith("Namespace(")
    assert decoding.startswith("Decoding ")
    assert logged("\n".join(caplog.messages))[1:] == [split, *others]
    (file,) = here.glob("*.params")
    assert file.read_bytes() == (folder / file.name).read_bytes()


def test_a_run_that_keeps_no_decoded_images_ends_with_the_same_bytes(
    done: subprocess.CompletedProcess[str],
    start: Callable[..., int],
    folder: Path,
    here: Path,
    tiny_cub: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    assert start(f"--data-path={tiny_cub}", *QUICK, "--cache=none") == 0
    assert "Decoding" not in caplog.text
    (file,) = here.glob("*.params")
    assert file.read_bytes() == (folder / file.name).read_bytes()
    assert not (here.parent / "cache").exists()


def test_whole_images_are_another_run_and_it_says_so(
    done: subprocess.CompletedProcess[str],
    start: Callable[..., int],
    folder: Path,
    here: Path,
    tiny_cub: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    assert start(f"--data-path={tiny_cub}", *QUICK, "--no-bbox") == 0
    line = "CUB-200-2011, whole images: 16 images of 4 classes train, 16 of 4 test."
    assert line in caplog.messages
    (file,) = here.glob("*.params")
    assert file.read_bytes() != (folder / file.name).read_bytes()


def test_another_seed_is_another_run(
    done: subprocess.CompletedProcess[str],
    start: Callable[..., int],
    folder: Path,
    here: Path,
    tiny_cub: Path,
) -> None:
    assert start(f"--data-path={tiny_cub}", *QUICK, "--seed=124") == 0
    (file,) = here.glob("*.params")
    assert file.read_bytes() != (folder / file.name).read_bytes()


def test_neither_workers_nor_this_process_change_the_bytes(
    done: subprocess.CompletedProcess[str],
    start: Callable[..., int],
    folder: Path,
    here: Path,
    tiny_cub: Path,
) -> None:
    assert start(f"--data-path={tiny_cub}", *QUICK, "--workers=0", "--save-prefix=other") == 0
    (file,) = here.glob("*.params")
    assert file.name == "other.params"
    assert file.read_bytes() == (folder / "margin_loss_model.params").read_bytes()


@pytest.mark.parametrize("flags", [[], ["--evaluate-first"]])
def test_a_resumed_model_recalls_what_it_did_when_it_was_saved(
    done: subprocess.CompletedProcess[str],
    start: Callable[..., int],
    folder: Path,
    here: Path,
    tiny_cub: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
) -> None:
    caplog.set_level("INFO")
    model = folder / "margin_loss_model.params"
    flags = [*flags, "--epochs=0", f"--resume={model}"]
    assert start(f"--data-path={tiny_cub}", *QUICK, *flags) == 0
    best = max(recalls_at_1(done.stderr))
    assert f"[Before training] validation: Recall@1={best:f}" in caplog.messages
    assert capsys.readouterr().out.splitlines() == [
        "CUB-200-2011, cropped to boxes.",
        f"Recall@1 before training: {best:.4f}.",
        f"Best validation Recall@1: {best:.2f}.",
    ]
    assert list(here.iterdir()) == []


def test_a_resumed_model_is_not_replaced_by_one_that_is_no_better(
    done: subprocess.CompletedProcess[str],
    start: Callable[..., int],
    folder: Path,
    here: Path,
    tiny_cub: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    saved = (folder / "margin_loss_model.params").read_bytes()
    model = here / "margin_loss_model.params"
    model.write_bytes(saved)
    flags = ["--lr=0", f"--resume={model}"]
    assert start(f"--data-path={tiny_cub}", *QUICK, *flags) == 0
    best = max(recalls_at_1(done.stderr))
    assert recalls_at_1(caplog.text) == [best] * 3
    assert "Saving" not in caplog.text
    assert model.read_bytes() == saved


def test_evaluating_first_does_not_change_the_run(
    done: subprocess.CompletedProcess[str],
    start: Callable[..., int],
    folder: Path,
    here: Path,
    tiny_cub: Path,
) -> None:
    assert start(f"--data-path={tiny_cub}", *QUICK, "--evaluate-first") == 0
    (file,) = here.glob("*.params")
    assert file.read_bytes() == (folder / file.name).read_bytes()


@pytest.mark.slow
def test_a_pretrained_network_is_evaluated_before_training(
    start: Callable[..., int],
    here: Path,
    tiny_cub: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Unless that is refused, and the network is the same."""
    caplog.set_level("INFO")
    classifier = mx.gluon.model_zoo.vision.squeezenet1_1()
    classifier.initialize()
    classifier(mx.nd.zeros((1, 3, 224, 224)))
    classifier.save_parameters("zoo.params")
    flags = [f"--data-path={tiny_cub}", *QUICK, "--model=squeezenet1.1", "--epochs=1"]
    flags += ["--pretrained-params=zoo.params"]
    assert start(*flags, "--save-prefix=a") == 0
    (before,) = re.findall(r"\[Before training\] validation: Recall@1=(\S+)", caplog.text)
    assert f"Recall@1 before training: {float(before):.4f}, best" in capsys.readouterr().out
    caplog.clear()
    assert start(*flags, "--save-prefix=b", "--no-evaluate-first") == 0
    assert "before training" not in caplog.text.lower() + capsys.readouterr().out.lower()
    assert (here / "a.params").read_bytes() == (here / "b.params").read_bytes()


def test_two_devices_share_a_batch(
    start: Callable[..., int],
    here: Path,
    tiny_cub: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--cpu-contexts=2", "--total-batch-size=12", "--epochs=1"]
    assert start(f"--data-path={tiny_cub}", *QUICK, *flags) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Best validation Recall@1: ")
    assert (here / "margin_loss_model.params").is_file()


def test_the_learning_rates_fall_at_the_steps(
    start: Callable[..., int], here: Path, tiny_cub: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    flags = ["--epochs=3", "--batch-num=1", "--steps=1,2", "--factor=0.1", "--lr=0.01"]
    assert start(f"--data-path={tiny_cub}", *QUICK, *flags) == 0
    rates = [line.partition("=")[2] for line in caplog.messages if "learning rate=" in line]
    assert rates == ["0.010000", "0.100000", "0.001000", "0.010000", "0.000100", "0.001000"]


def test_a_network_is_saved_where_no_test_image_can_be_recalled(
    start: Callable[..., int],
    here: Path,
    write_cub: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One test image; evaluating the saved network finds it."""
    folder = write_cub(here.parent / "birds", [4, 4, 1])
    flags = [f"--data-path={folder}", "--train-classes=2", "--epochs=1"]
    assert start(*QUICK, *flags) == 0
    assert "1 of 1 test images have no partner" in caplog.text
    assert read_description("margin_loss_model.params", "MODEL")["recall_at_1"] == 0.0
    assert evaluate.main(["margin_loss_model.params", *flags[:2], "--metrics=recall@1"]) == 0


# Mistakes


@pytest.fixture
def nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test fail that decodes an image."""

    def read_image(*arguments: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(preprocessing, "read_image", read_image)


def assert_one_line(status: int, output: tuple[str, str], message: str) -> None:
    """Status 2, nothing on the standard output, and of the errors one line."""
    out, err = output
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"train\.py: error: {message}.*\n", err), err


BATCH = "--batch-size, --total-batch-size: a batch of"
NO_FILE = "no such file, or it cannot be read"


@pytest.mark.usefixtures("nothing_is_decoded")
@pytest.mark.parametrize(
    "flags, message",
    [
        ("--model resnet_50", "--model resnet_50: unknown; .*resnet50"),
        ("--optimizer adams", "--optimizer adams: unknown; .*adam"),
        ("--kvstore none", "--kvstore none: unknown"),
        ("--batch-k 4", "--batch-size 6: 6 images a device are not whole classes"),
        ("--batch-size 15", f"{BATCH} 15 .* only 4 train; --batch-size 12 is the most"),
        ("--batch-size 9 --cpu-contexts 2", f"{BATCH} 18 .* holds 6 classes, but only 4 train"),
        ("--total-batch-size 15", f"{BATCH} 15 .* holds 5 classes, but only 4 train"),
        ("--train-classes 1", ".*: 1 class trains, but 2 have to"),
        ("--train-classes 8", "--train-classes 8: .* holds 8 classes"),
        ("--classes 5", "--classes 5: the data has 4 classes"),
        ("--batch-k 5 --batch-size 10", "class 001.Bird_1: has 4 images"),
        ("--gpus 63", "--gpus 63: this machine "),
        ("--data-path missing", "missing: no such folder"),
        ("--steps 2,x", "--steps 2,x: "),
        ("--freeze-bn", "--freeze-bn: has no effect: --model tiny has no batch norm"),
        ("--optimizer Adamax", "--optimizer adamax: MXNet's divides 0 by 0"),
        ("--beta-per image --loss triplet", "--beta-per: has no effect: --loss triplet has no "),
        ("--lr nan", "--lr nan: "),
        ("--resume missing.params", f"--resume missing.params: {NO_FILE}"),
        ("--pretrained-params missing.params", f"--pretrained-params missing.params: {NO_FILE}"),
        (
            "--crop-size 4",
            "--crop-size 4: tiny does not run with images of this size; try another",
        ),
        ("--dataset birds", "--dataset birds: unknown; choose one of "),
        ("--dataset cars196", ".*/cars_annos.mat: no such file"),
        ("--small-classes drop --batch-k 5 --batch-size 10", ".*: 0 classes train, but 2 have to"),
        ("--start-epoch 2", "--start-epoch 2: nothing is left of 2 epochs"),
        (
            "--save-model-prefix=",
            "argument --save-model-prefix: the name of a file or folder is empty",
        ),
        ("--image-size 5000", "--image-size 5000: 4096 is the most"),
    ],
)
def test_a_mistake_is_reported_in_one_line_before_anything_is_decoded(
    start: Callable[..., int],
    here: Path,
    tiny_cub: Path,
    capfd: pytest.CaptureFixture[str],
    flags: str,
    message: str,
) -> None:
    status = start(f"--data-path={tiny_cub}", *QUICK, *flags.split())
    assert_one_line(status, capfd.readouterr(), message)
    assert list(here.iterdir()) == []
    assert not (here.parent / "cache").exists()


@pytest.fixture
def copy(tiny_cub: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_cub` to spoil."""
    return shutil.copytree(tiny_cub, tmp_path / "copy")


@pytest.mark.usefixtures("nothing_is_decoded")
def test_the_class_with_too_few_images_is_named(
    start: Callable[..., int],
    here: Path,
    tmp_path: Path,
    write_cub: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = write_cub(tmp_path / "uneven", [4, 4, 2, 4, 1, 1, 1, 1])
    status = start(f"--data-path={data}", *QUICK)
    assert_one_line(status, capfd.readouterr(), r"class 003\.Bird_3: has 2 images, .*--batch-k 3")


@pytest.mark.usefixtures("nothing_is_decoded")
@pytest.mark.parametrize("cache", ["pixels", "none"])
def test_an_image_that_is_missing_is_named(
    start: Callable[..., int],
    here: Path,
    copy: Path,
    capfd: pytest.CaptureFixture[str],
    cache: str,
) -> None:
    missing = Path(cub200.read(copy).paths[20])
    missing.unlink()
    status = start(f"--data-path={copy}", *QUICK, f"--cache={cache}")
    assert_one_line(status, capfd.readouterr(), f"{re.escape(str(missing))}: listed, but missing")


@pytest.mark.slow
def test_a_wrong_line_of_the_data_is_reported_to_the_user(
    train_command: Run, copy: Path, here: Path, tmp_path: Path
) -> None:
    boxes = copy / "bounding_boxes.txt"
    boxes.write_text(boxes.read_text().replace("7 2.0", "7 two"))
    before = sorted(tmp_path.rglob("*"))
    done = train_command(here, f"--data-path={copy}", *QUICK)
    assert_one_line(done.returncode, (done.stdout, logless(done.stderr)), f"{boxes}:7: ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["pixels", "none"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_broken_in_the_middle_ends_the_run_with_its_name(
    start: Callable[..., int],
    here: Path,
    copy: Path,
    capfd: pytest.CaptureFixture[str],
    workers: int,
    cache: str,
) -> None:
    broken = Path(cub200.read(copy).paths[25])
    broken.write_bytes(broken.read_bytes()[:500])
    status = start(f"--data-path={copy}", *QUICK, f"--workers={workers}", f"--cache={cache}")
    message = f"{re.escape(str(broken))}: is not a whole image"
    if cache == "pixels":
        assert_one_line(status, capfd.readouterr(), message)
        assert not list(here.iterdir())
    else:
        # Without the cache an image is first looked at in the batch that it belongs to.
        assert status == 3
        line = capfd.readouterr().err.splitlines()[-1]
        assert re.match(f"train.py: stopped: {message}.*--resume auto continues", line)
        assert [path.name for path in here.iterdir()] == ["margin_loss_model.run"]


@pytest.mark.parametrize("cache", ["pixels", "none"])
def test_a_run_goes_on_without_broken_images_where_it_is_reported_to(
    start: Callable[..., int],
    here: Path,
    copy: Path,
    caplog: pytest.LogCaptureFixture,
    cache: str,
) -> None:
    for row in (2, 25):
        Path(cub200.read(copy).paths[row]).write_bytes(b"not an image")
    flags = ["--epochs=1", "--batch-num=1", f"--cache={cache}", "--skip-bad-images"]
    assert start(f"--data-path={copy}", *QUICK, *flags) == 0
    assert "2 images that cannot be decoded are left out." in caplog.messages


def logless(text: str) -> str:
    """Returns the log without the line of the run's options."""
    return re.sub(r"^INFO:root:Namespace\(.*\)\n", "", text)


@pytest.mark.slow
@pytest.mark.parametrize("flags, epoch", [([], 0), (["--saved-epoch=last"], 1)])
def test_the_best_epoch_is_saved_or_the_last(
    here: Path,
    start: Callable[..., int],
    tiny_cub: Path,
    flags: list[str],
    epoch: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With learning rates of 0 all epochs are equally good, and the first counts as the best."""
    data = f"--data-path={tiny_cub}"
    assert start(data, *QUICK, "--lr=0", "--lr-beta=0", "--save-prefix=birds", *flags) == 0
    description = read_description("birds.params", "MODEL")
    assert description["epoch"] == epoch
    best = f"Best validation Recall@1: {description['recall_at_1']:.2f}."
    assert capsys.readouterr().out.splitlines()[-1] == best
