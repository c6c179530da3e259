"""The state of a learner: saved and restored to the byte, and checked if it is untrusted."""

import json
import re

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from mxnet.gluon import nn

from embedding_learning import MarginNet
from embedding_learning.errors import TrainingError, UsageError
from embedding_learning.training import (
    build,
    checkpoint_file,
    learner_state,
    loop,
)
from tests.helpers.tiny_networks import (
    batch_of,
    config_of,
    devices_of,
    each_class,
    small_net,
)

OPTIMIZERS = sorted(set(mx.optimizer.Optimizer.opt_registry) - build._NOT_FOR_TRAINING)
SOURCE = "--resume here"


def network(devices, seed=1):
    """A network with dropout and with batch norm, whose statistics each device has for itself."""
    mx.random.seed(seed)
    backbone = nn.HybridSequential()
    backbone.add(
        nn.Conv2D(4, 3, in_channels=3),
        nn.BatchNorm(in_channels=4),
        nn.Dropout(0.5),
        nn.GlobalAvgPool2D(),
    )
    net = MarginNet(backbone, 8, 2, sampling=None)
    net.initialize(mx.init.Xavier(magnitude=2), ctx=devices)
    net.embed(nd.zeros((1, 3, 8, 8), devices[0]))
    return net


def new_learner(*flags, count=1, seed=1):
    config = config_of(
        f"--cpu-contexts={count}", "--total-batch-size=16", "--batch-k=2", "--lr=0.01", *flags
    )
    devices = devices_of(config)
    return build.build(config, each_class(5), network(devices, seed), devices)


def train(learning, first, last):
    """Steps from `first` to before `last`, as the loop takes them."""
    for number in range(first, last):
        loop.seed_step(1, number)
        learning.step(batch_of(16, seed=number))


def begun(*flags, count=1):
    """A run saves its state first."""
    learning = new_learner(*flags, count=count)
    learner_state.gather(learning)
    return learning


def through_a_file(state, tmp_path):
    arrays, saved = state
    checkpoint_file.write(
        tmp_path / "c", arrays, {"format": checkpoint_file.FORMAT, "learner": saved}
    )
    back = checkpoint_file.read(tmp_path / "c")
    return back.arrays, back.state["learner"]


def values_of(learning):
    """Parameters and statistics on each device."""
    values = {
        f"{name} on {device}": data.asnumpy()
        for name, parameter in learning.net._collect_params_with_prefix().items()
        for device, data in enumerate(parameter.list_data())
    }
    return {**values, "beta": np.asarray(learning.beta_values())}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].tobytes() == expected[name].tobytes(), name


def assert_goes_on_the_same(tmp_path, *flags, count=1):
    """Two steps, a file, and two steps of a learner made from it: as four steps."""
    whole = begun(*flags, count=count)
    train(whole, 0, 2)
    halfway = through_a_file(learner_state.gather(whole), tmp_path)
    at_halfway = values_of(whole)
    train(whole, 2, 4)

    other = new_learner(*flags, count=count, seed=2)
    learner_state.restore(other, *halfway, SOURCE)
    assert_same(values_of(other), at_halfway)
    again = learner_state.gather(other)
    assert_same(again[0], halfway[0])
    assert again[1] == halfway[1]
    train(other, 2, 4)
    assert_same(values_of(other), values_of(whole))
    arrays, saved = learner_state.gather(whole)
    assert_same(learner_state.gather(other)[0], arrays)
    assert learner_state.gather(other)[1] == saved
    return whole, at_halfway


def test_all_optimizers_of_mxnet_are_looked_at():
    assert {"adam", "sgd", "nag", "sgld", "nadam", "lars", "lbsgd", "dcasgd"} < set(OPTIMIZERS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "optimizer, count",
    [
        *((name, 1) for name in OPTIMIZERS),
        # With two, the optimizer is the store's. These have numbers of their own, or draw some.
        *((name, 2) for name in ("adam", "lars", "lbsgd", "nadam", "sgld")),
    ],
)
def test_every_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path, optimizer, count):
    whole, at_halfway = assert_goes_on_the_same(tmp_path, f"--optimizer={optimizer}", count=count)
    moved = {name for name, value in values_of(whole).items() if (value != at_halfway[name]).any()}
    assert {"dense.weight on 0", "base_net.1.running_mean on 0", "beta"} <= moved


