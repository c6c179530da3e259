"""``python -m embedding_learning launch``: train with several processes or machines."""

from __future__ import annotations

import os
import shlex
import shutil

from embedding_learning.cli import train_flags
from embedding_learning.cli.parser import Parser, add, expand_path
from embedding_learning.distributed import dmlc_environment, launcher
from embedding_learning.errors import UsageError
from embedding_learning.runtime import mxnet_compat
from embedding_learning.runtime.flag_values import check_range
from embedding_learning.runtime.startup import train_command

_MOST_PROCESSES = 4096


def main(arguments: list[str]) -> int:
    """Starts the processes, or with --dry-run prints their commands. Returns the exit status."""
    if "--" not in arguments and not {"-h", "--help"} & set(arguments):
        raise UsageError("launch: the flags of train.py are missing; put them after --")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    chosen = _parser().parse_args(arguments[:end])
    check_range("workers", chosen.workers, 1, _MOST_PROCESSES)
    check_range("servers", chosen.servers, 1, _MOST_PROCESSES)
    if chosen.address and not chosen.hosts:
        raise UsageError("--address: has no effect: it is for --hosts; leave it out")
    hosts = launcher.read_hosts(chosen.hosts) if chosen.hosts else []
    if hosts and not shutil.which("ssh"):
        raise UsageError("--hosts: needs ssh, which is not installed")
    flags = _train_flags(arguments[end + 1 :], chosen.workers, chosen.servers)
    _share_cores(0 if hosts else chosen.workers)
    address = (chosen.address or launcher.find_address()) if hosts else None
    scheduler = launcher.create_scheduler_environment(chosen.workers, chosen.servers, address)
    processes = launcher.plan_processes([*train_command(), *flags], scheduler, hosts)
    if chosen.dry_run:
        for process in processes:
            print(shlex.join(process.command))
        return 0
    return launcher.run_processes(processes, scheduler)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m embedding_learning launch",
        usage="%(prog)s --workers N [--servers N] [--hosts FILE] [--dry-run] -- FLAGS OF TRAIN.PY",
        description="Train with several processes on MXNet's parameter server.",
    )
    add(parser, "--workers", 2, "processes that train, each with a part of every batch")
    add(parser, "--servers", 1, "processes that add up the workers' gradients")
    text = (
        "a file with a host per line (host or host:port, by ssh; # begins a comment); all have "
        "this folder and Python"
    )
    parser.add_argument("--hosts", type=expand_path, metavar="FILE", help=text)
    text = "the address by which the hosts reach this machine (default: found automatically)"
    parser.add_argument("--address", help=text)
    text = "print the commands, and run nothing"
    parser.add_argument("--dry-run", action="store_true", help=text)
    return parser


def _train_flags(flags: list[str], workers: int, servers: int) -> list[str]:
    """Returns the flags of each process. Raises UsageError if train.py would refuse them."""
    if "kvstore" not in train_flags.given(flags):
        flags = [*flags, "--kvstore=dist_sync"]
    # The address and the port do not matter here.
    with dmlc_environment.set_environment(
        dmlc_environment.Environment("worker", "127.0.0.1", 9091, workers, servers)
    ):
        train_flags.parse(flags)
    return flags


def _share_cores(workers_here: int) -> None:
    """Divides this machine's cores among its workers, unless the user has set the threads."""
    if mxnet_compat.has_chosen_threads:
        cores = int(os.environ.pop("OMP_NUM_THREADS"))
        if workers_here:
            os.environ["OMP_NUM_THREADS"] = str(max(1, cores // workers_here))
