"""Files of parameters: written atomically, and interchangeable with the original's."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import Block, nn

from embedding_learning.errors import UsageError
from embedding_learning.model.net import MarginNet
from embedding_learning.model.weights import params_file
from embedding_learning.model.weights.params_file import (
    read_description,
    read_parameters,
    save_parameters,
    set_parameters,
)
from tests.helpers.paths import ROOT

DIMENSIONS = 5
DTYPES = ["float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool"]
MARKER = b"\nembedding_learning description of the network\n"
DESCRIPTION = {"model": "resnet18_v1", "embed_dim": 5, "mean": [0.485, 0.1, 1e-7], "box": None}
HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


class OriginalNet(Block):
    """The original example's network, as far as its parameters go."""

    def __init__(self) -> None:
        super().__init__()
        with self.name_scope():
            self.base_net = small_backbone()
            self.dense = nn.Dense(DIMENSIONS)

    def forward(self, x: mx.nd.NDArray) -> mx.nd.NDArray:
        return mx.nd.L2Normalization(self.dense(self.base_net(x)))


def small_backbone() -> nn.HybridSequential:
    backbone = nn.HybridSequential()
    backbone.add(nn.Conv2D(4, 3), nn.BatchNorm(), nn.GlobalAvgPool2D())
    return backbone


def images() -> mx.nd.NDArray:
    pixels = np.random.default_rng(0).normal(size=(4, 3, 8, 8))
    return mx.nd.array(pixels, dtype=np.float32)


def margin_net(seed: int = 0) -> MarginNet:
    """A small network with weights sampled with the seed."""
    mx.random.seed(seed)
    net = MarginNet(small_backbone(), DIMENSIONS, batch_k=2)
    net.initialize(mx.init.Xavier())
    net.embed(images())
    return net


def packed(arrays: Iterable[bytes], names: Iterable[bytes]) -> bytes:
    """A parameter file of arrays and names."""
    arrays, names = list(arrays), list(names)
    content = struct.pack("<QQQ", 0x112, 0, len(arrays)) + b"".join(arrays)
    content += struct.pack("<Q", len(names))
    return content + b"".join(struct.pack("<Q", len(name)) + name for name in names)


def packed_array(
    shape: tuple[int, ...] = (2,),
    values: bytes | None = None,
    version: int = 0xF993FAC9,
    storage: int = 0,
    dtype: int = 0,
    device: tuple[int, int] = (1, 0),
) -> bytes:
    """An array as version 2 or 3 writes it; of float32 ones if nothing else is said."""
    if values is None:
        values = np.ones(shape, np.float32).tobytes()
    header = struct.pack(f"<Iii{len(shape)}q", version, storage, len(shape), *shape)
    return header + struct.pack("<iii", *device, dtype) + values


def small_file() -> bytes:
    """Three arrays of different kinds, 250 bytes in all."""
    arrays = [
        packed_array((2, 3)),
        packed_array((1,), b"\7", dtype=3),
        packed_array((), bytes(8), version=0xF993FACA, dtype=1),
    ]
    return packed(arrays, [b"conv.weight", b"arg:conv.bias", b"scale"])


def described(content: bytes, text: bytes, marker: bytes = MARKER) -> bytes:
    """The file with a description and its right checksum after it."""
    content += marker + b'{"description": ' + text + b', "sha256": "'
    return content + hashlib.sha256(content).hexdigest().encode() + b'"}\n'


def refused(file: Path, content: bytes) -> bool:
    """Returns whether both readers refuse the file as damaged in one line; both agree."""
    file.unlink(missing_ok=True)  # overwriting waits for the disk on some file systems
    file.write_bytes(content)
    messages = []
    for read in (read_parameters, read_description):
        try:
            read(str(file), "--resume")
        except UsageError as error:
            messages.append(str(error))
    if messages:
        assert messages == [f"--resume {file}: is damaged or not a Gluon parameter file"] * 2
    return bool(messages)


# Saving