@pytest.mark.slow
@pytest.mark.parametrize(
    "count, flags",
    [
        (1, "--lr-beta=0"),
        (1, "--optimizer=sgd --momentum=0 --lr-beta=0"),
        (1, "--loss=proxy-nca"),
        (1, "--memory=20"),
        (2, "--lr-beta=0"),
        (2, "--kvstore=local"),
        (2, "--optimizer=sgd --momentum=0 --lr-beta=0"),
        (2, "--optimizer=sgd --momentum=0 --kvstore=local"),
        (2, "--loss=proxy-nca"),
        (2, "--loss=proxy-anchor --optimizer=sgd"),
        (2, "--loss=multi-similarity"),
        (2, "--memory=20"),
        (4, "--on-nonfinite=skip"),
    ],
)
def test_whatever_the_flags_it_goes_on_as_if_it_had_never_stopped(tmp_path, flags, count):
    assert_goes_on_the_same(tmp_path, *flags.split(), count=count)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["--memory=20"], ["--loss=proxy-nca"], ["--beta-optimizer=adam"]], ids=" ".join
)
def test_a_loss_of_the_whole_batch_goes_on_as_if_it_had_never_stopped(tmp_path, flags):
    assert_goes_on_the_same(tmp_path, "--negatives=batch", *flags, count=2)


def test_optimizers_of_each_device_go_on_as_if_they_had_never_stopped(tmp_path, monkeypatch):
    """By default MXNet has one optimizer for all of them."""
    monkeypatch.setenv("MXNET_UPDATE_ON_KVSTORE", "0")
    whole, _ = assert_goes_on_the_same(tmp_path, count=2)
    assert {len(updater.states) for updater in whole.trainers[0]._updaters} == {6}


@pytest.mark.slow
@pytest.mark.parametrize(
    "count, flags", [(1, []), (4, []), (1, ["--lr-beta=0"]), (2, ["--lr-beta=0"])], ids=str
)
def test_a_learner_that_has_not_begun_is_restored(tmp_path, count, flags):
    """Its optimizers hold nothing yet."""
    whole = begun(*flags, count=count)
    start = through_a_file(learner_state.gather(whole), tmp_path)
    other = new_learner(*flags, count=count, seed=2)
    learner_state.restore(other, *start, SOURCE)
    for learning in (whole, other):
        train(learning, 0, 2)
    assert_same(values_of(other), values_of(whole))


def test_without_batch_norm_the_number_of_devices_is_saved_too(tmp_path):
    """No array shows it before the first step."""
    config = config_of("--cpu-contexts=4", "--batch-size=4", "--batch-k=2", "--lr-beta=0")
    devices = devices_of(config)
    learning = build.build(config, each_class(5), small_net(devices), devices)
    state = through_a_file(learner_state.gather(learning), tmp_path)
    assert state[1]["devices"] == 4
    learner_state.restore(learning, *state, SOURCE)


@pytest.mark.parametrize("count", [1, 2])
def test_gathering_changes_nothing(count):
    once, often = begun(count=count), begun(count=count)
    train(once, 0, 4)
    for number in range(4):
        train(often, number, number + 1)
        learner_state.gather(often)
    assert_same(values_of(often), values_of(once))


def test_nothing_is_read_while_mxnet_computes(monkeypatch):
    """In evaluation it reorders weights in place; that damaged about six of 500 checkpoints."""
    learning = begun()
    events = []
    read, wait = nd.NDArray.asnumpy, nd.waitall
    monkeypatch.setattr(nd, "waitall", lambda: events.append("wait") or wait())
    monkeypatch.setattr(nd.NDArray, "asnumpy", lambda x: events.append("read") or read(x))
    learner_state.gather(learning)
    assert events[:2] == ["wait", "read"]


