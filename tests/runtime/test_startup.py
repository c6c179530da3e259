"""The start of a process: closed and narrow standard streams, and Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_learning.runtime import startup
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT

TRAIN = [sys.executable, str(ROOT / "train.py")]
VERBS = [sys.executable, "-m", "embedding_learning"]


def shell(command: list[str], redirected: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as a shell does, with some of its streams closed or sent elsewhere."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG_LIMIT,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, status, redirected",
    [
        ([*TRAIN, "--help"], 0, ">&-"),
        ([*TRAIN, "--help"], 0, "2>&-"),
        ([*TRAIN, "--lr=x"], 2, "2>&-"),
        ([*TRAIN, "--lr=x"], 2, "<&-"),
        ([*TRAIN, "--lr=x"], 2, "<&- >&- 2>&-"),
        ([*VERBS, "--help"], 0, ">&-"),
        ([*VERBS, "--help"], 0, "<&- >&- 2>&-"),
        ([*VERBS, "check", "--help"], 0, ">&-"),
        ([*VERBS, "check", "--help"], 0, "<&-"),
        ([*VERBS, "check", "--data-path=missing"], 2, "2>&-"),
        ([*VERBS, "check", "--data-path=missing"], 2, "<&- >&- 2>&-"),
    ],
)
def test_closed_streams_change_no_status(command: list[str], status: int, redirected: str) -> None:
    done = shell(command, redirected)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """The output of libraries would be written into it."""
    code = (
        "import os, sys; from embedding_learning.runtime import startup; startup.repair_streams()\n"
        "file = open(sys.argv[1], 'w'); print('lost'); os.write(1, b'lost'); os.write(2, b'lost')\n"
        "file.write(str(file.fileno()))"
    )
    done = shell([sys.executable, "-c", code, str(tmp_path / "x")], "<&- >&- 2>&-")
    assert done.returncode == 0
    assert int((tmp_path / "x").read_text()) > 2


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_names_that_the_terminal_cannot_write_are_escaped(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    code = (
        "from embedding_learning.runtime.startup import repair_streams; repair_streams(); "
        "print('a\\u9ce5\\udcff.jpg')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=HANG_LIMIT
    )
    assert (done.returncode, done.stderr) == (0, b"")
    bird = "\u9ce5" if encoding == "utf-8" else "\\u9ce5"
    assert done.stdout.decode() == f"a{bird}\\udcff.jpg\n"


@pytest.mark.parametrize(
    "command, program",
    [([*TRAIN, "--epochs=1"], "train.py"), ([*VERBS, "check"], "embedding_learning")],
)
def test_ctrl_c_while_modules_are_imported_is_one_line(
    command: list[str], program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module that stands in for numpy is as far as the import comes."""
    (tmp_path / "numpy.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(10**6)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_LIMIT)
    assert done.returncode == 128 + signal.SIGINT
    assert (done.stdout, done.stderr) == ("", f"{program}: interrupted\n")


def test_the_console_script_is_a_program_from_its_first_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script is the one that pip writes."""
    script = tmp_path / startup.CONSOLE_SCRIPT
    script.write_text("import sys\nfrom embedding_learning.__main__ import run\nsys.exit(run())\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    command = [sys.executable, str(script)]
    done = subprocess.run([*command, "x"], capture_output=True, text=True, timeout=HANG_LIMIT)
    assert done.returncode == 2
    assert done.stderr.startswith("embedding_learning: error: x: choose one of train, ")
    (tmp_path / "numpy.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(10**6)\n"
    )
    done = subprocess.run([*command, "check"], capture_output=True, text=True, timeout=HANG_LIMIT)
    assert done.returncode == 128 + signal.SIGINT
    assert (done.stdout, done.stderr) == ("", "embedding_learning: interrupted\n")


@pytest.mark.slow
def test_the_command_that_trains_is_there_in_a_checkout_and_in_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert startup.train_command() == TRAIN
    package = tmp_path / "site-packages" / "embedding_learning"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "embedding_learning", package, ignore=ignored)
    # Somebody else's.
    (package.parent / "train.py").write_text("raise SystemExit(9)\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    code = (
        "import subprocess; from embedding_learning.runtime.startup import train_command; "
        "raise SystemExit(subprocess.call([*train_command(), '--help']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=HANG_LIMIT
    )
    assert done.returncode == 0
    assert b"--save-model-prefix" in done.stdout


def test_a_program_that_uses_the_package_keeps_its_handling_of_ctrl_c() -> None:
    code = (
        # A process that was started in the background ignores the signal.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import embedding_learning; "
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=HANG_LIMIT)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_an_output_that_cannot_be_written_is_reported() -> None:
    done = shell([*VERBS, "--help"], ">/dev/full")
    assert done.returncode == 2
    assert done.stderr == (
        "embedding_learning: error: there is no space for the output: No space left on device\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", [[*TRAIN, "--help"], [*VERBS, "--help"]])
def test_a_reader_that_has_gone_is_no_error(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, timeout=HANG_LIMIT
    )
    os.close(writing)
    assert done.stderr == b""
    # argparse says nothing of it.
    assert done.returncode in ((0, 141) if command[1].endswith("train.py") else (141,))