def test_a_saved_network_embeds_as_before(tmp_path: Path) -> None:
    net, other = margin_net(1), margin_net(2)
    save_parameters(net, str(tmp_path / "net.params"))
    other.load_parameters(str(tmp_path / "net.params"))
    np.testing.assert_array_equal(other.embed(images()).asnumpy(), net.embed(images()).asnumpy())


def test_the_network_of_the_original_loads_the_file(tmp_path: Path) -> None:
    net, original = margin_net(), OriginalNet()
    save_parameters(net, str(tmp_path / "net.params"))
    original.load_parameters(str(tmp_path / "net.params"))
    expected = net.embed(images()).asnumpy()
    np.testing.assert_array_equal(original(images()).asnumpy(), expected)


def test_a_file_of_the_original_is_loaded(tmp_path: Path) -> None:
    original = OriginalNet()
    original.initialize(mx.init.Xavier())
    expected = original(images()).asnumpy()
    original.save_parameters(str(tmp_path / "original.params"))

    net = margin_net(7)
    arrays = read_parameters(str(tmp_path / "original.params"), "--resume")
    set_parameters(net._collect_params_with_prefix(), arrays, "--resume", [mx.cpu()])
    np.testing.assert_array_equal(net.embed(images()).asnumpy(), expected)


def test_the_file_is_what_gluon_writes(tmp_path: Path) -> None:
    net = margin_net()
    save_parameters(net, str(tmp_path / "ours"))
    net.save_parameters(str(tmp_path / "gluons"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "gluons").read_bytes()


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES[:-1] if dtype != "float16"])
def test_every_type_is_what_gluon_writes(tmp_path: Path, dtype: str) -> None:
    net = nn.Dense(3, in_units=2, dtype=dtype)
    net.initialize(mx.init.One())
    save_parameters(net, str(tmp_path / "ours"))
    net.save_parameters(str(tmp_path / "gluons"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "gluons").read_bytes()


def test_what_is_learned_is_saved_from_the_first_device_and_statistics_as_their_mean(
    tmp_path: Path,
) -> None:
    net, devices = nn.BatchNorm(in_channels=1), [mx.cpu(2), mx.cpu(0), mx.cpu(1)]
    net.initialize(ctx=devices)
    for parameter in (net.gamma, net.running_mean):
        for device, value in zip(devices, (1.0, 2.0, 6.0)):
            parameter.data(device)[:] = value
    save_parameters(net, str(tmp_path / "net.params"))
    arrays = mx.nd.load(str(tmp_path / "net.params"))
    assert arrays["gamma"].asscalar() == 1
    assert arrays["running_mean"].asscalar() == 3
    assert arrays["gamma"].context == mx.cpu(0)


class Interrupted(BaseException):
    """Stands for any end of a program, such as a full disk or Ctrl-C."""


@pytest.mark.parametrize("error", [OSError, Interrupted, mx.base.MXNetError])
@pytest.mark.parametrize("former", [b"the best model so far", None])
def test_a_save_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], former: Any
) -> None:
    path = tmp_path / "net.params"
    if former is not None:
        path.write_bytes(former)
    net = margin_net()

    def fail() -> None:
        assert len(list(tmp_path.iterdir())) == (2 if former else 1)  # it is half written
        raise error

    monkeypatch.setattr(net.dense.bias, "list_data", fail)
    with pytest.raises(error):
        save_parameters(net, str(path), DESCRIPTION)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([former] if former else [])