def test_each_device_keeps_statistics_of_its_own():
    """They are saved separately because they differ."""
    learning = begun(count=2)
    train(learning, 0, 2)
    arrays, _ = learner_state.gather(learning)
    means = [arrays[f"statistics/{device}/base_net.1.running_mean"] for device in (0, 1)]
    assert (means[0] != means[1]).any()
    for device in (0, 1):
        values = learning.net.base_net[1].running_mean.list_data()[device].asnumpy()
        assert values.tobytes() == means[device].tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after, kvstore",
    [(1, 2, "device"), (2, 1, "device"), (2, 4, "local"), (4, 2, "device")],
)
def test_on_another_number_of_devices_it_has_the_same_state_with_averaged_statistics(
    before, after, kvstore
):
    flags = f"--kvstore={kvstore}", "--optimizer=nadam"
    former = begun(*flags, count=before)
    train(former, 0, 3)
    arrays, saved = learner_state.gather(former)
    other = new_learner(*flags, count=after, seed=2)
    learner_state.restore(other, arrays, saved, SOURCE)
    found, saved_again = learner_state.gather(other)
    assert saved_again == {**saved, "devices": after}
    same = {name: array for name, array in arrays.items() if "running" not in name}
    assert_same({name: found[name] for name in same}, same)
    for name in ("base_net.1.running_mean", "base_net.1.running_var"):
        average = np.mean([arrays[f"statistics/{n}/{name}"] for n in range(before)], axis=0)
        for device in range(after):
            value = found[f"statistics/{device}/{name}"]
            np.testing.assert_allclose(value, average, rtol=1e-6)
        np.testing.assert_allclose(found[f"network/{name}"], average, rtol=1e-6)

    train(other, 3, 5)
    _, learned = learner_state.gather(other)
    assert {*learned["optimizers"][0]["counts"].values()} == {5}
    for name, parameter in other.net._collect_params_with_prefix().items():
        values = {data.asnumpy().tobytes() for data in parameter.list_data()}
        assert len(values) == 1 or "running" in name


def test_arrays_are_gathered_by_name():
    arrays, saved = learner_state.gather(begun(count=2))
    parameters = "base_net.0.weight base_net.0.bias base_net.1.gamma base_net.1.beta dense.weight"
    learned = {*parameters.split(), "dense.bias"}
    counted = {"base_net.1.running_mean", "base_net.1.running_var"}
    assert arrays.keys() == {
        "beta",
        *(f"network/{name}" for name in learned | counted),
        *(f"statistics/{device}/{name}" for name in counted for device in (0, 1)),
    }
    json.dumps(saved)
    assert saved["devices"] == 2
    stepped = begun()
    train(stepped, 0, 2)
    arrays, saved = learner_state.gather(stepped)
    assert sum(name.startswith("optimizer/0/") for name in arrays) == 2 * len(learned)
    assert [name for name in arrays if name.startswith("optimizer/1/")] == ["optimizer/1/0/0"]
    assert {*saved["optimizers"][0]["counts"].values()} == {2}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_not_gathered(value):
    """An update by a finite gradient can do this; no run could resume from it."""
    for place in ("dense.weight", "base_net.1.running_var"):
        learning = begun()
        learning.net._collect_params_with_prefix()[place].data()[0] = value
        with pytest.raises(TrainingError, match=rf"network/{place} is not finite .*--lr"):
            learner_state.gather(learning)
    learning = begun()
    train(learning, 0, 1)
    learning.trainers[0]._updaters[0].states[0][1][:] = value
    with pytest.raises(TrainingError, match=r"optimizer/0/0/0\.1 is not finite"):
        learner_state.gather(learning)


# What does not fit


@pytest.fixture(scope="module")
def state():
    """The state of a run of two devices."""
    learning = begun(count=2)
    train(learning, 0, 2)
    return learner_state.gather(learning)


