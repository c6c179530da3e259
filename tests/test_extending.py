"""docs/extending.md and the loss of docs/tour.md: blocks go where they say, commands are typed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", PAGE, re.M | re.S)
# Flags that make a run short. Of a flag that is typed twice the last one counts.
QUICK = ["--image-size=40", "--crop-size=32", "--epochs=1", "--batch-num=1", "--batch-size=6"]
QUICK += ["--batch-k=3", "--embed-dim=8", "--workers=1"]
SMALL = "--model=tiny"


def apply(block: str, folder: Path) -> None:
    """Puts a block of code where its first line says."""
    first, _, code = block.partition("\n")
    place = re.fullmatch(
        r"# (at the end of|new file|among the imports of|a row of (\w+) in) (\S+)", first
    )
    assert place, first
    file = folder / place[3]
    if place[1] == "new file":
        assert not file.exists()
        file.write_text(code, encoding="utf-8")
        return
    text = file.read_text(encoding="utf-8")
    if place[1] == "at the end of":
        text = f"{text}\n{code}"
    elif place[2]:
        # The table may be annotated.
        text, count = re.subn(
            rf"^({place[2]}(: .*)? = [({{]\n)", lambda found: found[1] + code, text, flags=re.M
        )
        assert count == 1, first
    else:
        text, count = re.subn(r"^(?=from embedding_learning)", code, text, count=1, flags=re.M)
        assert count == 1, first
    file.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with all blocks of the page, and a folder photos/ with a list."""
    folder = tmp_path_factory.mktemp("program")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "embedding_learning", folder / "embedding_learning", ignore=ignored)
    shutil.copy(ROOT / "train.py", folder)
    for language, block in BLOCKS:
        if language == "python":
            apply(block, folder)
    photos = folder / "photos"
    photos.mkdir()
    lines = []
    for number, (part, label) in enumerate(
        [("train", name) for name in "abcd" for _ in range(3)] + [("test", "e"), ("test", "e")]
    ):
        pixels = np.full((20, 20, 3), 10 * number, np.uint8)
        cv2.imwrite(str(photos / f"{number}.png"), pixels)
        lines.append(f"{part} {label} {number}.png\n")
    (photos / "list.txt").write_text("".join(lines))
    return folder