_SAVE_ON_A_FULL_DISK = """
import os, resource, sys
from embedding_learning.model.weights.params_file import save_parameters
from mxnet.gluon import nn

net = nn.Dense(100, in_units=100)
net.initialize()
path, whole = sys.argv[1:]
save_parameters(net, whole, {"model": "dense"})
size = os.path.getsize(whole)
for limit in (100, size // 2, size - 200, size - 1, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save_parameters(net, path, {"model": "dense"})
    except OSError as error:
        print(error.errno, open(path).read())
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_former_file(tmp_path: Path) -> None:
    """The disk is full within the arrays, the names or the description; at last the file fits."""
    path, whole = tmp_path / "net.params", tmp_path / "whole"
    path.write_bytes(b"former")
    command = [sys.executable, "-c", _SAVE_ON_A_FULL_DISK, str(path), str(whole)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{errno.EFBIG} former\n" * 4
    assert path.read_bytes() == whole.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_the_new_file_takes_the_place_of_the_former_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.params"
    path.write_bytes(b"former")
    replace, seen = os.replace, []

    def watch(source: str, target: str) -> None:
        seen.append((path.read_bytes(), len(mx.nd.load(source))))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    net = margin_net()
    save_parameters(net, str(path), DESCRIPTION)
    assert seen == [(b"former", len(net.collect_params().keys()))]
    assert list(tmp_path.iterdir()) == [path]
    assert len(mx.nd.load(str(path))) == len(net.collect_params().keys())


@pytest.mark.parametrize("description", [None, DESCRIPTION])
def test_the_same_network_is_the_same_bytes(tmp_path: Path, description: Any) -> None:
    for name in ("one", "other"):
        save_parameters(margin_net(3), str(tmp_path / name), description)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


# Descriptions


def test_the_description_comes_back(tmp_path: Path) -> None:
    file, net = str(tmp_path / "net.params"), margin_net()
    save_parameters(net, file, DESCRIPTION)
    assert read_description(file, "--resume") == DESCRIPTION
    values = {name: array.asnumpy() for name, array in read_parameters(file, "--resume").items()}
    for name, parameter in net._collect_params_with_prefix().items():
        np.testing.assert_array_equal(values.pop(name), parameter.data().asnumpy())
    assert not values


@pytest.mark.parametrize("description", [{}, {"name": 'Grünspecht \U0001f426 \udcff [\n"]'}])
def test_unusual_descriptions_come_back(tmp_path: Path, description: dict[str, Any]) -> None:
    file = str(tmp_path / "net.params")
    save_parameters(margin_net(), file, description)
    assert read_description(file, "--resume") == description


def test_a_file_of_the_original_has_no_description(tmp_path: Path) -> None:
    margin_net().save_parameters(str(tmp_path / "net.params"))
    assert read_description(str(tmp_path / "net.params"), "--resume") is None


def test_mxnet_and_the_original_pass_over_the_description(tmp_path: Path) -> None:
    net, original, file = margin_net(), OriginalNet(), str(tmp_path / "net.params")
    save_parameters(net, file, DESCRIPTION)
    original.load_parameters(file)
    expected = net.embed(images()).asnumpy()
    np.testing.assert_array_equal(original(images()).asnumpy(), expected)
    assert mx.nd.load(file).keys() == read_parameters(file, "--resume").keys()


def test_the_description_is_two_lines_at_the_end_that_a_person_can_read(tmp_path: Path) -> None:
    file = tmp_path / "net.params"
    save_parameters(margin_net(), str(file))
    arrays = file.read_bytes()
    save_parameters(margin_net(), str(file), DESCRIPTION)
    content = file.read_bytes()
    assert content.startswith(arrays + MARKER)
    last = json.loads(content[len(arrays + MARKER) :])
    assert last["description"] == DESCRIPTION
    before = content[: content.index(last["sha256"].encode())]
    assert last["sha256"] == hashlib.sha256(before).hexdigest()


@pytest.mark.parametrize(
    "description",
    [
        {"lr": float("nan")},
        {"lr": [float("-inf")]},
        {"name": "a" * 2**20},
        {"parts": [[]] * 600},
        {1: "one", "1": "one again"},
        {"seen": {1, 2}},
        ["a list"],
    ],
)
def test_a_description_that_could_not_be_read_back_changes_nothing(
    tmp_path: Path, description: Any
) -> None:
    file = tmp_path / "net.params"
    file.write_bytes(b"former")
    with pytest.raises((ValueError, TypeError)):
        save_parameters(margin_net(), str(file), description)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"former"]


def test_the_longest_description_comes_back(tmp_path: Path) -> None:
    net, file = nn.Dense(1, in_units=1), str(tmp_path / "net.params")
    net.initialize()
    low, high = 2**19, 2**20
    while high - low > 1:
        length = (low + high) // 2
        try:
            save_parameters(net, file, {"name": "a" * length})
        except ValueError:
            high = length
        else:
            low = length
            assert read_description(file, "--resume") == {"name": "a" * length}
    assert low > 2**20 - 300


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"a": 1, "a": 2}',
        b'{"a":1}',
        b'{"a": 1} ',
        b'{"a": "\xff"}',
        b'{"a": "\xc3\xa4"}',
        b'{"a": 1',
        b"",
        b"[]",
        b"null",
        b'"text"',
        b'{}, "sha256": "", "more": {}',
        b'{}, "description": {}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"0" + b"}" * 100_000,
        b'{"a": ' + b"[" * 600 + b"]" * 600 + b"}",
        b'{"a": "' + b"a" * 2**20 + b'"}',
    ],
    ids=lambda text: text[:20].decode("latin-1"),
)
def test_a_description_of_an_untrusted_source_is_refused_though_its_sum_is_right(
    tmp_path: Path, text: bytes
) -> None:
    assert not refused(tmp_path / "net.params", described(small_file(), b'{"a": 1}'))
    assert refused(tmp_path / "net.params", described(small_file(), text))


def test_a_description_after_another_line_is_refused_though_its_sum_is_right(
    tmp_path: Path,
) -> None:
    for marker in (MARKER, MARKER.replace(b"network", b"networks")):
        content = described(small_file(), b'{"a": 1}', marker)
        assert refused(tmp_path / "net.params", content) == (marker != MARKER)


@pytest.mark.parametrize("line", [b"[1]", b"1", b"", b"{}", b'{"description": {}}', b"[" * 10**6])
def test_a_line_that_describes_nothing_is_refused(tmp_path: Path, line: bytes) -> None:
    assert refused(tmp_path / "net.params", small_file() + MARKER + line + b"\n")


@pytest.mark.parametrize("surplus", [b"\0", b"\n", bytes(2**20), MARKER[:-1], MARKER, b"PK"])
def test_what_follows_the_names_is_a_description_or_damage(tmp_path: Path, surplus: bytes) -> None:
    assert refused(tmp_path / "net.params", small_file() + surplus)
    whole = described(small_file(), b'{"a": 1}')
    assert refused(tmp_path / "net.params", whole + surplus)


def test_any_flipped_bit_shows_in_a_file_with_a_description(tmp_path: Path) -> None:
    content = described(small_file(), b'{"a": 1}')
    assert not refused(tmp_path / "net.params", content)
    for index, byte in enumerate(content):
        changed = bytes([byte ^ 1 << index % 8])
        content_changed = content[:index] + changed + content[index + 1 :]
        assert refused(tmp_path / "net.params", content_changed), index


# Reading


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_is_read_as_mxnet_reads_it(tmp_path: Path, dtype: str) -> None:
    rng, file = np.random.default_rng(0), str(tmp_path / "net.params")
    shapes = [(1,), (7,), (3, 4), (2, 1, 3), (5, 4, 3, 2), (1, 2, 1, 2, 1, 2)]
    arrays = {}
    for shape in shapes:
        values = rng.normal(scale=50, size=shape).clip(-100, 100)
        arrays[f"layer.{len(arrays)}"] = mx.nd.array(np.abs(values), dtype=dtype)
    if "float" in dtype:
        special = np.array([np.nan, np.inf, -np.inf, -0.0, np.finfo(dtype).tiny / 4])
        arrays["special"] = mx.nd.array(special, dtype=dtype)
    mx.nd.save(file, arrays)
    expected, found = mx.nd.load(file), read_parameters(file, "--resume")
    assert list(found) == list(arrays)
    for name, array in found.items():
        assert array.dtype == expected[name].dtype == np.dtype(dtype)
        assert array.shape == arrays[name].shape
        assert array.context == mx.cpu(0)
        assert array.asnumpy().tobytes() == expected[name].asnumpy().tobytes()


@pytest.mark.parametrize("device", [mx.cpu(1), mx.cpu(7), mx.Context("cpu_pinned", 0)])
def test_arrays_of_any_device_are_read_to_the_cpu(tmp_path: Path, device: mx.Context) -> None:
    file = str(tmp_path / "net.params")
    mx.nd.save(file, {"a": mx.nd.arange(3, ctx=device)})
    array = read_parameters(file, "--resume")["a"]
    assert array.context == mx.cpu(0)
    np.testing.assert_array_equal(array.asnumpy(), [0, 1, 2])


def test_an_array_of_a_graphics_card_is_read_to_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "net.params"
    file.write_bytes(packed([packed_array(device=(2, 3))], [b"a"]))
    assert read_parameters(str(file), "--resume")["a"].context == mx.cpu(0)


def test_arrays_with_numpys_shapes_are_read(tmp_path: Path) -> None:
    """Here an array may have no dimension: a single number."""
    file = str(tmp_path / "net.params")
    with mx.util.np_shape(True):
        arrays = {"a": mx.nd.array(np.array(3.5)), "b": mx.nd.ones((2, 3)), "c": mx.nd.ones(1)}
        mx.nd.save(file, arrays)
    found = read_parameters(file, "--resume")
    assert [array.shape for array in found.values()] == [(), (2, 3), (1,)]
    assert found["a"].asnumpy() == 3.5


@pytest.mark.parametrize(
    "header", [struct.pack("<Ii2q", 0xF993FAC8, 2, 2, 3), struct.pack("<3I", 2, 2, 3)]
)
def test_the_two_older_layouts_are_read_as_mxnet_reads_them(tmp_path: Path, header: bytes) -> None:
    file, values = tmp_path / "net.params", np.arange(6, dtype=np.float64).reshape(2, 3)
    array = header + struct.pack("<iii", 1, 0, 1) + values.tobytes()
    file.write_bytes(packed([array, packed_array()], [b"old", b"new"]))
    for arrays in (mx.nd.load(str(file)), read_parameters(str(file), "--resume")):
        np.testing.assert_array_equal(arrays["old"].asnumpy(), values)
        np.testing.assert_array_equal(arrays["new"].asnumpy(), [1, 1])


def test_the_prefixes_of_an_exported_file_are_left_out(tmp_path: Path) -> None:
    net = small_backbone()
    net.initialize()
    net.hybridize()
    net(images())
    net.export(str(tmp_path / "net"))
    arrays = read_parameters(str(tmp_path / "net-0000.params"), "--resume")
    expected = net.collect_params()
    assert sorted(arrays) == sorted(expected.keys())
    for name, array in arrays.items():
        np.testing.assert_array_equal(array.asnumpy(), expected[name].data().asnumpy())


@pytest.mark.shared
def test_a_file_of_the_model_zoo_is_read_as_mxnet_reads_it(shared: Path) -> None:
    file = str(shared / "weights" / "squeezenet1.1.params")
    expected, found = mx.nd.load(file), read_parameters(file, "--pretrained-params")
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array.asnumpy(), expected[name].asnumpy())
    assert read_description(file, "--pretrained-params") is None


@pytest.mark.parametrize("shape", [(1,) * 32, (1,) * 31 + (2,)])
def test_thirty_two_dimensions_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    file = tmp_path / "net.params"
    file.write_bytes(packed([packed_array(shape)], [b"a"]))
    assert read_parameters(str(file), "--resume")["a"].shape == shape


@pytest.mark.parametrize("content", [b"", b"\0", b"not a parameter file at all", b"\x12\x01" * 99])
def test_a_file_that_holds_no_parameters_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "net.params"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_parameters(str(file), "--resume")
    assert str(caught.value) == f"--resume {file}: is damaged or not a Gluon parameter file"


@pytest.mark.parametrize("place", range(16))
def test_a_file_that_begins_otherwise_is_refused(tmp_path: Path, place: int) -> None:
    content = small_file()
    changed = bytes([content[place] ^ 1])
    assert refused(tmp_path / "net.params", content[:place] + changed + content[place + 1 :])


@pytest.mark.parametrize("arrays", [[mx.nd.ones(2)], [], {}])
def test_arrays_without_names_are_refused(tmp_path: Path, arrays: Any) -> None:
    file = str(tmp_path / "net.params")
    mx.nd.save(file, arrays)
    with pytest.raises(UsageError, match="not a Gluon parameter file"):
        read_parameters(file, "--resume")


@pytest.mark.parametrize(
    "array",
    [
        packed_array(version=0xF993FAC7),
        packed_array(version=0xF993FACB),
        packed_array(version=1),
        packed_array(storage=1),
        packed_array(storage=-1),
        packed_array(dtype=-1),
        packed_array(dtype=8),
        packed_array(dtype=12, values=bytes(4)),
        packed_array(shape=()),
        packed_array(shape=(0,)),
        packed_array(shape=(3, 0), version=0xF993FACA),
        packed_array(shape=(2**62, 0), values=b""),
        packed_array(shape=(-1, -2), values=bytes(8)),
        packed_array(shape=(-1,), values=b""),
        packed_array(shape=(2**32, 2**32), values=b""),
        packed_array(shape=(2**63 - 1,) * 32, values=b""),
        packed_array(shape=(1,) * 33, values=bytes(4)),
        struct.pack("<Iiiiii", 0xF993FAC9, 0, -1, 1, 0, 0) + bytes(4),
        struct.pack("<Iiiiii", 0xF993FAC9, 0, 2**31 - 1, 1, 0, 0) + bytes(4),
        struct.pack("<IIiii", 1, 0, 1, 0, 0) + bytes(4),
        struct.pack("<Iiii", 0, 1, 0, 0) + bytes(4),
    ],
)
def test_an_array_that_no_network_has_is_refused(tmp_path: Path, array: bytes) -> None:
    assert refused(tmp_path / "net.params", packed([array], [b"a"]))
    assert refused(tmp_path / "net.params", packed([packed_array(), array], [b"a", b"b"]))


def test_sparse_arrays_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.params"
    mx.nd.save(str(file), {"a": mx.nd.ones((2, 2)).tostype("csr")})
    assert refused(file, file.read_bytes())


def test_an_array_larger_than_mxnet_can_hold_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.params"
    array = packed_array((2**31,), b"", dtype=3)
    file.write_bytes(packed([array], []))
    with open(file, "r+b") as open_file:  # the values are a hole and take no place
        open_file.seek(24 + len(array) + 2**31)
        open_file.write(struct.pack("<QQ", 1, 1) + b"a")
    with pytest.raises(UsageError, match="damaged"):
        read_description(str(file), "--resume")


@pytest.mark.parametrize(
    "names",
    [
        [b"a", b"a"],
        [b"arg:a", b"a"],
        [b"arg:a", b"aux:a"],
        [b"a", b""],
        [b"a", b"arg:"],
        [b"a", b"\xff"],
        [b"a", b"\xed\xa0\x80"],
        [b"a", b"two\nlines"],
        [b"a", b"\x1b[2J"],
        [b"a", "\u202e".encode()],
        [b"a", b"a" * 1001],
        [b"a"],
        [b"a", b"b", b"c"],
        [],
    ],
)
def test_names_that_no_network_has_are_refused(tmp_path: Path, names: list[bytes]) -> None:
    array = packed_array()
    assert refused(tmp_path / "net.params", packed([array, array], names))
    assert not refused(tmp_path / "net.params", packed([array, array], [b"a", b"b" * 1000]))


def test_more_arrays_than_any_network_has_are_refused(tmp_path: Path) -> None:
    names = [b"%d" % number for number in range(10_001)]
    arrays = [packed_array((1,), b"\0", dtype=3)] * 10_001
    assert refused(tmp_path / "net.params", packed(arrays, names))
    (tmp_path / "net.params").write_bytes(packed(arrays[1:], names[1:]))
    assert read_description(str(tmp_path / "net.params"), "--resume") is None


@pytest.mark.parametrize("text", [None, b'{"a": 1}'])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, text: bytes | None) -> None:
    whole = described(small_file(), text) if text else small_file()
    for length in range(len(whole)):
        # Without any of its description the file is one of the original.
        assert refused(tmp_path / "net.params", whole[:length]) == (length != len(small_file()))


def mutations(content: bytes) -> Iterable[bytes]:
    """The file with a bit flipped, with a number replaced, with a piece doubled or left out."""
    for index, byte in enumerate(content):
        for bit in range(8):
            yield content[:index] + bytes([byte ^ 1 << bit]) + content[index + 1 :]
    rng = np.random.default_rng(0)
    for _ in range(700):
        first, second, third = sorted(rng.integers(0, len(content) + 1, 3))
        number = int(rng.choice(np.array([*HUGE, 0, 1, 2], np.uint64)))
        size = int(rng.choice([4, 8]))
        changed = (number % 2 ** (8 * size)).to_bytes(size, "little")
        yield content[:first] + changed + content[first + size :]
        yield content[:second] + content[first:]
        yield content[:first] + content[second:]
        yield content[:first] + rng.bytes(second - first) + content[second:third]


@pytest.mark.slow
def test_whatever_is_damaged_gives_arrays_or_the_one_line(tmp_path: Path) -> None:
    results = [refused(tmp_path / "net.params", content) for content in mutations(small_file())]
    assert len(results) > 4000
    assert 0.5 < np.mean(results) < 1  # the values themselves may be anything


_READ_WITHOUT_MEMORY = """
import pathlib, resource, sys
from embedding_learning.cli.parser import UsageError
from embedding_learning.model.weights.params_file import read_parameters


