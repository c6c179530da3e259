"""Groups of two workers: they compute what one process does, end together, and can be resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from mxnet.gluon import nn
from safetensors.numpy import load_file

from embedding_learning import MarginNet
from embedding_learning.cli import train
from embedding_learning.data.batches import BalancedBatches, SequentialBatches
from embedding_learning.data.build import Data
from embedding_learning.distributed import heartbeat, server
from embedding_learning.distributed.synchronous import SynchronousGroup
from embedding_learning.distributed.worker_group import WorkerGroup
from embedding_learning.errors import TrainingError
from embedding_learning.evaluation.groups import number_groups
from embedding_learning.evaluation.metrics import recall_metrics
from embedding_learning.model.net import ImageNormalization
from embedding_learning.training import build, learner_state, loop, run
from embedding_learning.training.learner import Learner
from embedding_learning.training.run_folder import RunFolder
from tests.helpers import forked, tiny_backbone
from tests.helpers.limits import HANG_LIMIT, NEVER
from tests.helpers.signals import send_signal
from tests.helpers.tiny_networks import (
    batch_of,
    config_of,
    devices_of,
    each_class,
    net_with_statistics,
    parameters_of,
    small_net,
)
from tests.training.test_learner import draw_from_the_next_class

PREFIX = "margin_loss_model"
FLAGS = [
    *("--model=tiny-norm", "--image-size=40", "--crop-size=32", "--embed-dim=16", "--lr=0.001"),
    *("--batch-size=6", "--batch-k=3", "--epochs=2", "--batch-num=4", "--log-interval=2"),
    *("--workers=1", "--steps=1", "--kvstore=dist_sync"),
]


class Process:
    """A process of a group, in a folder of its own, as on a machine of its own."""

    def __init__(
        self, function: str, flags: Sequence[str], folder: Path, variables: dict[str, str]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        variables = {**os.environ, **variables}
        module = "tests.distributed.test_synchronous"
        self.process = forked.start(module, function, flags, folder, variables)

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    def end(self, seconds: float) -> int | None:
        self.process.join(seconds)
        assert not self.process.is_alive(), f"{self.folder.name} hangs: {self.err}"
        return self.process.exitcode

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, nor those 1000 above; out of reach of the system's own choice."""
    while True:
        ports = random.sample(range(10000, 31000), count)
        try:
            for port in ports:
                for each in (port, port + 1000):
                    socket.create_server(("", each)).close()
        except OSError:
            continue
        return ports


StartGroup = Callable[..., list[Process]]


@pytest.fixture(scope="module")
def start_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartGroup]:
    """A function that starts a scheduler, a server and two workers, in folders in the one given.

    `worker` is the function of this file that the workers run, `server` that of the others.
    """
    started: list[Process] = []

    def start_group(
        folder: Path,
        *flags: str,
        worker: str = "train_worker",
        server: str = "serve",
        **variables: str,
    ) -> list[Process]:
        port, *own_ports = free_ports(3)
        variables = {
            "DMLC_PS_ROOT_URI": "127.0.0.1",
            "DMLC_PS_ROOT_PORT": str(port),
            "DMLC_NUM_WORKER": "2",
            "DMLC_NUM_SERVER": "1",
            **variables,
        }
        group = []
        for role, number in (("scheduler", 0), ("server", 0), ("worker", 0), ("worker", 1)):
            own = {"DMLC_ROLE": role}
            function = server
            if role == "worker":
                # MXNet numbers the workers of a machine by their ports.
                own["PORT"] = str(sorted(own_ports)[number])
                function = worker
            place = folder / f"{role}{number}"
            group.append(Process(function, flags, place, {**variables, **own}))
        started.extend(group)
        return group

    yield start_group
    for process in started:
        process.close()


def statuses(group: list[Process]) -> list[int | None]:
    return [process.end(HANG_LIMIT) for process in group]


def cause_of(group: list[Process]) -> str:
    """Shown if a test fails."""
    return "\n".join(f"{process.folder.name}: {process.err}" for process in group)


def last_state(folder: Path) -> dict[str, bytes]:
    """The arrays of the newest checkpoint of the first worker."""
    arrays = load_file(max((folder / "worker0" / f"{PREFIX}.run").glob("checkpoint-*")))
    return {name: array.tobytes() for name, array in arrays.items()}