@pytest.fixture(scope="module")
def refuse():
    """A function that tries to restore what must be refused, and gives the line."""
    learning = new_learner(count=2)

    def refuse(arrays, saved):
        with pytest.raises(UsageError) as error:
            learner_state.restore(learning, arrays, saved, SOURCE)
        line = str(error.value)
        assert line.isprintable()
        assert line.startswith(f"{SOURCE}: ")
        assert len(line) < 300
        return line

    return refuse


@pytest.mark.slow
def test_an_array_that_is_missing_surplus_or_unfit_is_refused(state, refuse):
    arrays, saved = state
    float32 = np.float32
    for name, array in arrays.items():
        others = {key: value for key, value in arrays.items() if key != name}
        refuse(others, saved)
        nan, infinite = array.copy(), array.copy()
        nan.flat[0], infinite.flat[-1] = np.nan, -np.inf
        for unfit in (
            *(array[:0], nan, infinite, array.astype(np.float64), array.astype(np.float16)),
            *(array > 0, array.astype(np.uint16), array.astype(np.int64)),
            *(array.astype(np.complex64), np.zeros((0, 2**40), float32)),
        ):
            refuse({**arrays, name: unfit}, saved)
    for name in (
        *("network/base_net.0.weight", "network/base_net.1.running_mean", "beta"),
        *("statistics/0/base_net.1.running_var", "statistics/1/base_net.1.running_mean"),
        *("optimizer/0/0/0.0", "optimizer/0/5/0.1", "optimizer/1/0/0"),
    ):
        array = arrays[name]
        others = {key: value for key, value in arrays.items() if key != name}
        refuse({**others, f"{name}x": array}, saved)
        refuse({**arrays, f"{name}/0": array}, saved)
        for unfit in (
            *(array[None], array.ravel()[0], np.append(array, float32(1))),
            np.zeros((1,) * 32, float32),
        ):
            refuse({**arrays, name: unfit}, saved)
    for name in ("", "/", "network/", "network/x", "statistics/2/x", "optimizer/2/0/0", "beta/0"):
        own_name = name.rpartition("network/")[2]
        assert f" {own_name}, which" in refuse({**arrays, name: np.ones(1, float32)}, saved)
    refuse({}, saved)


def test_statistics_of_another_device_are_refused(state, refuse):
    arrays, saved = state
    name = "base_net.1.running_mean"
    more = {**arrays, f"statistics/2/{name}": arrays[f"network/{name}"]}
    assert "which does not belong to this run" in refuse(more, saved)
    assert "does not hold a fitting base_net.1.running_var" in refuse(more, {**saved, "devices": 3})


def test_misshapen_statistics_of_several_devices_are_refused(state):
    """Such statistics cannot be averaged."""
    arrays, saved = state
    name = "statistics/1/base_net.1.running_mean"
    for shape in ((5,), (4, 1), (2, 4), (1,)):
        with pytest.raises(UsageError, match=r"not hold a fitting base_net\.1\.running_mean"):
            odd = {**arrays, name: np.ones(shape, np.float32)}
            learner_state.restore(new_learner(count=1), odd, saved, SOURCE)


@pytest.mark.parametrize("devices", [0, -1, 1, 3, 1025, 10**9, 10**30, 2.0, "2", None, [2], {}])
def test_an_absurd_number_of_devices_is_refused(state, refuse, devices):
    arrays, saved = state
    refuse(arrays, {**saved, "devices": devices})


def with_optimizer(saved, **changes):
    first, *others = saved["optimizers"]
    return {**saved, "optimizers": [{**first, **changes}, *others]}


