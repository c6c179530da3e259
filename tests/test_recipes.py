"""docs/recipes.md: each command is typed up to its first step, and its tables are computed again.

The commands run on small sets in the layouts of the data sets. Only the network and the size of
images are others: batches, classes, rates and everything else are as typed.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mxnet as mx
import pytest

from embedding_learning import __main__ as program
from embedding_learning.cli import train_flags
from embedding_learning.config import FLAGS, TrainConfig
from embedding_learning.experiments import process_pool
from embedding_learning.training import presets
from embedding_learning.training.learner import Learner
from tests.fuzzing import samples
from tests.helpers.paths import ROOT
from tests.helpers.saved_models import save_model

PAGE = ROOT / "docs" / "recipes.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(
    r"^<!-- run by tests/test_recipes\.py -->\n```bash\n(.*?)^```$", TEXT, re.M | re.S
)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]
pytestmark = pytest.mark.usefixtures("tiny_backbones")

TINY = ["--image-size=40", "--crop-size=32", "--workers=1"]
# A batch of the largest recipe has 40 classes.
CLASSES = 44


class FirstStep(BaseException):
    """Ends a run after its first step."""


def write_cub(folder: Path) -> None:
    names = [f"{c:03d}.Bird/{i}.jpg" for c in range(1, 2 * CLASSES + 1) for i in range(5)]
    samples.write_images(folder / "images", names)
    columns = {
        "images": names,
        "image_class_labels": [int(name[:3]) for name in names],
        "bounding_boxes": ["2.0 1.0 12.0 9.0"] * len(names),
        "classes": [f"{c:03d}.Bird" for c in range(1, 2 * CLASSES + 1)],
    }
    for file, values in columns.items():
        lines = [f"{number} {value}" for number, value in enumerate(values, 1)]
        samples.write_lines(folder / f"{file}.txt", *lines)


def write_cars(folder: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    names = [f"car_ims/{number:06d}.jpg" for number in range(1, 8 * CLASSES + 1)]
    samples.write_images(folder, names)
    fields = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    annotations = np.empty((1, len(names)), [(field, object) for field in fields])
    for row, name in enumerate(names):
        annotations[0, row] = (name, 1, 1, 12, 14, row // 4 + 1, row % 2)
    class_names = np.empty((1, 2 * CLASSES), object)
    class_names[0] = [f"Car {number}" for number in range(2 * CLASSES)]
    savemat(folder / "cars_annos.mat", {"annotations": annotations, "class_names": class_names})


def write_sop(folder: Path) -> None:
    for part, first in (("train", 1), ("test", CLASSES + 1)):
        classes = range(first, first + CLASSES)
        names = [f"sofa_final/{number}_{image}.JPG" for number in classes for image in range(2)]
        samples.write_images(folder, names)
        rows = [f"{row} {first + row // 2} 1 {name}" for row, name in enumerate(names)]
        samples.write_lines(
            folder / f"Ebay_{part}.txt", "image_id class_id super_class_id path", *rows
        )


def write_inshop(folder: Path) -> None:
    names = [f"img/id_{c:08d}/0{i}.jpg" for c in range(1, CLASSES + 1) for i in range(4)]
    names[3:4] = []  # --small-classes=repeat has something to do
    samples.write_images(folder, names)
    parts = ["train" if int(name[7:15]) <= 30 else "query" for name in names]
    parts = [
        "gallery" if part == "query" and name.endswith("/00.jpg") else part
        for name, part in zip(names, parts)
    ]
    rows = [f"{name} id_{name[7:15]} {part}" for name, part in zip(names, parts)]
    header = "image_name item_id evaluation_status"
    lines = [str(len(rows)), header, *rows]
    samples.write_lines(folder / "Eval" / "list_eval_partition.txt", *lines)


def write_faces(folder: Path) -> None:
    names = [f"train/{c:07d}/{i}.jpg" for c in range(CLASSES) for i in range(3 + c % 2)]
    samples.write_images(folder, [*names, *(f"val/{c}/{i}.jpg" for c in "ab" for i in "12")])


def write_lfw(folder: Path) -> None:
    people = [chr(ord("A") + number) + "_Name" for number in range(20)]
    samples.write_images(folder, [f"{name}/{name}_000{i}.jpg" for name in people for i in (1, 2)])
    lines = ["10\t1"]
    for one, other in zip(people[::2], people[1::2]):
        lines += [f"{one}\t1\t2", f"{one}\t1\t{other}\t2"]
    samples.write_lines(folder / "pairs.txt", *lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_backbones: None) -> Path:
    """A folder with a small copy of each data set, and the network that one command measures."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, write in {
        "CUB_200_2011": write_cub,
        "cars196": write_cars,
        "Stanford_Online_Products": write_sop,
        "inshop": write_inshop,
        "casia": write_faces,
        "lfw": write_lfw,
    }.items():
        (folder / "data" / name).mkdir(parents=True)
        write(folder / "data" / name)
    save_model(folder / "faces.params", "--model=tiny")
    return folder


