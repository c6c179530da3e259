"""``python -m embedding_learning launch``: train.py on several machines, or several times here."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

from embedding_learning import dmlc, mxnet_runtime, options, roll_call
from embedding_learning.flags import Parser, UsageError, add, check_range

_TRAIN = Path(__file__).resolve().parents[2] / "train.py"
_MOST_PROCESSES = 4096


def main(arguments: list[str]) -> int:
    """Launches, or with --dry-run prints what would run; the job's exit status."""
    if "--" not in arguments and not {"-h", "--help"} & set(arguments):
        raise UsageError("launch: the flags of train.py are missing; put them behind --")
    place = arguments.index("--") if "--" in arguments else len(arguments)
    chosen = _parser().parse_args(arguments[:place])
    check_range("workers", chosen.workers, 1, _MOST_PROCESSES)
    check_range("servers", chosen.servers, 1, _MOST_PROCESSES)
    if chosen.hosts:
        _check_hosts(chosen.hosts)
    flags = _train_flags(arguments[place + 1 :], chosen.workers, chosen.servers)
    _share_cores(0 if chosen.hosts else chosen.workers)
    # MXNet's wheel brings it; imported so late because it is nothing for --help.
    from embedding_learning.launcher import Launch

    command = [sys.executable, str(_TRAIN), *flags]
    launch = Launch(command, chosen.workers, chosen.servers, chosen.hosts, chosen.address)
    if chosen.dry_run:
        print("\n".join(launch.commands()))
        return 0

    def stop(number: int, _: FrameType | None) -> None:
        environment = launch.environment()
        if environment:
            roll_call.ask_to_stop(environment, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return launch.run()


def _parser() -> Parser:
    parser = Parser(
        prog="python -m embedding_learning launch",
        usage="%(prog)s --workers N [--servers N] [--hosts FILE] [--dry-run] -- FLAGS OF TRAIN.PY",
        description="Train with several processes on MXNet's parameter server.",
    )
    add(parser, "--workers", 2, "processes that train, each on a share of every batch")
    add(parser, "--servers", 1, "processes that add up the workers' gradients")
    text = "a file of one host a line (host or host:port, by ssh); all have this folder and Python"
    parser.add_argument("--hosts", metavar="FILE", help=text)
    text = "this machine's address, as the hosts reach it (default: found)"
    parser.add_argument("--address", help=text)
    text = "print what would run, and run nothing"
    parser.add_argument("--dry-run", action="store_true", help=text)
    return parser


def _check_hosts(path: str) -> None:
    try:
        lines = Path(path).read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise UsageError(f"--hosts {path}: cannot be read ({error})") from None
    if not lines:
        raise UsageError(f"--hosts {path}: names no host; put one on each line")
    if not shutil.which("ssh"):
        raise UsageError("--hosts: needs ssh, which is not installed")


def _train_flags(flags: list[str], workers: int, servers: int) -> list[str]:
    """The flags for each process; raises UsageError for those that train.py would refuse."""
    if any("\n" in flag or "'" in flag for flag in flags):
        raise UsageError("launch: flags with a line break or a ' cannot be handed to a shell")
    if "kvstore" not in options.given(flags):
        flags = [*flags, "--kvstore=dist_sync"]
    # What the launcher will tell each of them; the address and the port are of no consequence here.
    told = {"ROLE": "worker", "PS_ROOT_URI": "127.0.0.1", "PS_ROOT_PORT": "9091"}
    told.update(NUM_WORKER=str(workers), NUM_SERVER=str(servers))
    with dmlc.told(told):
        options.parse(flags)
    return flags


def _share_cores(workers_here: int) -> None:
    """Parts this machine's cores among its workers, unless the user has set the threads."""
    if mxnet_runtime.chose_threads:
        cores = int(os.environ.pop("OMP_NUM_THREADS"))
        if workers_here:
            os.environ["OMP_NUM_THREADS"] = str(max(1, cores // workers_here))
