"""The DMLC variables: they are checked before anything else is done."""

from __future__ import annotations

import os
import re

import pytest

from embedding_learning.cli.train_flags import parse
from embedding_learning.distributed import dmlc_environment
from embedding_learning.distributed.dmlc_environment import (
    Environment,
    hide_role,
    is_non_worker,
    read_environment,
)
from embedding_learning.errors import UsageError

FIRST = {
    "DMLC_ROLE": "worker",
    "DMLC_PS_ROOT_URI": "10.0.0.1",
    "DMLC_PS_ROOT_PORT": "9091",
    "DMLC_NUM_WORKER": "4",
    "DMLC_NUM_SERVER": "2",
}


@pytest.fixture(autouse=True)
def no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FIRST:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def group(no_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FIRST.items():
        monkeypatch.setenv(name, value)


def test_without_variables_there_is_no_group() -> None:
    assert read_environment() is None
    assert not is_non_worker()


def test_empty_variables_are_none(group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FIRST:
        monkeypatch.setenv(name, "")
    assert read_environment() is None


def test_the_environment_is_read(group: None) -> None:
    environment = read_environment()
    assert environment == Environment("worker", "10.0.0.1", 9091, workers=4, servers=2)
    assert environment.heartbeat_port == 10091


@pytest.mark.parametrize("role", dmlc_environment.ROLES)
def test_servers_and_schedulers_are_non_workers(
    group: None, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.setenv("DMLC_ROLE", role)
    assert is_non_worker() == (role != "worker")


@pytest.mark.parametrize("name", FIRST)
def test_what_is_not_set_is_named(group: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=rf"^{name} is not set: .+"):
        read_environment()


@pytest.mark.parametrize("name", FIRST)
def test_one_variable_alone_is_no_group(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, FIRST[name])
    with pytest.raises(ValueError, match=r"^DMLC_\w+ is not set: "):
        read_environment()


@pytest.mark.parametrize("role", ["Worker", "worker ", "master", "workers"])
def test_an_unknown_role_is_named(group: None, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    monkeypatch.setenv("DMLC_ROLE", role)
    line = f"^DMLC_ROLE {re.escape(role)}: must be one of worker, server, scheduler$"
    with pytest.raises(ValueError, match=line):
        read_environment()


@pytest.mark.parametrize("count", ["0", "-1", "+1", "1.5", "two", " 2", "2\n", "\u0662", "1e3"])
@pytest.mark.parametrize("name", ["DMLC_PS_ROOT_PORT", "DMLC_NUM_WORKER", "DMLC_NUM_SERVER"])
def test_what_is_no_number_is_named(
    group: None, monkeypatch: pytest.MonkeyPatch, name: str, count: str
) -> None:
    monkeypatch.setenv(name, count)
    line = f"^{name} {re.escape(count)}: must be a number from 1$"
    with pytest.raises(ValueError, match=line):
        read_environment()


def test_the_port_leaves_room_for_the_heartbeat(
    group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMLC_PS_ROOT_PORT", "64535")
    environment = read_environment()
    assert environment
    assert environment.heartbeat_port == 65535
    monkeypatch.setenv("DMLC_PS_ROOT_PORT", "64536")
    with pytest.raises(ValueError, match=r"^DMLC_PS_ROOT_PORT 64536: 64535 is the most"):
        read_environment()


def test_the_role_is_hidden_within_and_there_again_after_a_fault(group: None) -> None:
    def fail() -> None:
        with hide_role():
            assert "DMLC_ROLE" not in os.environ
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.environ["DMLC_ROLE"] == "worker"


@pytest.mark.parametrize("kvstore", ["dist_sync", "dist_device_sync"])
def test_a_distributed_store_needs_a_group(kvstore: str) -> None:
    with pytest.raises(UsageError, match=rf"^--kvstore {kvstore}: .* embedding_learning launch "):
        parse([f"--kvstore={kvstore}"])


@pytest.mark.parametrize("kvstore", ["device", "local", "nccl"])
def test_a_group_needs_a_distributed_store(group: None, kvstore: str) -> None:
    with pytest.raises(UsageError, match=rf"^--kvstore {kvstore}: .*\(DMLC_ROLE .* dist_sync or "):
        parse([f"--kvstore={kvstore}"])


def test_a_wrong_variable_is_a_mistake_of_the_user(
    group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMLC_NUM_SERVER", "none")
    with pytest.raises(UsageError, match=r"^DMLC_NUM_SERVER none: must be a number from 1$"):
        parse(["--kvstore=dist_sync"])


def test_the_batch_is_all_workers(group: None) -> None:
    """--batch-size is one device's, --total-batch-size all workers'."""
    config = parse(["--kvstore=dist_sync", "--batch-size=10", "--cpu-contexts=2"])
    assert (config.devices.processes, config.batch.total) == (4, 80)
    config = parse(["--kvstore=dist_sync", "--total-batch-size=80"])
    assert (config.devices.processes, config.batch.total) == (4, 80)
    with pytest.raises(UsageError, match=r"^--total-batch-size 90: cannot .* among 4 devices; 20 "):
        parse(["--kvstore=dist_sync", "--total-batch-size=90"])
    with pytest.raises(UsageError, match=r"^--total-batch-size 20: 5 images a device .* single"):
        parse(["--kvstore=dist_sync", "--total-batch-size=20"])


def test_a_process_that_trains_alone_is_one_of_one() -> None:
    assert parse([]).devices.processes == 1


@pytest.mark.parametrize("servers", [1, 2, 3, 7, 64])
def test_arrays_are_distributed_over_the_servers_by_their_sizes(servers: int) -> None:
    """Weights and biases in turn, as in SqueezeNet; no two have the same key."""
    sizes = [size for number in range(100) for size in (64, 50_000 + number)]
    loads, placed, keys = [0] * servers, [0] * servers, set()
    for index, size in enumerate(sizes):
        key = dmlc_environment.least_loaded_key(1_000_000, index, size, loads)
        assert 1_000_000 + index * servers <= key < 1_000_000 + (index + 1) * servers
        placed[key * 9973 % servers] += size
        keys.add(key)
    assert len(keys) == len(sizes)
    assert placed == loads
    assert max(loads) - min(loads) <= max(sizes)


def test_what_mxnet_cuts_itself_counts_for_no_server() -> None:
    loads = [0, 0]
    dmlc_environment.least_loaded_key(0, 0, dmlc_environment.BIG_ARRAY, loads)
    assert loads == [0, 0]
    dmlc_environment.least_loaded_key(0, 1, dmlc_environment.BIG_ARRAY - 1, loads)
    assert loads == [dmlc_environment.BIG_ARRAY - 1, 0]
