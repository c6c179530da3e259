"""Finds the files of a run by its prefix, by PREFIX.params or by PREFIX.run."""

from __future__ import annotations

import os

from embedding_learning.errors import UsageError

_NETWORK, _FOLDER = ".params", ".run"


def prefix_of(name: str) -> str:
    """Returns the prefix of a run that is named by its prefix, its network or its folder."""
    name = name.rstrip("/") or name
    return name.removesuffix(_FOLDER).removesuffix(_NETWORK)


def find_network(name: str, flag: str) -> str:
    """Returns the parameter file of a name: the file itself, or PREFIX.params.

    Raises UsageError that begins with the flag and names both files that were tried.
    """
    network = f"{prefix_of(name)}{_NETWORK}"
    for path in (name, network):
        if os.path.isfile(path):
            return path
    missing = "no such file" if name == network else f"no such file, and no {network}"
    raise UsageError(
        f"{flag} {name}: {missing}; name a trained network by its PREFIX, PREFIX{_NETWORK} or "
        f"PREFIX{_FOLDER}"
    )


def find_run(name: str) -> str:
    """Returns the folder PREFIX.run of a name. Raises UsageError if it does not exist."""
    folder = f"{prefix_of(name)}{_FOLDER}"
    # The folder may have another name, such as PREFIX.run.1 of a former run.
    for path in (folder, name):
        if os.path.isdir(path):
            return path
    raise UsageError(
        f"{name}: no such folder {folder}; name a run by its PREFIX, PREFIX{_NETWORK} or "
        f"PREFIX{_FOLDER}"
    )