# ---- What runs in the processes ----


def give_up_nobody() -> None:
    """On a slow machine, no process is given up for its slowness."""
    heartbeat.HEARTBEAT_TIMEOUT = heartbeat.JOIN_TIMEOUT = NEVER
    heartbeat.ABORT_DELAY = float(os.environ.get("TEST_ABORT_DELAY", heartbeat.ABORT_DELAY))


def serve() -> int:
    """train.py, with the tiny backbones."""
    give_up_nobody()
    with tiny_backbone.registered():
        return train.main()


def train_worker() -> int:
    """train.py, which leaves a digest of its weights.

    TEST_AT says which worker does what before which step, counted from 1: "0 2 wait" or
    "1 3 SIGTERM".
    """
    rank, call, what = os.environ.get("TEST_AT", "-1 -1 wait").split()
    train_all, step, calls = loop.train, Learner.step, iter(range(1, 10**6))

    def stepping(self, *arguments, **named):
        if next(calls) == int(call) and self.group.rank == int(rank):
            Path("here").touch()
            if what == "wait":
                time.sleep(NEVER)
            send_signal(getattr(signal, what))
        return step(self, *arguments, **named)

    def training(run):
        train_all(run)
        mx.nd.waitall()
        weights = [*parameters_of(run.learner.net), run.learner.beta_values()]
        digest = hashlib.sha256(b"".join(map(bytes, weights))).hexdigest()
        Path(f"weights-of-{run.learner.group.rank}").write_text(digest)

    Learner.step, loop.train = stepping, training
    return serve()


def exchange_worker() -> int:
    """Exchanges everything that two workers can. The results are checked here or by the tests."""
    give_up_nobody()
    environment = heartbeat.join_group("train.py")
    group = SynchronousGroup("dist_sync", environment)
    found: dict[str, np.ndarray] = {}
    try:
        exchange_arrays(group)
        exchange_gradients(group, found)
        share_batches(group, found)
        exchange_statistics(group, found)
        evaluate_together(group, found)
        np.savez("found.npz", **found)
    except BaseException:
        import traceback

        traceback.print_exc()
        heartbeat.exit_group(1)
    heartbeat.exit_group(0)
    return 1


CONTENTS = [None, *(bytes(range(length)) for length in (0, 1, 3, 4, 5))]
CONTENTS += [np.random.default_rng(0).bytes(4096 * k + 1) for k in (1, 7, 1100)]
# Numbers that are none, which arithmetic would change.
CONTENTS.append(np.array([0x7F800001, 0xFFC00000, 0x80000000, 1], "<u4").tobytes())


def exchange_arrays(group: WorkerGroup) -> None:
    assert group.size == 2
    for content in CONTENTS:
        assert group.broadcast(content if group.rank == 0 else None) == content
    for shape in ((3,), (2,), (3,), (2, 3), (1,)):
        own = np.arange(np.prod(shape)).reshape(shape).astype(np.float32) * 10**group.rank
        np.testing.assert_array_equal(group.sum(own), own * 11 / 10**group.rank)
    for counts in ((2, 3), (0, 4), (1, 0), (2, 3), (5, 5)):
        parts = [np.random.default_rng(n).random((count, 3), np.float32) for n, count in
                 enumerate(counts)]  # fmt: skip
        np.testing.assert_array_equal(group.gather(parts[group.rank]), np.concatenate(parts))
    labels = [np.array([7, 2**24 - 1], np.float32), np.array([0], np.float32)]
    np.testing.assert_array_equal(group.gather(labels[group.rank]), np.concatenate(labels))
    arrays = [nd.array([1, 10]) * (group.rank + 1), nd.array([100, 1000], mx.cpu(1))]
    total = sum(array.asnumpy() for array in group.queue_sum(arrays))
    np.testing.assert_array_equal(total, [203, 2030])
    group.check_equal("the same", [b"a", b"bc"])
    with pytest.raises(TrainingError, match=r"^the others of worker 1 differ from .* worker 0; "):
        group.check_equal("the others", [b"a", str(group.rank).encode()])


