"""Environment variables that end MXNet or OpenCV if they cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from embedding_learning import __main__ as program
from embedding_learning.errors import UsageError
from embedding_learning.runtime import environment
from tests.helpers.limits import HANG_LIMIT

PIXELS, ONEDNN = "OPENCV_IO_MAX_IMAGE_PIXELS", "MXNET_MKLDNN_ENABLED"
WRONG = [
    *((PIXELS, value) for value in ("", "much", "2e9", "-1", "1,000", "1GB", " 5", "9" * 30)),
    *((ONEDNN, value) for value in ("off", "2", " 0")),
]
READ = [
    *((PIXELS, value) for value in ("5", "10MB", "10kb", "9" * 19)),
    *((ONEDNN, value) for value in ("", "0", "1", "False", "TRUE")),
]


@pytest.mark.parametrize("name, value", WRONG)
def test_a_value_that_ends_the_process_is_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"^{name} {value}: must be .*, or unset it$"):
        environment.check()


@pytest.mark.parametrize("name, value", READ)
def test_a_value_that_is_read_passes(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    environment.check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, name, value",
    [("cv2", PIXELS, "1GB"), ("cv2", PIXELS, "10kb"), ("mxnet", ONEDNN, "off")],
)
def test_what_is_refused_would_end_the_process(module: str, name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import embedding_learning, {module}"],
        env={**os.environ, name: value},
        capture_output=True,
        timeout=HANG_LIMIT,
    )
    assert (done.returncode == 0) == ((name, value) in READ)


@pytest.mark.slow
def test_a_command_reports_the_variable_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "embedding_learning", "check", "--data-path=glyphs"],
        env={**os.environ, PIXELS: "2e9"},
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT,
    )
    line = f"embedding_learning: error: {PIXELS} 2e9: must be a whole number; "
    assert done.returncode == 2
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_empty_variables_count_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PIXELS, "OPENCV_IO_MAX_IMAGE_WIDTH", "DMLC_ROLE"):
        monkeypatch.setenv(name, "")
    environment.set_defaults()
    assert os.environ[PIXELS] == str(2**27)
    assert not {"OPENCV_IO_MAX_IMAGE_WIDTH", "DMLC_ROLE"} & os.environ.keys()


def test_a_limit_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PIXELS, "77")
    environment.set_defaults()
    assert os.environ[PIXELS] == "77"


@pytest.mark.parametrize("value, expected", [("0", False), ("False", False), ("1", True)])
def test_onednn_is_switched_off_in_each_spelling(
    value: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ONEDNN, value)
    assert environment.is_onednn_enabled() == expected
    monkeypatch.delenv(ONEDNN)
    assert environment.is_onednn_enabled()


@pytest.mark.parametrize("verb, role", [("embed", None), ("check", None), ("train", "server")])
def test_only_training_has_a_role_in_a_group(
    verb: str, role: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MXNet would serve other workers when it is imported, and never return."""
    monkeypatch.setenv("DMLC_ROLE", "server")
    with pytest.raises(SystemExit):
        program.main([verb, "--help"])
    assert os.environ.get("DMLC_ROLE") == role
