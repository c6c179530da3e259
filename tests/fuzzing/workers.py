"""Reads changed samples in worker processes, which may crash, hang or take too much memory.

A worker is a fork that reads one changed sample after another and reports each before and after.
When it dies or falls silent, the mutation it announced last is to blame, and another worker goes
on with the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from embedding_learning.errors import DataError, UsageError
from tests.fuzzing.kinds import Kind
from tests.fuzzing.mutations import changed, replace_file
from tests.fuzzing.watch import Watch, take_stock

MEMORY_LIMIT = 2**30  # bytes beyond what the worker has after it has read the sample unchanged
# What the system refuses. More than the limit, so that a reader is found out even if it takes the
# system's refusal for damage to the file.
_HARD_LIMIT = 4 * MEMORY_LIMIT
_LONGEST_MESSAGE = 2000  # characters; nobody reads more


class Failure(NamedTuple):
    """A mutation that was neither read nor refused as it should be."""

    number: int
    hang: bool
    told: str


@dataclass
class Result:
    """What came of the mutations of a kind."""

    accepted: int = 0
    refused: int = 0
    failures: list[Failure] = field(default_factory=list)
    peak: int = 0  # resident bytes beyond what the worker has after the unchanged sample


def run(kind: Kind, numbers: range, seed: str, root: Path, hang_seconds: float = 300.0) -> Result:
    """Tries the mutations of these numbers in the folder `root`, which is there and empty.

    A number and a seed give the same mutation each time. What the unchanged sample raises comes
    through; RuntimeError if only a worker cannot read it.
    """
    root = root.resolve()
    sample = root / "samples" / "sample"
    sample.mkdir(parents=True)
    kind.write(sample)
    shutil.copytree(sample, root / "pristine")
    kind.read(sample)  # unchanged; also imports what all workers need

    result = Result()
    while numbers:
        _lay_out(root)
        begun, finished, hang = None, False, False
        pid, reports = _start_worker(kind, numbers, seed, root)
        try:
            for report in _lines_from(reports, hang_seconds):
                if "broken" in report:
                    raise RuntimeError(f"the harness itself failed:\n{report['broken']}")
                finished = "begun" not in report
                if finished:
                    _note(report, result)
                else:
                    begun = report["begun"]
        except TimeoutError:
            hang = True
        finally:
            os.close(reports)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL if hang else signal.SIGTERM)
            _, status = os.waitpid(pid, 0)
        if begun is None:
            raise RuntimeError(f"no worker reads the unchanged sample: {_end(status)}")
        if hang:
            result.failures.append(Failure(begun, True, f"silent for {hang_seconds:.0f} s"))
        elif not finished or status != 0:
            result.failures.append(Failure(begun, False, f"the process ended: {_end(status)}"))
        numbers = range(begun + 1, numbers.stop)
    return result


def _lay_out(root: Path) -> None:
    """The sample, and beside it what a mutation may lead to but no reader may change."""
    for former in root.iterdir():
        if former.name != "pristine":
            shutil.rmtree(former) if former.is_dir() else former.unlink()
    shutil.copytree(root / "pristine", root / "samples" / "sample")
    (root / "outside").mkdir()
    (root / "outside" / "precious").write_text("not to be changed\n", encoding="ascii")
    os.mkfifo(root / "outside" / "pipe")


def _end(status: int) -> str:
    """How a process ended, by what the system tells its parent."""
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.WEXITSTATUS(status)}"


def _note(report: dict[str, Any], result: Result) -> None:
    result.peak = max(result.peak, report["peak"])
    if report["outcome"] == "accepted":
        result.accepted += 1
    elif report["outcome"] == "refused":
        result.refused += 1
    else:
        result.failures.append(Failure(report["number"], False, report["told"]))


def _lines_from(reports: int, hang_seconds: float) -> Iterator[dict[str, Any]]:
    """Yields the worker's reports until it ends.

    Raises TimeoutError if there is none for so long. The first may take any time.
    """
    rest = b""
    has_begun = False
    while True:
        limit = hang_seconds if has_begun else None
        if not select.select([reports], [], [], limit)[0]:
            raise TimeoutError
        has_begun = True
        new = os.read(reports, 65536)
        if not new:
            return
        *lines, rest = (rest + new).split(b"\n")
        yield from map(json.loads, lines)


def _start_worker(kind: Kind, numbers: range, seed: str, root: Path) -> tuple[int, int]:
    """Its process, and where its reports are read."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # libraries tell of damaged files in their own way
            os.dup2(nothing, stream)
        _work(kind, numbers, seed, root, writing)
        status = 0
    except Exception:
        os.write(writing, json.dumps({"broken": traceback.format_exc()}).encode() + b"\n")
    finally:
        os._exit(status)


def _work(kind: Kind, numbers: range, seed: str, root: Path, reports: int) -> None:
    sample, outside = root / "samples" / "sample", root / "outside"

    def report(**values: object) -> None:
        os.write(reports, json.dumps(values).encode() + b"\n")

    def restore() -> None:
        shutil.rmtree(sample)
        shutil.copytree(root / "pristine", sample)

    kind.read(sample)
    virtual, resident = _memory("VmSize"), _memory("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (virtual + _HARD_LIMIT,) * 2)
    watch = Watch(sample, kind.starts_programs)
    before = take_stock(root)
    for number in numbers:
        report(begun=number)
        restore()
        mutate(kind, Random(f"{seed} {number}"), sample, outside)
        with watch:
            outcome, told = _outcome(kind, sample)
        claimed = _memory("VmPeak") - virtual
        if watch.faults:
            outcome, told = "failed", watch.faults.pop()
        elif take_stock(root) != before:
            outcome, told = "failed", "something changed outside of the sample's folder"
        elif claimed > MEMORY_LIMIT:
            outcome, told = "failed", f"took {claimed >> 20} MB of memory"
        peak = _memory("VmHWM") - resident
        report(number=number, outcome=outcome, told=told, peak=peak)
        if outcome == "failed":
            return  # whatever it left behind, the next mutation begins anew


def mutate(kind: Kind, rng: Random, sample: Path, outside: Path) -> None:
    """Changes one file of the sample, or two."""
    files = sorted(file for pattern in kind.files for file in sample.glob(pattern))
    for file in rng.sample(files, min(len(files), rng.choice((1, 1, 1, 2)))):
        draw = rng.random()
        if draw < 0.05 and not kind.starts_programs:
            replace_file(rng, file, outside)
        elif draw < 0.4 and kind.craft:
            file.write_bytes(kind.craft(rng, file.read_bytes()))
        else:
            file.write_bytes(changed(rng, file.read_bytes()))


def _outcome(kind: Kind, sample: Path) -> tuple[str, str]:
    """accepted, refused or failed, and the message of what was raised."""
    try:
        kind.read(sample)
    except (DataError, UsageError) as error:
        message = str(error)
    except BaseException:
        return "failed", traceback.format_exc(limit=-2)[-2000:]
    else:
        return "accepted", ""
    if not message.strip() or not message.isprintable():
        return "failed", f"not one printable line: {message[:500]!r}"
    if len(message) > _LONGEST_MESSAGE:
        return "failed", f"a message of {len(message)} characters: {message[:200]!r}"
    return "refused", message


def _memory(entry: str) -> int:
    """Bytes that the system notes of this process."""
    with open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    raise LookupError(entry)