class Shifted:
    """A group whose trainers have other keys: MXNet's store knows each of them once only."""

    def __init__(self, group: WorkerGroup, by: int) -> None:
        self._group, self._by = group, by

    def __getattr__(self, name: str):
        return getattr(self._group, name)

    def create_kvstore(self, name: str, trainer: int):
        return self._group.create_kvstore(name, trainer + self._by)


def twenty_steps(
    group: WorkerGroup | None, config, part: slice, worker: int = 0
) -> list[np.ndarray]:
    """The parameters afterwards, beta's among them."""
    devices = devices_of(config)
    net = small_net(devices)
    for parameter in net.collect_params().values():
        # All have to begin with the first one's.
        parameter.set_data(parameter.data(devices[0]) + worker)
    learning = build.build(config, each_class(5), net, devices, group)
    learning.start()
    for step in range(20):
        batch = batch_of(32, seed=step)
        data, label = (arrays[0][part] for arrays in (batch.data, batch.label))
        learning.step(mx.io.DataBatch(data=[data], label=[label], pad=0))
    mx.nd.waitall()
    return [*parameters_of(net, devices[-1]), learning.beta_values()]


STEPS = ["--batch-k=2", "--total-batch-size=32", "--lr=0.01"]


def exchange_gradients(group: WorkerGroup, found: dict[str, np.ndarray]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        draw_from_the_next_class(patched)
        for count in (1, 2):
            config = config_of("--kvstore=dist_sync", f"--cpu-contexts={count}", *STEPS)
            part = slice(16 * group.rank, 16 * group.rank + 16)
            weights = twenty_steps(Shifted(group, 10 * count), config, part, worker=group.rank)
            for number, array in enumerate(weights):
                found[f"weights/{count}/{number}"] = array


SHARED = {"margin": ["--memory=40", "--lr-beta=1"], "proxy-anchor": []}


def share_batches(group: WorkerGroup, found: dict[str, np.ndarray]) -> None:
    """The loss of all workers' rows; negatives are sampled, alike in all workers."""
    for number, (loss, flags) in enumerate(SHARED.items()):
        config = config_of("--kvstore=dist_sync", *STEPS, f"--loss={loss}", *flags, *WHOLE)
        part = slice(16 * group.rank, 16 * group.rank + 16)
        shifted = Shifted(group, 50 + 10 * number)
        for name, array in shared_steps(shifted, config, part).items():
            found[f"shared/{loss}/{name}"] = array


WHOLE = ["--negatives=batch", "--optimizer=sgd"]


def shared_steps(group: WorkerGroup | None, config, part: slice) -> dict[str, np.ndarray]:
    """The losses of some steps, and all arrays afterwards."""
    devices = devices_of(config)
    mx.random.seed(2)
    learning = build.build(config, each_class(5), small_net(devices), devices, group)
    learning.start()
    losses = []
    for step in range(8):
        batch = batch_of(32, seed=step)
        data, label = (arrays[0][part] for arrays in (batch.data, batch.label))
        loop.seed_step(1, step)
        losses.append(learning.step(mx.io.DataBatch(data=[data], label=[label])).loss)
    return {"losses": np.array(losses), **learner_state.gather(learning)[0]}


def exchange_statistics(group: WorkerGroup, found: dict[str, np.ndarray]) -> None:
    config = config_of("--kvstore=dist_sync", "--total-batch-size=16", "--batch-k=2")
    learning = build.build(
        config, each_class(5), net_with_statistics(), [mx.cpu()], Shifted(group, 40)
    )
    learning.start()
    count_apart(learning)
    arrays, rest = learner_state.gather(learning)
    assert rest["devices"] == 2
    assert arrays.keys() >= {"network/dense.weight", "beta"}
    for name, array in arrays.items():
        found[f"state/{name}"] = array
    learning.average_running_statistics()
    for number, array in enumerate(statistics_of(learning)):
        found[f"united/{number}"] = array
    # And back: each has its own again.
    learner_state.restore(learning, arrays, rest, "--resume here")
    for number, array in enumerate(statistics_of(learning)):
        found[f"restored/{number}"] = array


def count_apart(learning: Learner) -> None:
    """As if batch norm had counted something else on each device."""
    for place, data in enumerate(data for p in null_parameters(learning) for data in p.list_data()):
        rng = np.random.default_rng((learning.group.rank, place))
        data[:] = nd.array(rng.random(data.shape))


def null_parameters(learning: Learner) -> list[mx.gluon.Parameter]:
    return [p for p in learning.net.collect_params().values() if p.grad_req == "null"]


def statistics_of(learning: Learner) -> list[np.ndarray]:
    return [data.asnumpy() for p in null_parameters(learning) for data in p.list_data()]


def searched_data(part: tuple[int, int]) -> Data:
    """13 images searched for and 5 searched in, neither a whole number of batches."""
    rng = np.random.default_rng(0)
    parts = []
    for count in (13, 5):
        pixels, labels = (
            rng.integers(0, 256, (count, 10, 10, 3), np.uint8),
            rng.integers(0, 3, count),
        )
        parts.append(SequentialBatches(pixels, labels, 8, 8, 0, part))
    return Data(None, *parts, 3, "", "", groups=number_groups(np.arange(13) % 5 - 1, np.arange(5)))


def image_net() -> MarginNet:
    mx.random.seed(1)
    backbone = nn.HybridSequential()
    backbone.add(nn.Conv2D(4, 3, in_channels=3), nn.Activation("relu"), nn.GlobalAvgPool2D())
    net = MarginNet(backbone, 8, 2, preprocess=ImageNormalization())
    net.initialize(mx.init.Xavier(magnitude=2))
    net.embed(nd.zeros((1, 3, 8, 8), dtype=np.uint8))
    return net


def searched_parts(data: Data, gallery: SequentialBatches | None) -> Data:
    """The images searched among each other, or in the gallery with some groups left out."""
    groups = data.groups if gallery else None
    return Data(None, data.test, gallery, 3, "", "", groups=groups)


def evaluate_together(group: WorkerGroup, found: dict[str, np.ndarray]) -> None:
    data = searched_data((group.rank, group.size))
    learning = Learner(image_net(), 1.2, None, [], [mx.cpu()], group=group)
    for name, gallery in (("among", None), ("gallery", data.gallery)):
        parts = searched_parts(data, gallery)
        metrics, embeddings = loop.evaluate_test(learning, parts, recall_metrics())
        assert bool(metrics) == (group.rank == 0)
        found[f"{name}/embeddings"] = embeddings
        found[f"{name}/metrics"] = np.array(list(metrics.values()))


# ---- The workers' parts ----


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_the_parts_of_a_balanced_batch_are_the_whole_one(parts: int) -> None:
    """No class stands in two of them."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 9, 9, 3), np.uint8)
    labels = np.repeat(np.arange(20), 3)

    def batches(part: tuple[int, int]) -> BalancedBatches:
        return BalancedBatches(pixels, labels, 2, 5, 24, 7, 0, part)

    whole, each = batches((0, 1)), [batches((number, parts)) for number in range(parts)]
    for _ in range(3):
        expected, found = whole.next(), [batch.next() for batch in each]
        for name in ("data", "label"):
            arrays = [getattr(batch, name)[0].asnumpy() for batch in found]
            assert all(len(array) == 24 // parts for array in arrays)
            np.testing.assert_array_equal(
                np.concatenate(arrays), getattr(expected, name)[0].asnumpy()
            )
        classes = [set(batch.label[0].asnumpy()) for batch in found]
        assert sum(map(len, classes)) == len(set.union(*classes)) == 12


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 9, 16, 17, 30])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_the_parts_of_the_searched_images_are_each_image_once(count: int, parts: int) -> None:
    """In order; some parts are empty where there are fewer images than parts."""
    pixels = np.zeros((count, 3, 3, 3), np.uint8)
    pixels[:, 1, 1, 0] = np.arange(count)
    seen, lengths = [], []
    for part in range(parts):
        batches = SequentialBatches(pixels, np.arange(count), 8, 3, 0, (part, parts))
        own = []
        for batch in batches:
            assert len(batch.data[0]) == 8 // parts
            kept = slice(0, 8 // parts - batch.pad)
            labels = list(batch.label[0].asnumpy()[kept])
            assert list(batch.data[0].asnumpy()[kept, 0, 1, 1]) == labels
            own += labels
        seen += own
        lengths.append(len(own))
    assert seen == list(range(count))
    assert max(lengths) - min(lengths) <= 1


class Others(WorkerGroup):
    """A group of three, of which the other two's arrays are given."""

    rank, size = 1, 3

    def __init__(self, *others: np.ndarray) -> None:
        self._others = others

    def sum(self, array: np.ndarray) -> np.ndarray:
        assert all(other.shape == array.shape for other in self._others)
        return sum(self._others, array)


def test_the_statistics_are_the_mean_over_devices_and_workers() -> None:
    devices = [mx.cpu(0), mx.cpu(1)]
    net = small_net(devices, norm=True)
    learning = Learner(net, 1.2, None, [], devices)
    count_apart(learning)
    before = [[d.asnumpy() for d in p.list_data()] for p in null_parameters(learning)]
    assert [len(arrays) for arrays in before] == [2, 2]
    others = [np.full(8, 6, np.float32), np.arange(8, dtype=np.float32)]  # of two devices each
    learning.group = Others(*others)
    learning.average_running_statistics()
    for place, (parameter, (first, second)) in enumerate(zip(null_parameters(learning), before)):
        theirs = sum(others)[4 * place : 4 * place + 4]
        for data in parameter.list_data():
            np.testing.assert_allclose(data.asnumpy(), (first + second + theirs) / 6, rtol=1e-6)


# ---- What two workers exchange ----


@pytest.fixture(scope="module")
def exchanged(
    start_group: StartGroup, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, np.ndarray]]:
    """What each of two workers found."""
    folder = tmp_path_factory.mktemp("exchange")
    group = start_group(folder, "--kvstore=dist_sync", worker="exchange_worker")
    assert statuses(group) == [0, 0, 0, 0], cause_of(group)
    found = []
    for process in group[2:]:
        with np.load(process.folder / "found.npz", allow_pickle=False) as arrays:
            found.append(dict(arrays))
    return found


