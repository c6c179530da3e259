"""Reads mutated samples in worker processes, which may crash, hang or take too much memory.

A worker is a fork that reads one mutated sample after another. It reports before and after each.
When it dies or falls silent, the mutation that it announced last is the cause, and another worker
continues with the next one.
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
from tests.fuzzing.audit import AuditGuard, list_surroundings
from tests.fuzzing.mutations import mutate_bytes, replace_file
from tests.fuzzing.targets import Target

MEMORY_LIMIT = 2**30  # bytes beyond what the worker has after it has read the sample unchanged
# Where the system refuses memory. It is more than MEMORY_LIMIT, so that a reader which takes the
# refusal for damage to the file is found out, too.
_HARD_LIMIT = 4 * MEMORY_LIMIT
_LONGEST_MESSAGE = 2000  # characters; nobody reads more


class Failure(NamedTuple):
    """A mutation that was neither read nor refused as it should be."""

    number: int
    is_hang: bool
    message: str


@dataclass
class Result:
    """The outcomes of a target's mutations."""

    accepted: int = 0
    refused: int = 0
    failures: list[Failure] = field(default_factory=list)
    peak: int = 0  # resident bytes beyond what the worker has after the unchanged sample


def run(
    target: Target, numbers: range, seed: str, root: Path, hang_seconds: float = 120.0
) -> Result:
    """Returns the outcomes of the mutations with these numbers.

    `root` is an existing, empty folder. The same number and seed give the same mutation each time.
    An exception that the unchanged sample raises is not caught. Raises RuntimeError if only a
    worker cannot read the unchanged sample.
    """
    root = root.resolve()
    sample = root / "samples" / "sample"
    sample.mkdir(parents=True)
    target.write(sample)
    shutil.copytree(sample, root / "pristine")
    target.read(sample)  # unchanged; also imports what all workers need

    result = Result()
    while numbers:
        _prepare(root)
        begun, is_finished, is_hang = None, False, False
        pid, reports = _start_worker(target, numbers, seed, root)
        try:
            for report in _read_reports(reports, hang_seconds):
                if "broken" in report:
                    raise RuntimeError(f"the harness itself failed:\n{report['broken']}")
                is_finished = "begun" not in report
                if is_finished:
                    _count(report, result)
                else:
                    begun = report["begun"]
        except TimeoutError:
            is_hang = True
        finally:
            os.close(reports)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL if is_hang else signal.SIGTERM)
            _, status = os.waitpid(pid, 0)
        if begun is None:
            raise RuntimeError(f"no worker reads the unchanged sample: {_format_status(status)}")
        if is_hang:
            result.failures.append(Failure(begun, True, f"silent for {hang_seconds:.0f} s"))
        elif not is_finished or status != 0:
            message = f"the process ended: {_format_status(status)}"
            result.failures.append(Failure(begun, False, message))
        numbers = range(begun + 1, numbers.stop)
    return result


def _prepare(root: Path) -> None:
    """Writes the sample, and next to it files that mutations point to and no reader may change."""
    for former in root.iterdir():
        if former.name != "pristine":
            shutil.rmtree(former) if former.is_dir() else former.unlink()
    shutil.copytree(root / "pristine", root / "samples" / "sample")
    (root / "outside").mkdir()
    (root / "outside" / "precious").write_text("not to be changed\n", encoding="ascii")
    os.mkfifo(root / "outside" / "pipe")


def _format_status(status: int) -> str:
    """Returns how a process ended, in words; `status` is that of os.waitpid."""
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.WEXITSTATUS(status)}"


def _count(report: dict[str, Any], result: Result) -> None:
    result.peak = max(result.peak, report["peak"])
    if report["outcome"] == "accepted":
        result.accepted += 1
    elif report["outcome"] == "refused":
        result.refused += 1
    else:
        result.failures.append(Failure(report["number"], False, report["message"]))


def _read_reports(reports: int, hang_seconds: float) -> Iterator[dict[str, Any]]:
    """Yields the worker's reports until it ends. Raises TimeoutError after a silence."""
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


def _start_worker(target: Target, numbers: range, seed: str, root: Path) -> tuple[int, int]:
    """Returns the id of the process, and the file descriptor of its reports."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # libraries print warnings about damaged files
            os.dup2(null, stream)
        _work(target, numbers, seed, root, writing)
        status = 0
    except Exception:
        os.write(writing, json.dumps({"broken": traceback.format_exc()}).encode() + b"\n")
    finally:
        os._exit(status)


def _work(target: Target, numbers: range, seed: str, root: Path, reports: int) -> None:
    sample, outside = root / "samples" / "sample", root / "outside"

    def report(**values: object) -> None:
        os.write(reports, json.dumps(values).encode() + b"\n")

    def restore() -> None:
        shutil.rmtree(sample)
        shutil.copytree(root / "pristine", sample)

    target.read(sample)
    virtual, resident = _memory("VmSize"), _memory("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (virtual + _HARD_LIMIT,) * 2)
    guard = AuditGuard(sample, target.starts_programs)
    before = list_surroundings(root)
    for number in numbers:
        report(begun=number)
        restore()
        mutate_sample(target, Random(f"{seed} {number}"), sample, outside)
        with guard:
            outcome, message = _read(target, sample)
        claimed = _memory("VmPeak") - virtual
        if guard.faults:
            outcome, message = "failed", guard.faults.pop()
        elif list_surroundings(root) != before:
            outcome, message = "failed", "something changed outside of the sample's folder"
        elif claimed > MEMORY_LIMIT:
            outcome, message = "failed", f"took {claimed >> 20} MB of memory"
        peak = _memory("VmHWM") - resident
        report(number=number, outcome=outcome, message=message, peak=peak)
        if outcome == "failed":
            return  # the next mutation has a new worker, whatever this reader left


def mutate_sample(target: Target, rng: Random, sample: Path, outside: Path) -> None:
    """Changes one or two files of the sample in place."""
    files = sorted(file for pattern in target.files for file in sample.glob(pattern))
    for file in rng.sample(files, min(len(files), rng.choice((1, 1, 1, 2)))):
        draw = rng.random()
        if draw < 0.05 and not target.starts_programs:
            replace_file(rng, file, outside)
        elif draw < 0.4 and target.mutate_format:
            file.write_bytes(target.mutate_format(rng, file.read_bytes()))
        else:
            file.write_bytes(mutate_bytes(rng, file.read_bytes()))


def _read(target: Target, sample: Path) -> tuple[str, str]:
    """Returns the outcome, "accepted", "refused" or "failed", and the message of the exception."""
    try:
        target.read(sample)
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
    """Returns an entry of this process's status file, in bytes."""
    with open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    raise LookupError(entry)
