"""The original's files: found, recognized, and loaded with other numbers in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from embedding_learning.errors import UsageError
from embedding_learning.original import source
from tests.helpers.paths import ROOT
from tests.original.stand_in import change, write


@pytest.mark.parametrize("missing", source.FILES)
def test_a_folder_without_its_files(tmp_path: Path, missing: str) -> None:
    folder = write(tmp_path / "original")
    source.check_folder(folder)
    (folder / missing).unlink()
    with pytest.raises(UsageError) as error:
        source.check_folder(folder)
    assert str(error.value).startswith(f"{folder}: has no {missing}")
    assert "git clone --depth 1 --branch 1.9.1 https://github.com/apache/mxnet" in str(error.value)


def test_the_checkout_itself_leads_to_the_folder(tmp_path: Path) -> None:
    inner = write(tmp_path / "mxnet" / "example" / "gluon" / "embedding_learning")
    with pytest.raises(UsageError, match=f"did you mean {inner}"):
        source.check_folder(tmp_path / "mxnet")


@pytest.mark.parametrize(
    "file, old, new, line",
    [
        ("train.py", "range(200)", "range(300)", "does not contain the number 200"),
        # A text, a fraction or a truth is no such number.
        ("train.py", "range(200)", "range(int('200'))", "does not contain the number 200"),
        ("data.py", "256, 256", "256.0, 256.0", "does not contain the number 256"),
        ("model.py", "class MarginNet", "class class", "cannot be read"),
        ("data.py", "import os", "import \0os", "cannot be read"),
    ],
)
def test_other_files_of_these_names(
    tmp_path: Path, file: str, old: str, new: str, line: str
) -> None:
    folder = write(tmp_path / "original")
    change(folder, file, old, new)
    with pytest.raises(UsageError, match=line) as error:
        source.check_folder(folder)
    assert str(error.value).startswith(str(folder / file)) and "\n" not in str(error.value)


def test_no_text_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "original")
    (folder / "model.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        source.check_folder(folder)


_PROGRAM = """
import dis, sys
import embedding_learning
from embedding_learning.original import source
flags = ["--model=squeezenet1.1", "--embed-dim=4", "--batch-size=8", "--batch-k=4", "--seed=1"]
sys.modules["bottleneck"] = None
training = source.load(
    source.Path(sys.argv[1]), [*flags, "--use-pretrained"], source.Numbers(7, 3, 50, 40),
    lambda *given: (given, None),
)
import bottleneck
assert bottleneck.argpartition([3, 1, 2], 0)[0] == 1
# A small number is no constant of the function from Python 3.14 on.
loads = [i.argval for i in dis.get_instructions(training.train) if i.opname.startswith("LOAD_")]
print(training.beta.shape, training.train_data[-1], loads.count(3))
print(sorted({p.lr_mult for p in training.net.base_net.collect_params().values()}))
"""


@pytest.mark.slow
def test_its_numbers_become_those_of_the_run(tmp_path: Path) -> None:
    """Also: no weights are downloaded, warnings on syntax are hidden, numpy helps out."""
    folder = write(tmp_path / "original")
    files = {name: (folder / name).read_bytes() for name in source.FILES}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder)],
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["(7,) (3, 40, 40) 1", "[0.01]"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