@pytest.mark.slow
def test_arrays_and_bytes_arrive_whole(exchanged: list[dict[str, np.ndarray]]) -> None:
    """Checked by the workers themselves, in `exchange_arrays`."""
    assert exchanged[0].keys() == exchanged[1].keys()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_two_workers_learn_what_one_process_does(
    exchanged: list[dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Each of one or two devices, against as many in one process: 20 steps, negatives given."""
    draw_from_the_next_class(monkeypatch)
    config = config_of(f"--cpu-contexts={2 * count}", *STEPS)
    expected = twenty_steps(None, config, slice(0, 32))
    start = parameters_of(small_net([mx.cpu()]))
    for number, (array, begun) in enumerate(zip(expected, start)):
        first, second = (found[f"weights/{count}/{number}"] for found in exchanged)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, array, atol=1e-5)
        assert abs(array - begun).max() > 1e-2
    np.testing.assert_allclose(
        exchanged[0][f"weights/{count}/{len(start)}"], expected[-1], atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("loss", SHARED)
def test_workers_that_share_a_batch_learn_what_one_process_does(
    exchanged: list[dict[str, np.ndarray]], loss: str
) -> None:
    """No gradient is left out: each worker computes the loss of all rows."""
    config = config_of("--cpu-contexts=2", *STEPS, f"--loss={loss}", *SHARED[loss], *WHOLE)
    expected = shared_steps(None, config, slice(0, 32))
    for name, array in expected.items():
        first, second = (found[f"shared/{loss}/{name}"] for found in exchanged)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, array, rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_statistics_are_gathered_united_and_restored(
    exchanged: list[dict[str, np.ndarray]],
) -> None:
    learning = build.build(
        config_of("--total-batch-size=16", "--batch-k=2"),
        each_class(5),
        net_with_statistics(),
        [mx.cpu()],
    )
    counted = []
    for rank in range(2):
        learning.group.rank = rank
        count_apart(learning)
        counted.append(statistics_of(learning))
    learning.group.rank = 0
    names = [n for n, p in learner_state._network(learning).items() if p.grad_req == "null"]
    state = {
        name[len("state/") :]: array
        for name, array in exchanged[0].items()
        if name.startswith("state/")
    }
    for place, (name, arrays) in enumerate(zip(names, zip(*counted))):
        mean = (arrays[0] + arrays[1]) / 2
        for rank, found in enumerate(exchanged):
            np.testing.assert_array_equal(found[f"state/statistics/0/{name}"], arrays[0])
            np.testing.assert_array_equal(found[f"state/statistics/1/{name}"], arrays[1])
            np.testing.assert_array_equal(found[f"restored/{place}"], arrays[rank])
            np.testing.assert_allclose(found[f"united/{place}"], mean, rtol=1e-6)
    # A single process resumes with the mean.
    rest = {"devices": 2, "optimizers": [{"counts": {}, "numbers": {"num_update": 0}}] * 2}
    learner_state.restore(learning, state, rest, "--resume here")
    for found, *arrays in zip(statistics_of(learning), *counted):
        np.testing.assert_allclose(found, (arrays[0] + arrays[1]) / 2, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["among", "gallery"])
def test_two_workers_evaluate_to_the_numbers_of_one(
    exchanged: list[dict[str, np.ndarray]], name: str
) -> None:
    data = searched_data((0, 1))
    parts = searched_parts(data, data.gallery if name == "gallery" else None)
    metrics, embeddings = loop.evaluate_test(
        Learner(image_net(), 1.2, None, [], [mx.cpu()]), parts, recall_metrics()
    )
    assert list(exchanged[0][f"{name}/metrics"]) == list(metrics.values())
    if parts.groups:
        ungrouped, _ = loop.evaluate_test(
            Learner(image_net(), 1.2, None, [], [mx.cpu()]),
            dataclasses.replace(parts, groups=None),
            recall_metrics(),
        )
        assert metrics != ungrouped
    np.testing.assert_allclose(exchanged[0][f"{name}/embeddings"], embeddings, atol=1e-6)


# ---- Whole runs ----


@pytest.fixture(scope="module")
def data_flags(tiny_cub: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache-of-groups")
    return [*FLAGS, f"--data-path={tiny_cub}", f"--cache-dir={cache}"]


@pytest.fixture(scope="module")
def alone(
    start_group: StartGroup, tmp_path_factory: pytest.TempPathFactory, data_flags: list[str]
) -> list[Process]:
    """A group left alone."""
    group = start_group(tmp_path_factory.mktemp("alone"), *data_flags)
    assert statuses(group) == [0, 0, 0, 0], cause_of(group)
    return group


@pytest.mark.slow
def test_only_the_first_worker_logs_prints_and_saves(alone: list[Process]) -> None:
    scheduler, server, first, second = alone
    for process in (scheduler, server, second):
        assert (process.out, process.err) == ("", ""), process.folder
        assert (
            sorted(path.name for path in process.folder.iterdir() if path.name[:4] == "marg") == []
        )
    assert len(re.findall(r"\[Epoch \d\] validation: Recall@1=", first.err)) == 2
    assert "Best validation Recall@1" in first.out + first.err
    assert (first.folder / f"{PREFIX}.params").is_file()


@pytest.mark.slow
def test_the_weights_of_all_workers_are_equal_in_the_end(alone: list[Process]) -> None:
    digests = [(p.folder / f"weights-of-{rank}").read_text() for rank, p in enumerate(alone[2:])]
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_a_stop_signal_to_a_worker_stops_all_and_they_resume_to_the_same_bytes(
    alone: list[Process], start_group: StartGroup, tmp_path: Path, data_flags: list[str]
) -> None:
    """Within the epoch, though every step is logged; the others wait for the first one's saving.

    Only the first worker's folder has the state.
    """
    flags = [*data_flags, "--log-interval=1"]
    group = start_group(tmp_path, *flags, worker="slow_worker", TEST_AT="1 1 SIGTERM")
    assert statuses(group) == [143, 0, 143, 143], cause_of(group)
    first, second = group[2:]
    line = f"train.py: stopped by SIGTERM; the state is in {PREFIX}.run; --resume auto continues"
    assert line in first.err
    assert second.err.endswith("train.py: stopped by SIGTERM\n")
    saved = max((first.folder / f"{PREFIX}.run").glob("checkpoint-*")).name
    assert "checkpoint-0000-000001" <= saved < "checkpoint-0000-000004"
    group = start_group(tmp_path, *flags, "--resume=auto")
    assert statuses(group) == [0, 0, 0, 0], cause_of(group)
    assert last_state(tmp_path) == last_state(alone[2].folder.parent)


def slow_worker() -> int:
    """Takes longer to save than ABORT_DELAY, except for the first time."""
    save = RunFolder.save

    def saving(self, epoch, batch, *arguments):
        if batch:
            time.sleep(heartbeat.ABORT_DELAY + 2)
        return save(self, epoch, batch, *arguments)

    RunFolder.save = saving
    return train_worker()


@pytest.mark.slow
def test_a_killed_process_ends_the_group_and_it_resumes_to_the_same_bytes(
    alone: list[Process], start_group: StartGroup, tmp_path: Path, data_flags: list[str]
) -> None:
    """A worker, the server, the scheduler; one after the other in one run."""
    flags = [*data_flags, "--checkpoint-interval=1", "--resume=auto"]
    kills = [(3, "worker 1"), (1, "server"), (0, "the scheduler")]
    for place, lost in kills:
        # One waits before its second step, the other in the store.
        waiting = 1 if place != 3 else 0
        group = start_group(tmp_path, *flags, TEST_AT=f"{waiting} 2 wait")
        here = group[2 + waiting].folder / "here"
        while not here.exists():
            assert all(process.process.is_alive() for process in group), cause_of(group)
            time.sleep(0.01)
        here.unlink()
        time.sleep(0.3)
        killed = group.pop(place)
        killed.process.kill()
        assert statuses(group) == [3, 3, 3], cause_of(group)
        for process in group:
            line = rf"^train\.py: .*: stopped: {lost}.* was lost(; .* --resume auto .*)?$"
            assert re.search(line, process.err, re.M), process.err
            assert "Traceback" not in process.err
    group = start_group(tmp_path, *flags)
    assert statuses(group) == [0, 0, 0, 0], cause_of(group)
    assert last_state(tmp_path) == last_state(alone[2].folder.parent)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_a_mistake_in_the_flags_ends_all_with_its_line(
    start_group: StartGroup, tmp_path: Path, data_flags: list[str]
) -> None:
    group = start_group(
        tmp_path, *data_flags, "--lr=-1", worker="serve", TEST_ABORT_DELAY=str(NEVER)
    )
    assert statuses(group) == [2, 2, 2, 2], cause_of(group)
    for process in group:
        assert process.err == "train.py: error: --lr -1.0: must be at least 0\n"


def serve_shortly() -> int:
    """MXNet's servers return at once, as they do if the workers end before all have connected."""
    server.run_server = lambda: None
    return serve()


def read_alone() -> int:
    """A worker that reads the data before it connects to MXNet's servers."""
    run.check = run.read_split
    return serve()


@pytest.mark.slow
@pytest.mark.parametrize("others", ["serve", "serve_shortly"])
def test_a_mistake_in_the_data_ends_all_workers_with_its_line(
    start_group: StartGroup, tmp_path: Path, data_flags: list[str], others: str
) -> None:
    flags = [*data_flags, "--data-path=nowhere"]
    roles = {"worker": "serve" if others == "serve" else "read_alone", "server": others}
    group = start_group(tmp_path, *flags, **roles, TEST_ABORT_DELAY=str(NEVER))
    assert statuses(group) == [2, 0, 2, 2], cause_of(group)
    assert [process.err for process in group[:2]] == ["", ""]
    for process in group[2:]:
        assert re.search(r"^train\.py: error: .*nowhere.*\n\Z", process.err, re.M), process.err
        assert "Traceback" not in process.err


@pytest.mark.slow
def test_an_unexpected_exception_ends_the_group(
    start_group: StartGroup, tmp_path: Path, data_flags: list[str]
) -> None:
    """With its traceback, and without the others waiting for ever."""
    # The other worker waits in the store and cannot end by itself, so no time is given for it.
    group = start_group(tmp_path, *data_flags, worker="faulty_worker", TEST_ABORT_DELAY="0.1")
    assert statuses(group)[1:] == [3, 3, 1], cause_of(group)
    assert "RuntimeError: unforeseen" in group[3].err
    assert "worker 1 " in group[2].err


def faulty_worker() -> int:
    step = Learner.step

    def stepping(self, *arguments, **named):
        if self.group.rank == 1:
            raise RuntimeError("unforeseen")
        return step(self, *arguments, **named)

    Learner.step = stepping
    return serve()
