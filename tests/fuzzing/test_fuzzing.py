"""Short fuzzing runs; and the harness notices everything that a reader should not do."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from random import Random

import cv2
import numpy as np
import pytest

from tests.fuzzing import format_mutations
from tests.fuzzing.mutations import mutate_bytes
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python as another process, since these tests have loaded MXNet, whose threads cannot
    be forked.
    """
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=HANG_LIMIT
    )


@pytest.mark.slow
def test_twenty_mutations_of_each_target_are_read_or_refused() -> None:
    result = python("-m", "tests.fuzzing", "--mutations=20")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert len(rows) >= 12
    assert {tried for _, tried, *_ in rows} == {"20", "2"}
    for target, tried, accepted, refused, crashes, hangs, *_ in rows:
        assert (int(accepted) + int(refused), crashes, hangs) == (int(tried), "0", "0"), target


READERS = """
import ctypes, json, os, signal, subprocess, sys, tempfile, time
from pathlib import Path
from embedding_learning.errors import DataError, UsageError
from tests.fuzzing.targets import Target
from tests.fuzzing.workers import run
from tests.helpers.limits import HANG_LIMIT

def raises(error):
    raise error

def two_lines():
    # The program's errors escape line ends when they are made.
    error = UsageError("")
    error.args = ("two\\nlines",)
    return error

def catches(action):
    try:
        action()
    except OSError:
        pass

READERS = {
    "reads": lambda folder: None,
    "refuses": lambda folder: raises(UsageError("no")),
    "raises": lambda folder: raises(ValueError("surprise")),
    "exits": lambda folder: sys.exit(0),
    "says nothing": lambda folder: raises(DataError("")),
    "says two lines": lambda folder: raises(two_lines()),
    "says too much": lambda folder: raises(UsageError("x" * 5000)),
    "dies": lambda folder: os.kill(os.getpid(), signal.SIGSEGV),
    "leaves": lambda folder: os._exit(0),
    "hangs": lambda folder: time.sleep(10**6),
    "swells": lambda folder: bytearray(3 << 29),
    "writes": lambda folder: catches(lambda: open(folder / "../../outside/new", "w")),
    "removes": lambda folder: catches((folder / "../../outside/precious").unlink),
    "writes in C": lambda folder: ctypes.CDLL(None).creat(bytes(folder / "../next to"), 0o600),
    "starts": lambda folder: catches(lambda: subprocess.run(["true"])),
}

def read(name, folder):
    if (folder / "file").is_file() and (folder / "file").read_bytes() == b"whole":
        (folder / "written").write_bytes(b"allowed")
    else:
        READERS[name](folder)

outcomes = {}
for name in READERS:
    target = Target(
        write=lambda folder: (folder / "file").write_bytes(b"whole"),
        files=("file",),
        read=lambda folder: read(name, folder),
    )
    with tempfile.TemporaryDirectory() as root:
        # A busy machine may need long for what the others do.
        numbers, seconds = (range(1), 10.0) if name == "hangs" else (range(2), HANG_LIMIT)
        result = run(target, numbers, "seed", Path(root), hang_seconds=seconds)
    outcomes[name] = result.accepted, result.refused, result.failures
print(json.dumps(outcomes))
"""


@pytest.mark.slow
def test_everything_that_a_reader_should_not_do_is_noticed() -> None:
    result = python("-c", READERS)
    assert result.returncode == 0, result.stderr
    outcomes = json.loads(result.stdout)
    assert outcomes.pop("reads") == [2, 0, []]
    assert outcomes.pop("refuses") == [0, 2, []]
    for reader, message in {
        "raises": "ValueError: surprise",
        "exits": "SystemExit: 0",
        "says nothing": "not one printable line: ''",
        "says two lines": r"not one printable line: 'two\nlines'",
        "says too much": "a message of 5000 characters",
        "dies": "the process ended: SIGSEGV",
        "leaves": "the process ended: exit status 0",
        "hangs": "silent for 10 s",
        "swells": "took 1536 MB of memory",
        "writes": "was about to: open ",
        "removes": "was about to: os.remove ",
        "writes in C": "something changed outside of the sample's folder",
        "starts": "was about to: subprocess.Popen ",
    }.items():
        accepted, refused, failures = outcomes.pop(reader)
        assert (accepted, refused) == (0, 0), reader
        numbers = [0] if reader == "hangs" else [0, 1]
        assert [number for number, _, _ in failures] == numbers, (reader, failures)
        for _, is_hang, text in failures:
            assert is_hang == (reader == "hangs")
            assert message in text, (reader, text)
    assert outcomes == {}


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"x", b"1 2.5\n3 four.jpg\n", bytes(range(256))])
def test_a_change_is_the_same_for_the_same_number_and_changes_something(content: bytes) -> None:
    changes = [mutate_bytes(Random(number), content) for number in range(300)]
    assert changes == [mutate_bytes(Random(number), content) for number in range(300)]
    assert content not in changes
    assert len(set(changes)) > 50


def test_compressed_zeros_are_a_valid_stream() -> None:
    assert zlib.decompress(format_mutations.compress_zeros(3 * 2**20)) == bytes(3 * 2**20)


def test_mutated_images_have_right_checksums_and_some_claim_other_sizes() -> None:
    encoded = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    sizes = set()
    for number in range(50):
        image = format_mutations.mutate_image(Random(number), encoded)
        name, length = image[12:16], struct.unpack(">I", image[8:12])[0]
        checksum = struct.unpack(">I", image[16 + length : 20 + length])[0]
        assert checksum == zlib.crc32(name + image[16 : 16 + length])
        sizes.add(image[16:24])
    assert struct.pack(">II", 9, 9) in sizes and len(sizes) > 5


@pytest.mark.slow
def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    result = python("-m", "tests.fuzzing", "nothing")
    assert result.returncode == 2
    assert "nothing: unknown; choose from cub200-images, " in result.stderr
