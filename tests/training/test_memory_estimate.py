"""The estimate of a step's memory against real steps, and the message of a GPU without memory."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from embedding_learning.cli.train_flags import parse
from embedding_learning.errors import TrainingError
from embedding_learning.model.methods import LOSSES
from embedding_learning.training import build, learner_state, memory_estimate
from embedding_learning.training.settings import make_config
from tests.helpers import forked
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.tiny_networks import config_of

SMALL = ("--model=squeezenet1.1", "--crop-size=64", "--batch-k=5")


def test_sizes_by_hand() -> None:
    """A convolution, batch norm, an activation and a sum in place, and pooling."""

    class Net(nn.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.conv = nn.Conv2D(4, 3, padding=1, in_channels=3)
                self.norm = nn.BatchNorm(in_channels=4)
                self.relu = nn.Activation("relu")

        def hybrid_forward(self, F, x):
            y = self.conv(F.cast(x, "float32"))
            return F.Pooling(self.relu(self.norm(y)) + y, kernel=(2, 2), stride=(2, 2))

    parameters, outputs = memory_estimate._sizes(Net(), (5, 3, 8, 8))
    # The images, a byte each; weights and bias; scale, shift and two statistics.
    assert sorted(parameters) == sorted([5 * 3 * 64, 4 * 4 * 27, 4 * 4, *4 * [4 * 4]])
    # The cast, the convolution, batch norm, the pooling.
    maps = 4 * 5 * 4 * 64
    cast, pooled = 4 * 5 * 3 * 64, maps // 4
    assert sorted(outputs) == sorted([cast, maps, maps, pooled])


@pytest.mark.parametrize(
    ("optimizer", "arrays"), [("sgd", 1), ("sgd --momentum=0", 0), ("adam", 2), ("ftml", 3)]
)
def test_the_optimizers_arrays_are_counted(optimizer: str, arrays: int) -> None:
    name, *flags = optimizer.split()
    config = config_of(f"--optimizer={name}", *flags)
    assert memory_estimate._optimizer_arrays(config.optimizer) == arrays


def test_each_copy_of_the_weights_is_counted() -> None:
    def bytes_with(*flags: str) -> int:
        return memory_estimate.bytes_of_step(config_of(*SMALL, *flags), 10)

    weights, _ = memory_estimate._sizes(
        memory_estimate._network(config_of(*SMALL)), (10, 3, 64, 64)
    )
    least = bytes_with("--optimizer=sgd", "--momentum=0", "--gpus=0")
    assert least > 2 * sum(weights)
    assert bytes_with("--optimizer=adam", "--gpus=0") == least + 2 * sum(weights)
    assert bytes_with("--optimizer=adam", "--gpus=0,1") == least + 3 * sum(weights)


def counted_bytes(*flags: str, classes: int) -> int:
    """Returns the bytes of the arrays that a learner keeps between two steps, but the network's."""
    config = config_of(*SMALL, *flags)
    net = build.build_network(config, [mx.cpu()])
    learner = build.build(config, np.arange(classes)[:, None], net, [mx.cpu()])
    images = mx.nd.zeros((10, 3, 64, 64), dtype=np.uint8)
    learner.step(mx.io.DataBatch([images], [mx.nd.array(np.arange(10) // 5)]))
    arrays = list(learner.memory.arrays().values()) if learner.memory else []
    if LOSSES[config.method.loss].has_proxies:
        arrays += learner.parameter.list_data() + learner.parameter.list_grad()
        states = learner_state._updaters(learner.trainers[1])[0].states.values()
        arrays += [array for state in states for _, array in learner_state._leaves(state)]
    return sum(array.size * np.dtype(array.dtype).itemsize for array in arrays)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", ["--optimizer=adam", "--optimizer=sgd", "--optimizer=sgd --momentum=0"]
)
def test_proxies_their_gradient_and_the_optimizers_arrays_are_counted(optimizer: str) -> None:
    flags = ["--loss=proxy-nca", *optimizer.split()]
    config, classes, images = config_of(*SMALL, *flags), 12, 10
    counted = counted_bytes(*flags, classes=classes)
    estimated = memory_estimate._bytes_of_proxies(config, images, classes)
    # What a step computes from them.
    copies, matrices = memory_estimate._COPIES_OF_PROXIES, memory_estimate._COSINE_MATRICES
    computed = 4 * classes * (copies * 128 + matrices * images)
    assert estimated == counted + computed
    of_step = memory_estimate.bytes_of_step
    assert of_step(config, images, classes=classes) == of_step(config, images) + estimated


def test_the_memory_is_counted() -> None:
    flags = ["--memory=30"]
    counted = counted_bytes(*flags, classes=4)
    # Embeddings and labels.
    assert counted == 4 * 30 * (128 + 1)
    with_memory, without = (
        memory_estimate.bytes_of_step(config_of(*SMALL, *more), 10) for more in (flags, [])
    )
    assert with_memory - without == 4 * 30 * (6 * 128 + 7 * 10)
    # A loss without a sampling has none.
    config = make_config({"loss": "multi-similarity", "memory": 30}, saves=False)
    assert memory_estimate._bytes_of_memory(config, 10) == 0


def megabytes(name: str) -> float:
    """Memory of this process, as the system counts it."""
    kilobytes = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert kilobytes
    return int(kilobytes[1]) / 1024


def measure_two_steps() -> int:
    """Prints the megabytes that steps take, and those that are estimated; runs in a process."""
    number, *flags = sys.argv[1:]
    classes = int(number)
    config = parse([*flags, "--crop-size=112", "--batch-size=20"])
    net = build.build_network(config, [mx.cpu()])
    mx.nd.waitall()
    # Resets the peak.
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    learner = build.build(config, np.arange(classes)[:, None], net, [mx.cpu()])
    batch = mx.io.DataBatch([mx.nd.zeros((20, 3, 112, 112), dtype=np.uint8)], [mx.nd.arange(20)])
    for _ in range(2):
        learner.step(batch)
        mx.nd.waitall()
    # Weights and their gradients existed before.
    weights, _ = memory_estimate._sizes(net, (20, 3, 112, 112))
    measured = megabytes("VmHWM") - before + 2 * sum(weights) / 2**20
    print(measured, memory_estimate.bytes_of_step(config, 20, classes=classes) / 2**20)
    return 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "classes"),
    [
        ("--model=squeezenet1.1", 4),
        ("--model=resnet18_v1", 4),
        ("--model=squeezenet1.1 --memory=60000", 4),
        ("--model=squeezenet1.1 --loss=proxy-nca", 60000),
    ],
)
def test_the_estimate_is_near_what_a_step_takes(flags: str, classes: int, tmp_path: Path) -> None:
    process = forked.start(
        "tests.training.test_memory_estimate",
        "measure_two_steps",
        [str(classes), *flags.split()],
        tmp_path,
        dict(os.environ),
    )
    process.join(HANG_LIMIT)
    assert process.exitcode == 0, (tmp_path / "err").read_text()
    measured, estimated = map(float, (tmp_path / "out").read_text().split())
    assert 0.7 * measured < estimated < 1.3 * measured


@pytest.mark.slow
def test_the_batch_that_fits_is_the_largest() -> None:
    config = config_of(*SMALL, "--gpus=0", "--batch-size=100")
    for classes in (2, 3, 11, 19):
        images = classes * 5
        just = memory_estimate.bytes_of_step(config, images) + memory_estimate._RESERVED
        assert memory_estimate.fitting_batch(config, just) == images
        less = images - 5 if classes > 2 else None
        assert memory_estimate.fitting_batch(config, just - 1) == less
    assert memory_estimate.fitting_batch(config, 2**40) == 100


def fault(monkeypatch: pytest.MonkeyPatch, memory: int, *flags: str) -> str:
    """Returns the message of a run whose cudaMalloc fails, on GPUs of `memory` bytes.

    The last of the GPUs is the smallest.
    """
    config = config_of(*SMALL, *flags)
    sizes = {
        number: memory * (1 + (number != config.devices.gpus[-1])) for number in config.devices.gpus
    }
    monkeypatch.setattr(memory_estimate.gpus, "read_total_memory", sizes.__getitem__)
    error = mx.base.MXNetError("line 161\nMXNetError: cudaMalloc retry failed: out of memory")
    with pytest.raises(TrainingError) as raised, memory_estimate.memory_faults(config, 4):
        raise error
    assert raised.value.__cause__ is error
    return str(raised.value)


def test_the_batch_that_would_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(*SMALL, "--gpus=0,3")
    memory = memory_estimate.bytes_of_step(config, 35) + memory_estimate._RESERVED
    size = f"{memory / 2**30:.1f} GiB"
    assert fault(monkeypatch, memory, "--gpus=0,3") == (
        f"--batch-size 70: the memory of a GPU, {size}, is used up; by estimate --batch-size 35 "
        "would fit"
    )
    assert fault(monkeypatch, memory, "--gpus=0,3", "--total-batch-size=120") == (
        f"--total-batch-size 120: the memory of a GPU, {size}, is used up; by estimate "
        "--total-batch-size 70 would fit"
    )


def test_where_no_batch_fits_other_flags_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(*SMALL, "--gpus=0")
    memory = memory_estimate.bytes_of_step(config, 10) + memory_estimate._RESERVED - 1
    message = fault(monkeypatch, memory, "--gpus=0")
    assert "not even 10 would fit: a smaller --crop-size or another --model takes less" in message
    message = fault(monkeypatch, memory, "--gpus=0", "--memory=1000")
    assert message.endswith("fit: a smaller --memory or --crop-size or another --model takes less")
    message = fault(monkeypatch, 2**40, "--gpus=0", "--batch-size=10")
    assert "no smaller batch of --batch-k 5; a smaller --crop-size" in message


def test_where_the_batch_should_fit_other_programs_are_suspected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = fault(monkeypatch, 2**40, "--gpus=0,1", "--total-batch-size=70")
    assert "nvidia-smi lists, or try --total-batch-size 30" in message
    message = fault(monkeypatch, 2**40, "--gpus=0", "--batch-size=15")
    assert message.endswith("or try --batch-size 10")
    assert not re.search(r"\n", message)


@pytest.mark.parametrize(
    "error", [mx.base.MXNetError("cuDNN: CUDNN_STATUS_EXECUTION_FAILED"), ValueError("memory")]
)
def test_other_errors_pass(error: Exception) -> None:
    with (
        pytest.raises(type(error)) as raised,
        memory_estimate.memory_faults(config_of("--gpus=0"), 4),
    ):
        raise error
    assert raised.value is error


def test_nothing_is_computed_to_estimate() -> None:
    """The GPU has no memory for it, and the host not for a network's weights either."""
    config = config_of("--model=vgg16", "--gpus=0")
    net = memory_estimate._network(config)
    assert memory_estimate.bytes_of_step(config, 70, net) > 2**32
    assert all(parameter._data is None for parameter in net.collect_params().values())