def read(file, spare):
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))
    try:
        print(len(read_parameters(file, "--resume")))
    except UsageError:
        print("refused")


whole, large, *damaged = sorted(map(str, pathlib.Path(sys.argv[1]).iterdir()))
read_parameters(whole, "--resume")["large.a"].asnumpy()
for file in damaged:
    read(file, 2**22)
read(large, int(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory in use is unknown")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Memory grows little for files that claim to be large, by twice the size of large ones."""
    names, bytes_in_all = [b"large.a", b"large.b"], 2**26
    content = packed([packed_array()] * 2, names)
    (tmp_path / "0-whole").write_bytes(content)
    array = packed_array((bytes_in_all // 8,), bytes(bytes_in_all // 2))
    (tmp_path / "1-large").write_bytes(described(packed([array] * 2, names), b"{}"))
    # The number of arrays, of dimensions, a dimension, the number of names, a name's length.
    places = [16, 24 + 8, 24 + 12, content.index(b"large.a") - 16, content.index(b"large.a") - 8]
    for place in places:
        for size in HUGE:
            changed = content[:place] + struct.pack("<Q", size) + content[place + 8 :]
            (tmp_path / f"2-{place}-{size}").write_bytes(changed)
    with open(tmp_path / "2-tail", "wb") as file:
        file.write(content + MARKER)
        file.truncate(2**30)  # a hole that takes no place
    command = [sys.executable, "-c", _READ_WITHOUT_MEMORY, str(tmp_path), str(2 * bytes_in_all)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split() == ["refused"] * (len(places) * len(HUGE) + 1) + ["2"]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    (tmp_path / "link").symlink_to(tmp_path / "link")
    names = ("net.params", "pipe", "link", "no\0name", "a" * 300)
    for path in (str(tmp_path / name) for name in names):
        for read in (read_parameters, read_description):
            with pytest.raises(UsageError) as caught:
                read(path, "--resume")
            shown = path.replace("\0", r"\x00")
            assert str(caught.value) == f"--resume {shown}: no such file, or it cannot be read"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_parameters(str(tmp_path), "--resume")
    assert str(caught.value) == f"--resume {tmp_path}: is a folder; name a file in it"


def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.params"
    file.write_bytes(small_file())

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    # The superuser may read everything, so the answer of the system is replaced.
    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(UsageError) as caught:
        read_parameters(str(file), "--resume")
    assert str(caught.value) == f"--resume {file}: no such file, or it cannot be read"


def test_a_file_that_is_cut_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.params"
    file.write_bytes(packed([packed_array((30_000,))], [b"a"]))
    checked = params_file._read_description

    def cut(*arguments: Any) -> Any:
        os.truncate(file, 20_000)
        return checked(*arguments)

    monkeypatch.setattr(params_file, "_read_description", cut)
    with pytest.raises(UsageError, match="is damaged"):
        read_parameters(str(file), "--resume")


# Setting


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda arrays: arrays.pop("dense.bias"), "has no dense.bias"),
        (lambda arrays: arrays.update({"dense.bias": mx.nd.ones(6)}), r"dense.bias .*\(6,\)"),
        (lambda arrays: arrays.update({"dense.bias": mx.nd.ones((5, 1))}), r"dense.bias .*\(5, 1"),
        (
            lambda arrays: arrays.update({"feature.bias": mx.nd.ones(5)}),
            "has feature.bias, which the network lacks",
        ),
    ],
)
def test_parameters_of_another_network_change_nothing(change: Any, message: str) -> None:
    net = margin_net(1)
    before = net.embed(images()).asnumpy()
    parameters = net._collect_params_with_prefix()
    arrays = {name: parameter.data() + 1 for name, parameter in parameters.items()}
    change(arrays)
    other_flags = r"a network of other flags \(--model, --embed-dim, --feat-dim\)$"
    with pytest.raises(UsageError, match=f"^--resume x: .*{message}.*{other_flags}"):
        set_parameters(parameters, arrays, "--resume x", [mx.cpu()])
    np.testing.assert_array_equal(net.embed(images()).asnumpy(), before)


def test_a_size_that_is_not_known_yet_is_shown_as_such() -> None:
    parameters = {"weight": nn.Dense(10).weight}
    with pytest.raises(UsageError, match=r"the shape \(10,\), the network needs \(10, \?\); "):
        set_parameters(parameters, {"weight": mx.nd.ones(10)}, "--resume x", [mx.cpu()])


def test_a_number_too_large_for_the_parameter_is_not_finite() -> None:
    parameters = {"weight": nn.BatchNorm(in_channels=2).gamma}
    arrays = {"weight": mx.nd.array([1, 1e300], dtype="float64")}
    with pytest.raises(UsageError, match=r"^--resume x: weight holds values that are not finite$"):
        set_parameters(parameters, arrays, "--resume x", [mx.cpu()])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["base_net.1.running_var", "dense.bias"])
def test_parameters_that_are_not_finite_change_nothing(name: str, value: float) -> None:
    net = margin_net(1)
    before = net.embed(images()).asnumpy()
    parameters = net._collect_params_with_prefix()
    arrays = {name: parameter.data() + 1 for name, parameter in parameters.items()}
    arrays[name][-1] = value
    with pytest.raises(UsageError) as caught:
        set_parameters(parameters, arrays, "--resume x", [mx.cpu()])
    assert str(caught.value) == f"--resume x: {name} holds values that are not finite"
    np.testing.assert_array_equal(net.embed(images()).asnumpy(), before)


def test_parameters_are_set_on_every_device() -> None:
    net = margin_net(1)
    expected = net.embed(images()).asnumpy()
    parameters = net._collect_params_with_prefix()
    arrays = {name: parameter.data() for name, parameter in parameters.items()}

    fresh = MarginNet(small_backbone(), DIMENSIONS, batch_k=2)
    devices = [mx.cpu(0), mx.cpu(1)]
    set_parameters(fresh._collect_params_with_prefix(), arrays, "--resume x", devices)
    for device in devices:
        found = fresh.embed(images().as_in_context(device)).asnumpy()
        np.testing.assert_array_equal(found, expected)