def test_the_examples_pass_lint(copy: Path) -> None:
    """As `make lint` checks them, once the imports are sorted."""
    shutil.copy(ROOT / "pyproject.toml", copy)
    for arguments in (
        ["ruff", "check", "--fix", "--select=I", "--quiet"],
        ["ruff", "check", "--quiet", "embedding_learning"],
        ["ruff", "format", "--check", "--quiet", "embedding_learning"],
        # What is as `make lint` found it is not checked again.
        ["mypy", "--no-error-summary", f"--cache-dir={ROOT / '.mypy_cache'}", "embedding_learning"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=copy, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


# Runs several programs in one process, which imports MXNet once; prints their outputs.
PROGRAMS = """
import contextlib, io, json, runpy, sys
outputs = []
for words in json.loads(sys.argv[1]):
    sys.argv = words
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            assert end.code == 0, (words, out.buffer.getvalue())
    outputs.append(out.buffer.getvalue().decode())
print(json.dumps(outputs))
"""


def run(copy: Path, *programs: list[str]) -> list[str]:
    """Runs programs of the copy, in a process of its own; returns what each printed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS, json.dumps(programs)],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT,
    )
    assert done.returncode == 0, done.stderr
    outputs: list[str] = json.loads(done.stdout)
    return outputs


def words_of(command: str, *flags: str) -> list[str]:
    """Returns the file and the arguments of a command that is typed in the copy."""
    program, *words = shlex.split(command)
    assert program == "python3"
    if words[0] == "-m":
        assert words[1] == "embedding_learning"
        words[:2] = ["embedding_learning/__main__.py"]
    if words[0] == "train.py":
        # Unless the command names another.
        words.insert(1, SMALL)
    return [*words, *flags]


def page_commands() -> list[str]:
    """Returns the lines of the page's bash blocks."""
    return [
        command
        for language, block in BLOCKS
        if language == "bash"
        for command in block.splitlines()
    ]


def tour_blocks() -> list[tuple[str, str]]:
    """Returns language and text of the blocks of the tour that are run here."""
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    marked = r"^<!-- run by tests/test_extending.py -->\n```(python|bash)\n(.*?)^```"
    return re.findall(marked, tour, re.M | re.S)


@pytest.fixture(scope="module")
def printed(copy: Path, tiny_cub: Path) -> list[str]:
    """What the commands of the page print, then a short tour, and the tour's last command.

    All run in one process, since the import of MXNet takes longer than a run.
    """
    quick = [*QUICK, f"--data-path={tiny_cub}"]
    typed = [
        words_of(
            command,
            *(quick if "train.py" in command else []),
            *(["--cache-dir=cache"] if "photos" in command else []),
        )
        for command in page_commands()
    ]
    *_, (_, command) = tour_blocks()
    typed.append(["train.py", SMALL, *quick, "--save-model-prefix=tour"])
    typed.append(words_of(command.replace("\\\n", " "), SMALL, *quick))
    return run(copy, *typed)


def test_every_command_of_the_page_runs(copy: Path, printed: list[str]) -> None:
    commands = page_commands()
    outputs = dict(zip(commands, printed))
    assert len(outputs) >= 7
    (counted,) = [text for command, text in outputs.items() if " count " in command]
    assert counted == "photos: 12 train, 2 test\n"
    (metrics,) = [text for command, text in outputs.items() if "error@1" in command]
    recall, error = (
        float(re.search(rf"validation: {name}@1=(\S+)", metrics)[1]) for name in ("Recall", "error")
    )
    assert error == pytest.approx(1 - recall, abs=1e-6)
    assert (copy / "time.png").stat().st_size > 1000


def test_the_tour_adds_the_same_loss(printed: list[str]) -> None:
    """Its command continues from the network that the tour has trained before."""
    *code, _ = tour_blocks()
    assert len(code) == 2
    assert {*code} <= {*BLOCKS}
    assert "Recall@1 before training" in printed[-1]
    assert "Best validation Recall@1" in printed[-1]


# The loss and the sampling compute what the page says.
METHODS = """
import embedding_learning
import numpy as np
from mxnet import nd
from embedding_learning.model.losses import RatioLoss
from embedding_learning.model.sampling import FarthestSampling
rng = np.random.default_rng(0)
a, p, n = (rng.normal(size=(7, 5)).astype(np.float32) for _ in range(3))
(term,) = RatioLoss(0.5).terms(*map(nd.array, (a, p, n)))
squared = [((a - other) ** 2).sum(axis=1) for other in (p, n)]
expected = np.maximum(squared[0] / (squared[1] + 1e-3) - 0.5, 0)
np.testing.assert_allclose(term.asnumpy(), expected, rtol=1e-4)
x = rng.normal(size=(12, 5)).astype(np.float32)
x /= np.linalg.norm(x, axis=1, keepdims=True)
rows, anchors, _, negatives, *_ = FarthestSampling(3)(nd.array(x))
distance = ((x[:, None] - x) ** 2).sum(axis=2)
distance[np.arange(12)[:, None] // 3 == np.arange(12) // 3] = 0
found = ((anchors - negatives) ** 2).sum(axis=1).asnumpy()
np.testing.assert_allclose(found, distance.max(axis=1)[rows.asnumpy().astype(int)], rtol=1e-4)
"""
# The numbers of the backbone, as tests/model/test_backbones.py compares them.
ROW = """
import embedding_learning
import mxnet as mx
from embedding_learning.model import backbones
from embedding_learning.model.weights.catalog import ARCHITECTURES
row = ARCHITECTURES["tiny"]
net = backbones.create("tiny", [mx.cpu()])
net.initialize(ctx=mx.cpu())
features = net(mx.nd.zeros((1, 3, row.crop_size, row.crop_size)))
assert features.size == row.features, features.shape
learned = [p for p in net.collect_params().values() if p.grad_req != "null"]
assert sum(p.data().size for p in learned) == row.parameters, sum(p.data().size for p in learned)
"""


def test_the_examples_and_their_rows_do_what_they_say(copy: Path) -> None:
    """In a process of its own, since it imports the copy."""
    command = [sys.executable, "-c", METHODS + ROW]
    subprocess.run(command, cwd=copy, check=True, timeout=HANG_LIMIT)


def test_the_tests_to_copy_exist() -> None:
    files = re.findall(r"`(tests/\S+\.py)`", PAGE)
    assert files
    for file in files:
        assert (ROOT / file).is_file(), file
    for name, file in re.findall(r"`(test_\w+)` in `(\S+)`", PAGE):
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name
