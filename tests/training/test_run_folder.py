"""The folder of a run: who may write, which checkpoints and networks are kept and found."""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from mxnet.gluon import nn

from embedding_learning.errors import UsageError
from embedding_learning.model.weights.params_file import read_description, save_parameters
from embedding_learning.training import checkpoint_file, run_folder
from embedding_learning.training.checkpoint_file import FORMAT
from embedding_learning.training.run_folder import RunFolder
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT

ARRAYS = {"beta": np.float32([1.2, 1.3]), "network/w": np.arange(6, dtype=np.float32)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def names_in(folder: Path | str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


# What --resume means


def save(folder: RunFolder | Path, epoch: int, batch: int = 0) -> Path:
    """Writes a checkpoint whose state is its position, through a run or straight into a folder."""
    path = folder.path if isinstance(folder, RunFolder) else folder
    path = path / f"checkpoint-{epoch:04d}-{batch:06d}.safetensors"
    state = {"format": FORMAT, "at": [epoch, batch]}
    if isinstance(folder, RunFolder):
        folder.save(epoch, batch, ARRAYS, state)
    else:
        folder.mkdir(exist_ok=True)
        checkpoint_file.write(path, ARRAYS, state)
    return path


def found_at(resume: str, prefix: str = "p") -> list[int]:
    checkpoint = run_folder.find(resume, prefix)
    assert checkpoint
    position: list[int] = checkpoint.state["at"]
    return position


@pytest.mark.usefixtures("here")
def test_auto_without_a_checkpoint_finds_none() -> None:
    assert run_folder.find("auto", "p") is None
    Path("p.run").mkdir()
    assert run_folder.find("auto", "p") is None
    Path("p.run/checkpoint-0001-000000.safetensors.77.partial").write_bytes(b"begun")
    Path("p.run/best-0000.params").write_bytes(b"")
    assert run_folder.find("auto", "p") is None


@pytest.mark.usefixtures("here")
def test_the_newest_is_found_by_its_numbers() -> None:
    for position in ((9999, 7), (2, 0), (10000, 0), (10, 1000000), (10, 999999)):
        save(Path("p.run"), *position)
    assert found_at("auto") == found_at("p.run") == [10000, 0]
    Path("p.run/checkpoint-10000-000000.safetensors").unlink()
    assert found_at("auto") == [9999, 7]
    Path("p.run/checkpoint-9999-000007.safetensors").unlink()
    assert found_at("auto") == [10, 1000000]


@pytest.mark.usefixtures("here")
def test_the_prefix_of_another_run_means_its_folder() -> None:
    with RunFolder("other", keep=1) as folder:
        save(folder, 3)
    assert found_at("other") == found_at("other.run") == [3, 0]


@pytest.mark.usefixtures("here")
def test_a_file_and_the_folder_of_another_prefix_are_found() -> None:
    save(Path("p.run"), 3)
    old = save(Path("other.run"), 1)
    save(Path("other.run"), 2)
    assert found_at(str(old)) == [1, 0]
    assert found_at("other.run") == [2, 0]
    renamed = old.rename("kept")
    assert found_at(str(renamed)) == [1, 0]


@pytest.mark.parametrize("spoil", ["cut off", "emptied", "a folder", "a pipe"])
def test_the_one_before_a_damaged_one_is_used_with_a_warning(
    here: Path, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    save(here / "p.run", 1)
    save(here / "p.run", 1, 20)
    newest = save(here / "p.run", 2)
    content = newest.read_bytes()
    newest.unlink()
    if spoil == "a folder":
        newest.mkdir()
    elif spoil == "a pipe":
        os.mkfifo(newest)
    else:
        newest.write_bytes(content[:-1] if spoil == "cut off" else b"")
    for resume in ("auto", "p.run"):
        caplog.clear()
        assert found_at(resume) == [1, 20]
        (line,) = caplog.messages
        assert str(newest.relative_to(here)) in line
        assert line.endswith("; the one before it is used.")


@pytest.mark.usefixtures("here")
def test_what_is_missing_or_damaged_is_refused() -> None:
    Path("p.run").mkdir()
    Path("p.run/notes").write_text("")
    checks = {
        "missing": "No such file",
        "p.run/missing.safetensors": "No such file",
        "x" * 300: "File name too long",
        "p.run": "holds no checkpoint; leave --resume out",
        "p.run/notes": "no checkpoint",
        "p.run/notes/further": "Not a directory",
    }
    for resume, message in checks.items():
        with pytest.raises(UsageError, match=rf"^--resume {resume}: .*{message}") as error:
            run_folder.find(resume, "p")
        assert str(error.value).isprintable()
    for epoch in (1, 2):
        save(Path("p.run"), epoch).write_bytes(b"torn")
    for resume in ("p.run", "auto"):
        with pytest.raises(
            UsageError, match=f"^--resume {resume}: all its checkpoints are damaged"
        ):
            run_folder.find(resume, "p")


# Who may write


def run_python(folder: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    """A script that begins in a folder with these modules imported."""
    imports = "import os, resource, sys\nimport numpy as np\nfrom pathlib import Path\n"
    imports += "from embedding_learning.training.checkpoint_file import FORMAT\n"
    imports += "from embedding_learning.training.run_folder import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", imports + script, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def other_run(here: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the prefix `p`."""
    script = "with RunFolder('p', 2):\n    print('holds', flush=True)\n    sys.stdin.read()\n"
    with run_python(here, script) as process:
        assert process.stdout
        assert process.stdout.readline() == "holds\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_while_the_first_trains(
    here: Path, other_run: subprocess.Popen[str]
) -> None:
    message = r"^--save-model-prefix p: another run is writing to p\.run; .* choose another prefix$"
    with pytest.raises(UsageError, match=message), RunFolder("p", 2):
        pass
    assert names_in(here) == ["p.run"]
    with RunFolder("q", 2):
        pass


def test_the_folder_of_a_killed_run_is_free(here: Path, other_run: subprocess.Popen[str]) -> None:
    other_run.send_signal(signal.SIGKILL)
    other_run.wait()
    with RunFolder("p", 2) as folder:
        save(folder, 0)
    assert found_at("auto") == [0, 0]


@pytest.mark.usefixtures("here")
def test_a_run_that_ends_frees_its_folder_and_removes_it_if_it_is_empty() -> None:
    with RunFolder("p", 2):
        assert Path("p.run").is_dir()
    assert not Path("p.run").exists()
    for _ in range(2):
        with pytest.raises(KeyError), RunFolder("p", 2) as folder:
            save(folder, 0)
            raise KeyError
        assert found_at("auto") == [0, 0]


@pytest.mark.parametrize("prefix", ["missing/p", "file/p", "/proc/p", "p" * 300, "taken"])
def test_a_folder_that_cannot_be_created_is_refused(here: Path, prefix: str) -> None:
    (here / "file").write_text("")
    (here / "taken.run").write_text("kept")
    message = rf"^--save-model-prefix {prefix}: cannot use .*; choose another prefix$"
    with pytest.raises(UsageError, match=message) as error, RunFolder(prefix, 2):
        pass
    assert str(error.value).isprintable()
    assert (here / "taken.run").read_text() == "kept"


@pytest.mark.usefixtures("here")
def test_a_file_system_without_locks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    open_files = os.listdir("/proc/self/fd")
    with pytest.raises(UsageError, match=r"cannot use .*No locks available"), RunFolder("p", 2):
        pass
    assert os.listdir("/proc/self/fd") == open_files


READ_ONLY = """
with RunFolder("p", 2) as folder:
    folder.save(0, 0, {"a": np.ones(3)}, {"format": FORMAT, "at": [0, 0]})
    os.chmod("p.run", 0o555)
    if os.geteuid() == 0:  # to whom nothing is read-only
        os.chmod(".", 0o555)
        os.setuid(65534)
    try:
        folder.save(1, 0, {"a": np.ones(3)}, {"format": FORMAT, "at": [1, 0]})
    except OSError as error:
        print(error)
try:
    with RunFolder("q", 2):
        pass
except UsageError as error:
    print(error)
"""


def test_a_folder_that_became_read_only_keeps_what_it_has(here: Path) -> None:
    process = run_python(here, READ_ONLY)
    output = process.communicate(timeout=HANG_LIMIT)[0].splitlines()
    os.chmod("p.run", 0o755)
    assert "denied" in output[0]
    if os.geteuid() == 0:
        message = (
            r"--save-model-prefix q: cannot use the folder q\.run \(.*\); choose another prefix"
        )
        assert re.fullmatch(message, output[1])
    assert found_at("auto") == [0, 0]
    assert len(names_in("p.run")) == 1


FULL = """
with RunFolder("p", 2) as folder:
    folder.save(0, 0, {"a": np.ones(3)}, {"format": FORMAT, "at": [0, 0]})
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
    try:
        folder.save(1, 0, {"a": np.ones(10_000)}, {"format": FORMAT, "at": [1, 0]})
    except OSError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 100, 79_000])
def test_a_disk_that_is_full_keeps_what_it_has(here: Path, room: int) -> None:
    output, _ = run_python(here, FULL, str(room)).communicate(timeout=HANG_LIMIT)
    assert "too large" in output
    assert found_at("auto") == [0, 0]
    assert names_in("p.run") == ["checkpoint-0000-000000.safetensors"]


# What is kept


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_latest_checkpoints_are_kept(keep: int) -> None:
    positions = [(0, 0), (0, 5), (1, 0), (1, 5), (2, 0), (9999, 1), (10000, 0)]
    with RunFolder("p", keep) as folder:
        for number, position in enumerate(positions, 1):
            save(folder, *position)
            kept = sorted(run_folder._position(file) for file in Path("p.run").iterdir())
            assert kept == positions[:number][-keep:]


@pytest.mark.usefixtures("here")
def test_no_other_file_is_removed() -> None:
    with RunFolder("p", 1) as folder:
        others = ["notes.txt", "best-old.params", "checkpoint-1-2.safetensors", "best-0001.txt"]
        for name in others:
            Path("p.run", name).write_text("mine")
        for epoch in range(5):
            save(folder, epoch)
    assert names_in("p.run") == sorted([*others, "checkpoint-0004-000000.safetensors"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
@pytest.mark.usefixtures("here")
def test_the_best_network_of_every_checkpoint_is_there_and_few_others(seed: int) -> None:
    """Some epochs improve, and there are checkpoints within them."""
    rng = random.Random(seed)
    keep, first = rng.randint(1, 4), rng.choice([0, 0, 9990, 9997])
    best: int | None = None
    best_at: dict[str, int | None] = {}
    with RunFolder("p", keep) as folder:
        for epoch in range(first, first + 12):
            for batch in sorted(rng.sample(range(1, 9), rng.choice([0, 0, 1, 5]))):
                best_at[save(folder, epoch, batch).name] = best
            if rng.random() < 0.5:
                best = epoch
                folder.best(epoch).touch()
            best_at[save(folder, epoch + 1).name] = best
            present = names_in("p.run")
            kept = [name for name in present if name.startswith("checkpoint")]
            needed = {best_at[name] for name in kept} - {None}
            there = {int(name[5:-7]) for name in present if name.startswith("best")}
            assert needed <= there
            # In addition only those between them.
            assert not there or not needed or min(there) == min(needed)


# How a run begins


def write_network(path: Path, name: str) -> None:
    """Writes the file of a small network, which says its name."""
    net = nn.Dense(1, in_units=1)
    net.initialize()
    save_parameters(net, str(path), {"name": name})


def network_in(path: str) -> str:
    """Returns the name of the network in a file."""
    description = read_description(path, "")
    assert description
    return str(description["name"])


def begin(prefix: str, resume: str | None = None, best_epoch: int | None = None) -> RunFolder:
    """Begins a run of that prefix and ends it at once."""
    with RunFolder(prefix, 2) as folder:
        checkpoint = run_folder.find(resume, prefix) if resume else None
        folder.begin(checkpoint, best_epoch)
        if checkpoint:
            folder.save(*checkpoint.state["at"], checkpoint.arrays, checkpoint.state)
        else:
            save(folder, 0)
    return folder


def run_of(prefix: str, epochs: int = 3, keep: int = 2) -> None:
    """Writes the files of a run whose every epoch was the best."""
    with RunFolder(prefix, keep) as folder:
        folder.begin(None, None)
        save(folder, 0)
        for epoch in range(epochs):
            write_network(folder.best(epoch), f"{prefix} {epoch}")
            folder.publish(epoch)
            save(folder, epoch + 1)


def contents(folder: str) -> dict[str, Any]:
    """Returns what is read from each file; headers of equal checkpoints may differ in order."""
    files: dict[str, Any] = {}
    for path in Path(folder).iterdir():
        if path.suffix == ".safetensors":
            saved = checkpoint_file.read(path)
            files[path.name] = saved.state, {n: a.tobytes() for n, a in saved.arrays.items()}
        else:
            files[path.name] = path.read_bytes()
    return files


@pytest.mark.usefixtures("here")
def test_resuming_from_the_newest_keeps_the_folder(caplog: pytest.LogCaptureFixture) -> None:
    run_of("p")
    before = contents("p.run")
    for resume in ("auto", "p.run", "p.run/checkpoint-0003-000000.safetensors", "./p.run/."):
        begin("p", resume, best_epoch=2)
        assert contents("p.run") == before
        assert names_in(".") == ["p.params", "p.run"]
    assert caplog.messages == []


@pytest.mark.usefixtures("here")
def test_the_result_becomes_the_best_network_again() -> None:
    """The best one when the checkpoint was written; a later one may have been better."""
    run_of("p")
    for lost in (True, False):
        Path("p.params").write_text("later")
        if lost:
            Path("p.params").unlink()
        begin("p", "auto", best_epoch=1)
        assert network_in("p.params") == "p 1"
    Path("p.params").write_text("another's")
    begin("p", "auto", best_epoch=None)
    assert Path("p.params").read_text() == "another's"


@pytest.mark.usefixtures("here")
def test_a_new_run_moves_the_former_one_aside(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    former = []
    for number in (1, 2):
        run_of("p", epochs=number)
        former.append(contents("p.run"))
        begin("p")
        assert caplog.messages[-1] == f"The former run of this prefix is kept in p.run.{number}."
    assert names_in("p.run") == ["checkpoint-0000-000000.safetensors"]
    assert [contents("p.run.1"), contents("p.run.2")] == former
    Path("p.run.3").write_text("no folder")
    run_of("p")
    begin("p")
    assert Path("p.run.4").is_dir()


@pytest.mark.usefixtures("here")
def test_a_run_that_had_hardly_begun_is_not_kept() -> None:
    begin("p")
    begin("p")
    begin("p", "auto")
    assert names_in(".") == ["p.run"]


@pytest.mark.usefixtures("here")
def test_the_folder_moved_aside_is_not_held_any_more_and_the_new_one_is() -> None:
    run_of("p")
    with RunFolder("p", 2) as folder:
        folder.begin(None, None)
        with pytest.raises(UsageError, match="another run"), RunFolder("p", 2):
            pass
        save(folder, 0)
        Path("p.run.1").rename("q.run")
        with RunFolder("q", 2):
            pass


@pytest.mark.usefixtures("here")
def test_resuming_from_an_older_one_moves_all_aside_and_takes_the_best_along() -> None:
    run_of("p", keep=3)
    former = contents("p.run")
    begin("p", "p.run/checkpoint-0002-000000.safetensors", best_epoch=1)
    assert contents("p.run.1") == former
    assert names_in("p.run") == ["best-0001.params", "checkpoint-0002-000000.safetensors"]
    assert network_in("p.params") == network_in("p.run/best-0001.params") == "p 1"


@pytest.mark.usefixtures("here")
def test_resuming_from_another_run_leaves_that_as_it_is() -> None:
    run_of("other")
    before = contents("other.run")
    begin("p", "other.run", best_epoch=2)
    assert contents("other.run") == before
    assert network_in("other.params") == network_in("p.params") == "other 2"
    assert names_in("p.run") == ["best-0002.params", "checkpoint-0003-000000.safetensors"]
    run_of("p", epochs=5)  # moves it aside: it is another run
    begin("p", "other.run", best_epoch=2)
    assert names_in("p.run") == ["best-0002.params", "checkpoint-0003-000000.safetensors"]
    assert Path("p.run.2/checkpoint-0005-000000.safetensors").exists()


@pytest.mark.usefixtures("here")
def test_a_checkpoint_that_another_run_removed_meanwhile_is_not_needed() -> None:
    run_of("other")
    run_of("p")
    checkpoint = run_folder.find("other.run", "p")
    assert checkpoint
    checkpoint.path.unlink()
    with RunFolder("p", 2) as folder:
        folder.begin(checkpoint, 2)
        save(folder, 3)
    assert names_in("p.run") == ["best-0002.params", "checkpoint-0003-000000.safetensors"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("resume", ["auto", "p.run", "p.run/checkpoint-0003-000000.safetensors"])
def test_a_finished_run_without_its_result_gets_it_again(resume: str) -> None:
    run_of("p")
    before = contents("p.run")
    for prefix in ("p", "other") if resume != "auto" else ("p",):
        for former in (None, "another's"):
            result = Path(f"{prefix}.params")
            result.unlink(missing_ok=True)
            if former:
                result.write_text(former)
            with RunFolder(prefix, 2) as folder:
                checkpoint = run_folder.find(resume, prefix)
                assert checkpoint
                folder.publish_if_missing(checkpoint, None)
                assert result.exists() == bool(former)
                folder.publish_if_missing(checkpoint, 1)
            assert result.read_text() == former if former else network_in(str(result)) == "p 1"
    assert contents("p.run") == before


@pytest.mark.parametrize(
    "damage, fault",
    [
        (lambda whole: None, "does not exist"),
        (lambda whole: whole[:-9], "is damaged or cannot be read"),
        (lambda whole: whole.replace(b" 2", b" 3"), "is damaged or cannot be read"),
        (lambda whole: b"", "is damaged or cannot be read"),
    ],
)
@pytest.mark.parametrize("where", ["p.run", "other.run"])
def test_a_best_network_that_is_lost_or_damaged_does_not_become_the_result(
    here: Path,
    caplog: pytest.LogCaptureFixture,
    where: str,
    damage: Callable[[bytes], bytes | None],
    fault: str,
) -> None:
    run_of("p")
    run_of("other")
    best = here / where / "best-0002.params"
    content = damage(best.read_bytes())
    if content is None:
        best.unlink()
    else:
        best.write_bytes(content)
    begin("p", where, best_epoch=2)
    (line,) = caplog.messages
    assert line == f"{where}/best-0002.params {fault}; p.params is left as it is."
    assert network_in("p.params") == "p 2"


@pytest.mark.usefixtures("here")
def test_the_partial_files_of_a_killed_run_are_removed() -> None:
    run_of("p*")
    left = ["p*.run/checkpoint-0004-000000.safetensors.77.partial", "p*.params.78.partial"]
    others = ["px.params.79.partial", "p*.params.notes"]
    for name in left + others:
        Path(name).write_text("begun")
    begin("p*", "auto", best_epoch=2)
    assert sorted([*others, "p*.run", "p*.params"]) == names_in(".")
    assert not list(Path("p*.run").glob("*.partial"))


# What happens while it trains


@pytest.mark.usefixtures("here")
def test_a_folder_that_was_removed_is_created_and_held_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RunFolder("p", 2) as folder:
        save(folder, 0)
        for number, spoil in enumerate((shutil.rmtree, lambda path: os.rename(path, "away")), 1):
            spoil("p.run")
            save(folder, number)
            assert found_at("auto") == [number, 0]
            with pytest.raises(UsageError, match="another run"), RunFolder("p", 2):
                pass
            assert (
                caplog.messages
                == ["p.run was removed while the run trains; it is created again."] * number
            )
        caplog.clear()
        save(folder, 3)
        assert caplog.messages == []


@pytest.mark.usefixtures("here")
def test_a_folder_that_another_run_took_meanwhile_is_left_to_it() -> None:
    with RunFolder("p", 2) as folder:
        save(folder, 7)
        os.rename("p.run", "away")
        with RunFolder("p", 2) as thief:
            save(thief, 1)
            before = contents("p.run")
            with pytest.raises(UsageError, match="another run"):
                save(folder, 8)
            assert contents("p.run") == before
    assert found_at("away") == [7, 0]
    assert contents("p.run") == before


@pytest.mark.usefixtures("here")
def test_a_file_in_the_place_of_the_folder_is_refused() -> None:
    with RunFolder("p", 2) as folder:
        os.rename("p.run", "away")
        Path("p.run").write_text("mine")
        with pytest.raises(UsageError, match="cannot use the folder"):
            save(folder, 1)
    assert Path("p.run").read_text() == "mine"


def test_a_result_is_copied_atomically(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of("p")
    Path("p.run/best-0002.params").write_text("newer")

    def copyfileobj(source: object, target: BinaryIO) -> None:
        target.write(b"ne")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.shutil, "copyfileobj", copyfileobj)
    with RunFolder("p", 2) as folder, pytest.raises(OSError, match="No space"):
        folder.publish(2)
    assert network_in("p.params") == "p 2"
    assert names_in(here) == ["p.params", "p.run"]


def test_the_state_names_no_file() -> None:
    """The names of files are made from numbers, whatever an untrusted checkpoint holds."""
    with pytest.raises(ValueError):
        RunFolder("p", 2).best("../../x")  # type: ignore[arg-type]