@pytest.fixture
def steps(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The losses of the first steps; commands run in a folder with the data and end after one."""
    (tmp_path / "data").symlink_to(folder / "data")
    (tmp_path / "faces.params").write_bytes((folder / "faces.params").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    losses, step = [], Learner.step

    def step_once(self: Learner, *arguments: Any) -> None:
        losses.append(step(self, *arguments).loss)
        mx.nd.waitall()
        raise FirstStep

    monkeypatch.setattr(Learner, "step", step_once)
    return losses


def without_machine(arguments: Sequence[str]) -> list[str]:
    """Returns the flags without those that need GPUs or downloaded weights."""
    left_out = ("--gpus=", "--use-pretrained", "--pretrained-params=")
    contexts = [f"--cpu-contexts={a.count(',') + 1}" for a in arguments if a.startswith("--gpus=")]
    return [*(a for a in arguments if not a.startswith(left_out)), *contexts]


def run_to_first_step(arguments: Sequence[str]) -> None:
    model = "tiny-norm" if "--freeze-bn" in arguments else "tiny"
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.suppress(FirstStep):
        program.main(["train", *without_machine(arguments), f"--model={model}", *TINY])
        pytest.fail(errors.getvalue())


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [w for w in COMMANDS if w[1] == "train.py"], ids=lambda words: " ".join(words[2:6])
)
def test_a_training_command_makes_its_first_step(words: list[str], steps: list[float]) -> None:
    assert words[0] == "python3"
    run_to_first_step(words[2:])
    assert len(steps) == 1 and steps[0] > 0


@pytest.mark.slow
def test_the_comparison_of_table_1_makes_each_first_step(
    steps: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten pairs with three seeds: those of the table on the page that start from scratch."""
    (words,) = [words for words in COMMANDS if "compare" in words]
    started = []

    def run_all(tasks: Sequence[Callable[..., None]], *_: Any) -> None:
        for task in tasks:
            task(train)

    def train(flags: Sequence[str], log: Path) -> int:
        config = train_flags.parse(flags)
        started.append((config.method.sampling, config.method.loss))
        if config.run.seed == 1:
            # The folder of a run would be resumed.
            run_to_first_step([*flags, "--no-bbox"])
        log.write_text("ended after its first step\n")
        return 1

    monkeypatch.setattr(process_pool, "run_all", run_all)
    assert words[:4] == ["python3", "-m", "embedding_learning", "compare"]
    assert program.main(without_machine(words[3:-1])) == 1  # without --gpus: no run has ended
    rows = re.findall(r"^\| ([\w-]+) \| ([\w-]+) \| from scratch \|", TEXT, re.M)
    assert len(rows) == 10 and sorted(started) == sorted(rows * 3)
    assert len(steps) == 10 and min(steps) > 0
    assert "0 of 3" in capsys.readouterr().out


@pytest.mark.slow
def test_the_pairs_of_lfw_are_measured(
    steps: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    (words,) = [words for words in COMMANDS if "evaluate" in words]
    assert program.main(words[3:]) == 0
    assert "10 pairs are same, 10 are different" in capsys.readouterr().out
    assert Path("roc.png").exists()


def test_each_command_on_the_page_is_run() -> None:
    assert len(BLOCKS) == TEXT.count("```bash")
    assert len(COMMANDS) == sum(block.count("python3 ") for block in BLOCKS)


def preset_rows() -> list[str]:
    """Returns the rows of the page's table of settings: presets with an equal setting share one."""
    shared: dict[presets.Setting, list[str]] = {}
    for name, settings in presets.SETTINGS.items():
        for setting in settings:
            shared.setdefault(setting, []).append(name)
    papers = [name for name in presets.SETTINGS if name.startswith("paper-")]
    rows = []
    for setting, names in sorted(shared.items(), key=lambda item: [*FLAGS].index(item[0].key)):
        flag = "--no-bbox" if setting.value is False else FLAGS[setting.key].name
        value = "" if setting.value is False else setting.value
        of = "all" if names == papers else ", ".join(name[len("paper-") :] for name in names)
        rows.append(f"| `{flag}` | {value} | {of} | {setting.certainty} | {setting.source} |")
    return rows


def test_the_page_has_each_setting_of_the_presets_with_its_source() -> None:
    found = re.findall(r"^\| `--.* \| (?:all|cub|cars|sop).* \|$", TEXT, re.M)
    assert found == preset_rows(), "\n".join(preset_rows())


def test_a_preset_sets_each_flag_once_and_says_how_it_is_known() -> None:
    sources = set(re.findall(r"^(\d+)\. ", TEXT[TEXT.index("## Sources") :], re.M))
    for settings in presets.SETTINGS.values():
        keys = [setting.key for setting in settings]
        assert len(set(keys)) == len(keys)
        for setting in settings:
            assert setting.certainty in presets.CERTAINTIES
            assert set(re.findall(r"\[(\d+)\]", setting.source)) <= sources
            needs_source = setting.certainty != presets.ORIGINAL and setting.key != "batch_num"
            assert "[" in setting.source or not needs_source, setting
    assert set(re.findall(r"\[(?:\d+, )*(\d+)\]", TEXT)) <= sources


def number(text: str) -> int:
    return int(text.replace(",", ""))


def config_of(recipe: str) -> TrainConfig:
    """Returns the settings of a row of the table of lengths, from its command on the page."""
    marks = {
        "`paper-cub`": ("paper-cub", "--lr-mult-backbone"),
        "`paper-cars`": ("paper-cars", ""),
        "`paper-sop`, pretrained": ("paper-sop", "--use-pretrained"),
        "`paper-sop`, from scratch": ("paper-sop", "--loss=triplet"),
        "faces": ("casia", ""),
        "In-Shop": ("inshop", ""),
    }
    commands = [" ".join(w[2:]) for w in COMMANDS if w[1] == "train.py"]
    command = next(c for c in commands if all(mark in c for mark in marks[recipe]))
    return train_flags.parse(shlex.split(command))


def test_the_lengths_are_passes_over_the_images() -> None:
    start = TEXT.index("## Length")
    rows = re.findall(
        r"^\| (.*?) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| (\d+) \| ([\d,]+) \| ([\d,]+) \|$",
        TEXT[start : TEXT.index("## What was reported")],
        re.M,
    )
    assert len(rows) == 6
    for recipe, *numbers in rows:
        images, batch, batches, passes, iterations, seen = map(number, numbers)
        assert batches == round(images / batch), recipe
        assert (iterations, seen) == (passes * batches, passes * batches * batch), recipe
        config = config_of(recipe)
        typed = (config.batch.per_device, config.batch.batch_num, config.run.epochs)
        assert typed == (batch, batches, passes), recipe


def test_the_expected_times_follow_from_the_rates() -> None:
    rows = re.findall(
        r"^\| .* \| ([\d,]+) / 384 = ([\d,]+) s \| (.*) = ([\d,]+) s \| (.*) \|$", TEXT, re.M
    )
    assert len(rows) == 6
    for images, training, formula, evaluation, total in rows:
        assert number(images) / 384 == pytest.approx(number(training), rel=0.04)
        match = re.fullmatch(r"(\d+) x \(?([\d,]+) / 1,150(?: \+ (\d+)\))?", formula)
        assert match, formula
        epochs, queries, search = number(match[1]), number(match[2]), number(match[3] or "0")
        seconds = epochs * (queries / 1150 + search)
        assert seconds == pytest.approx(number(evaluation), rel=0.04)
        value, unit = total.split()
        in_all = (number(training) + number(evaluation)) / {"min": 60, "h": 3600}[unit]
        assert in_all == pytest.approx(float(value), rel=0.05)
