"""What a process of a job is told by whoever launched it: MXNet's ``DMLC_*`` variables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

ROLES = ("worker", "server", "scheduler")
# Of the variables, without DMLC_; in the order of Environment's attributes.
_NAMES = ("ROLE", "PS_ROOT_URI", "PS_ROOT_PORT", "NUM_WORKER", "NUM_SERVER")
# Elements from which MXNet cuts an array among all servers: MXNET_KVSTORE_BIGARRAY_BOUND.
BIG_ARRAY = 1_000_000
# The roll of the job is kept above MXNet's own port, out of the range that the launcher uses.
_ROLL_PORT_ABOVE = 1000


class Environment(NamedTuple):
    """A process's place in its job.

    Attributes
    ----------
    role : str
        One of ROLES.
    host : str
        Address of the scheduler.
    port : int
        Where MXNet's scheduler listens.
    workers, servers : int
        How many there are of each.
    """

    role: str
    host: str
    port: int
    workers: int
    servers: int

    @property
    def heartbeat_port(self) -> int:
        """Where the scheduler keeps the roll."""
        return self.port + _ROLL_PORT_ABOVE

    def variables(self) -> dict[str, str]:
        """Returns the variables that give a process this place."""
        values = (self.role, self.host, self.port, self.workers, self.servers)
        return {f"DMLC_{name}": str(value) for name, value in zip(_NAMES, values)}


def read_environment() -> Environment | None:
    """None if no variable is set; raises ValueError, which names the variable, if one is amiss."""
    role, host, *counts = (os.environ.get(f"DMLC_{name}", "") for name in _NAMES)
    if not any((role, host, *counts)):
        return None
    if role not in ROLES:
        raise ValueError(f"DMLC_ROLE {role or 'is not set'}: must be one of {', '.join(ROLES)}")
    if not host:
        raise ValueError("DMLC_PS_ROOT_URI is not set: it is the scheduler's address")
    for name, count in zip(_NAMES[2:], counts):
        if not count.isascii() or not count.isdigit() or int(count) < 1:
            raise ValueError(f"DMLC_{name} {count or 'is not set'}: must be a number from 1")
    port, workers, servers = map(int, counts)
    if port + _ROLL_PORT_ABOVE > 65535:
        raise ValueError(
            f"DMLC_PS_ROOT_PORT {port}: {65535 - _ROLL_PORT_ABOVE} is the most, since the port "
            f"{_ROLL_PORT_ABOVE} above it is used too"
        )
    return Environment(role, host, port, workers, servers)


def is_non_worker() -> bool:
    """Whether this process serves a job and does not train."""
    environment = read_environment()
    return environment is not None and environment.role != "worker"


@contextmanager
def hide_role() -> Iterator[None]:
    """Within, MXNet can be imported by a helper; it would serve at once, and never come back."""
    role = os.environ.pop("DMLC_ROLE")
    try:
        yield
    finally:
        os.environ["DMLC_ROLE"] = role


@contextmanager
def set_environment(environment: Environment) -> Iterator[None]:
    """Within, the variables say that this process has that place in a job."""
    former = {name: value for name, value in os.environ.items() if name.startswith("DMLC_")}
    os.environ.update(environment.variables())
    try:
        yield
    finally:
        for name in environment.variables():
            del os.environ[name]
        os.environ.update(former)


def least_loaded_key(first: int, index: int, elements: int, loads: list[int]) -> int:
    """A key by which MXNet places array number `index` on the server that has least.

    MXNet sends an array smaller than BIG_ARRAY to server number key * 9973 % servers. With the
    indices for keys, one of two servers would get all of SqueezeNet's weights and the other the
    biases.

    Parameters
    ----------
    first : int
        The keys of array 0 begin here, those of the next one `len(loads)` later.
    loads : list of int
        Elements on each server; those of this array are added.
    """
    servers = len(loads)
    server = loads.index(min(loads))
    if elements < BIG_ARRAY:
        loads[server] += elements
    begin = first + index * servers
    return next(key for key in range(begin, begin + servers) if key * 9973 % servers == server)
