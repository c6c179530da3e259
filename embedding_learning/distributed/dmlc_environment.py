"""The ``DMLC_*`` environment variables: the role of this process in a group of workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

ROLES = ("worker", "server", "scheduler")
# The names of the variables without DMLC_, in the order of Environment's attributes.
_NAMES = ("ROLE", "PS_ROOT_URI", "PS_ROOT_PORT", "NUM_WORKER", "NUM_SERVER")
# Arrays with at least this many elements are split among all servers by MXNet:
# MXNET_KVSTORE_BIGARRAY_BOUND.
BIG_ARRAY = 1_000_000
# The heartbeat port minus MXNet's own port: it is outside of the range that the launcher uses.
_HEARTBEAT_PORT_OFFSET = 1000


class Environment(NamedTuple):
    """The role of a process in its group, and the address of the group's scheduler.

    Attributes
    ----------
    role : str
        One of ROLES.
    host : str
        Address of the scheduler.
    port : int
        The port of MXNet's scheduler.
    workers, servers : int
        The number of each in the group.
    """

    role: str
    host: str
    port: int
    workers: int
    servers: int

    @property
    def heartbeat_port(self) -> int:
        """The port of the heartbeat server, on the scheduler's machine."""
        return self.port + _HEARTBEAT_PORT_OFFSET

    def to_variables(self) -> dict[str, str]:
        """Returns the environment variables, by name."""
        values = (self.role, self.host, self.port, self.workers, self.servers)
        return {f"DMLC_{name}": str(value) for name, value in zip(_NAMES, values)}


def read_environment() -> Environment | None:
    """Returns what the variables contain; None if none is set.

    Raises ValueError, which names the variable, if one is missing or invalid.
    """
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
    if port + _HEARTBEAT_PORT_OFFSET > 65535:
        raise ValueError(
            f"DMLC_PS_ROOT_PORT {port}: {65535 - _HEARTBEAT_PORT_OFFSET} is the most, "
            f"since the port {_HEARTBEAT_PORT_OFFSET} above it is used too"
        )
    return Environment(role, host, port, workers, servers)


def is_non_worker() -> bool:
    """Returns whether this process is a server or scheduler, not a worker."""
    environment = read_environment()
    return environment is not None and environment.role != "worker"


@contextmanager
def hide_role() -> Iterator[None]:
    """Hides DMLC_ROLE within the block, so that a server or scheduler can import MXNet.

    With the variable set, the import would start to serve and never return.
    """
    role = os.environ.pop("DMLC_ROLE")
    try:
        yield
    finally:
        os.environ["DMLC_ROLE"] = role


@contextmanager
def set_environment(environment: Environment) -> Iterator[None]:
    """Sets the variables within the block, and restores them afterwards."""
    former = {name: value for name, value in os.environ.items() if name.startswith("DMLC_")}
    os.environ.update(environment.to_variables())
    try:
        yield
    finally:
        for name in environment.to_variables():
            del os.environ[name]
        os.environ.update(former)


def least_loaded_key(first: int, index: int, elements: int, loads: list[int]) -> int:
    """Returns a key for which MXNet sends array number `index` to the least loaded server.

    MXNet sends an array smaller than BIG_ARRAY to server number key * 9973 % servers. With the
    indices as keys, one of two servers would get all of SqueezeNet's weights, the other all biases.

    Parameters
    ----------
    first : int
        The first of the `len(loads)` keys that array 0 may have. Those of array 1 follow them.
    elements : int
        The size of the array.
    loads : list of int
        The number of elements on each server. The size of this array is added.
    """
    servers = len(loads)
    server = loads.index(min(loads))
    if elements < BIG_ARRAY:
        loads[server] += elements
    begin = first + index * servers
    return next(key for key in range(begin, begin + servers) if key * 9973 % servers == server)