COUNTS = [-1, 2**30, 10**30, 2.0, "2", None, [2], {}, float("nan")]
INDICES = ["-1", "99", "x", "", "1.0", "1" * 30, "2147483648", "0x1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        *({"counts": {"0": count}} for count in COUNTS),
        *({"counts": {index: 1}} for index in INDICES),
        *({"counts": counts} for counts in ({}, [], None, 3, "01", [["0", 1]])),
        *({"numbers": {"num_update": count}} for count in COUNTS),
        *({"numbers": numbers} for numbers in ({}, [], None, "num_update", 3)),
        {"numbers": {"num_update": 2, "lr": 1.0}},
        {"numbers": {"num_update": 2, "m_schedule": 1.0}},
        {"numbers": {"num_update": 2, "__class__": 1}},
    ],
    ids=str,
)
def test_an_optimizer_with_absurd_counts_is_refused(state, refuse, changes):
    arrays, saved = state
    if "counts" in changes and isinstance(changes["counts"], dict) and changes["counts"]:
        changes = {"counts": {**saved["optimizers"][0]["counts"], **changes["counts"]}}
    assert "the optimizer's state does not fit" in refuse(arrays, with_optimizer(saved, **changes))


def test_counts_of_an_optimizer_without_arrays_are_checked_too():
    flags = "--optimizer=sgd", "--momentum=0"
    learning = begun(*flags)
    train(learning, 0, 1)
    arrays, saved = learner_state.gather(learning)
    counts = saved["optimizers"][0]["counts"]
    for index in ("-1", "-8", "8", "99"):
        with pytest.raises(UsageError, match="does not fit the run"):
            wrong = with_optimizer(saved, counts={**counts, index: 1})
            learner_state.restore(new_learner(*flags), arrays, wrong, SOURCE)


@pytest.mark.parametrize("optimizer", ["lamb", "ftml"])
def test_the_largest_count_is_one_that_mxnet_can_count_on_from(optimizer):
    """These hand it to MXNet as 32 bits."""
    learning = begun(f"--optimizer={optimizer}")
    train(learning, 0, 1)
    arrays, saved = learner_state.gather(learning)
    counts = dict.fromkeys(saved["optimizers"][0]["counts"], 2**30 - 1)
    changes = {"counts": counts, "numbers": {"num_update": 2**30 - 1}}
    learner_state.restore(learning, arrays, with_optimizer(saved, **changes), SOURCE)
    train(learning, 1, 3)
    _, saved = learner_state.gather(learning)
    assert {*saved["optimizers"][0]["counts"].values()} == {2**30 + 1}


@pytest.mark.parametrize("optimizers", [[], {}, None, 3, "ab", [None, None], [{}, {}], [[], []]])
def test_optimizers_that_are_none_are_refused(state, refuse, optimizers):
    arrays, saved = state
    refuse(arrays, {**saved, "optimizers": optimizers})
    refuse(arrays, {"devices": 2})


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer, name, values",
    [
        ("nadam", "m_schedule", [None, "1", [1.0], {}, float("nan"), float("inf"), 10**400]),
        ("lars", "last_lr", ["1", [None], {}, float("-inf"), 10**400]),
        ("lbsgd", "lbmult", [None, "1", [1], float("nan")]),
    ],
)
def test_an_optimizers_own_numbers_are_checked(optimizer, name, values):
    flags = (f"--optimizer={optimizer}",)
    learning = begun(*flags)
    train(learning, 0, 1)
    arrays, saved = learner_state.gather(learning)
    numbers = saved["optimizers"][0]["numbers"]
    assert name in numbers
    other = new_learner(*flags)
    for value in values:
        wrong = with_optimizer(saved, numbers={**numbers, name: value})
        with pytest.raises(UsageError, match="does not fit the run"):
            learner_state.restore(other, arrays, wrong, SOURCE)
    learner_state.restore(other, arrays, saved, SOURCE)


def test_the_state_of_other_flags_is_refused(state):
    arrays, saved = state
    for flags in (["--lr-beta=0"], ["--optimizer=sgd"], ["--optimizer=lars"]):
        with pytest.raises(UsageError, match=f"^{re.escape(SOURCE)}: "):
            learner_state.restore(new_learner(*flags, count=2), arrays, saved, SOURCE)
    constant = begun("--lr-beta=0")
    train(constant, 0, 1)
    with pytest.raises(UsageError, match=f"^{SOURCE}: has no beta"):
        learner_state.restore(new_learner(), *learner_state.gather(constant), SOURCE)
