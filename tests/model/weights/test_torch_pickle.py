"""Pickles: what torch.save writes is read, and nothing in them runs."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from embedding_learning.model.weights import torch_pickle
from embedding_learning.model.weights.torch_pickle import Storage, Tensor, read_pickle
from tests.helpers.torch_writer import (
    ORDERED,
    REBUILD,
    Call,
    Global,
    Persistent,
    pickled,
    state_program,
    storage,
    tensor,
)

VALUES = np.arange(12, dtype=np.float32)
STORED = storage("0", VALUES)
DAMAGED = "damaged or not as torch.save"


def read(program: bytes) -> Any:
    return read_pickle(io.BytesIO(program))


def refusal(program: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        read(program)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 200
    assert type(caught.value) is ValueError
    return text


def plain_value(rng: Random, depth: int) -> Any:
    """Objects that Python's own pickle writes with the known instructions."""
    if depth == 0 or rng.random() < 0.3:
        number = rng.choice([0, 255, 256, 65535, 65536, -1, 2**31 - 1, 2**31, -(2**70), 10**90])
        return rng.choice([None, True, False, number, rng.random(), "", "a.weight", "é日"])
    parts = [plain_value(rng, depth - 1) for _ in range(rng.randrange(5))]
    kind = rng.randrange(3)
    if kind == 0:
        return parts
    if kind == 1:
        return tuple(parts)
    return {f"key {rng.randrange(100)}": part for part in parts}


def test_what_python_writes_is_read() -> None:
    for seed in range(300):
        value = plain_value(Random(seed), 4)
        value = [value, value, {"again": value}]  # by reference
        assert read(pickle.dumps(value, protocol=2)) == value
        assert read(pickled(value)) == value


def test_more_than_256_references_are_followed() -> None:
    parts = [[number] for number in range(300)]
    found = read(pickle.dumps([parts, parts[::-1]], protocol=2))
    assert found == [parts, parts[::-1]]
    assert found[0][0] is found[1][-1]


def test_the_file_is_left_after_the_pickle() -> None:
    file = io.BytesIO(pickled([1, 2]) + pickled("next") + b"rest")
    assert read_pickle(file) == [1, 2]
    assert read_pickle(file) == "next"
    assert file.read() == b"rest"


def test_a_state_dictionary_holds_views_of_storages() -> None:
    arrays = {"a.weight": np.zeros((2, 3, 4), np.float32), "a.bias": np.zeros(5, np.float16)}
    arrays["a.count"] = np.zeros((), np.int64)
    assert read(state_program(arrays)) == {
        "a.weight": Tensor(Storage("0", "float32", 24), 0, (2, 3, 4), (12, 4, 1)),
        "a.bias": Tensor(Storage("1", "float16", 5), 0, (5,), (1,)),
        "a.count": Tensor(Storage("2", "int64", 1), 0, (), ()),
    }


def test_a_parameter_is_its_tensor() -> None:
    rebuild = Global("torch._utils", "_rebuild_parameter")
    inner = tensor(STORED, VALUES)
    assert read(pickled(Call(rebuild, (inner, True, Call(ORDERED, ()))))) == read(pickled(inner))


def test_what_python_2_wrote_is_read() -> None:
    """Text as bytes, an ordered dictionary as a list of pairs, tensors without gradients."""
    rebuild = Global("torch._utils", "_rebuild_tensor")
    old = Call(rebuild, (STORED, 2, (5,), (2,)))
    program = pickled(Call(ORDERED, ([["weight", old], ["bias", old]],)))
    text = b"X" + struct.pack("<I", 6) + b"weight"
    assert program.count(text) == 1
    for other in (b"U\x06weight", b"T" + struct.pack("<I", 6) + b"weight"):
        view = Tensor(Storage("0", "float32", 12), 2, (5,), (2,))
        assert read(program.replace(text, other)) == {"weight": view, "bias": view}


@pytest.mark.parametrize(
    "shape, strides, offset, fits",
    [
        ((12,), (1,), 0, True),
        ((12,), (1,), 1, False),
        ((3, 4), (1, 3), 0, True),
        ((3, 4), (5, 1), 0, False),
        ((4,), (3,), 2, True),
        ((4,), (3,), 3, False),
        ((), (), 11, True),
        ((), (), 12, False),
        ((0, 9), (9, 1), 12, True),
        ((0, 9), (9, 1), 13, False),
        ((12,), (0,), 0, True),
        ((13,), (0,), 0, False),
        ((2**40, 2**40), (0, 0), 0, False),
        ((12,), (-1,), 11, False),
        ((-1,), (1,), 0, False),
        ((12,), (1,), -1, False),
        ((3, 4), (1,), 0, False),
        ((True,), (1,), 0, False),
        ((1.0,), (1,), 0, False),
        ((1,) * 33, (1,) * 33, 0, False),
        ([12], [1], 0, False),
    ],
)
def test_no_view_leaves_its_storage(shape: Any, strides: Any, offset: int, fits: bool) -> None:
    arguments = (STORED, offset, shape, strides, False, Call(ORDERED, ()))
    program = pickled(Call(REBUILD, arguments))
    if fits:
        assert read(program) == Tensor(Storage("0", "float32", 12), offset, shape, strides)
    else:
        assert DAMAGED in refusal(program)


class Malice:
    """Runs a command when Python unpickles it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_not_run_but_refused(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "run"
    program = pickle.dumps({"weight": Malice(f"touch {mark}")}, protocol=protocol)
    message = refusal(program)
    assert not mark.exists()
    if protocol == 2:
        assert message == "names posix.system, which no weights need; nothing of it was run"
    pickle.loads(program)
    assert mark.exists()  # it would have run


NAMES = [
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("torch", "load"),
    ("torch", "Storage"),
    ("torch._utils", "FloatStorage"),
    ("torch.nn.modules.linear", "Linear"),
    ("collections", "OrderedDict.__init__"),
    ("collections", "defaultdict"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("", ""),
]


@pytest.mark.parametrize("module, name", NAMES)
def test_any_other_name_is_refused_by_its_name(module: str, name: str) -> None:
    message = f"names {module}.{name}, which no weights need; nothing of it was run"
    assert refusal(pickled(Global(module, name))) == message


def test_a_name_that_cannot_be_shown_is_not_shown() -> None:
    assert "\x1b" not in refusal(pickled(Global("\x1b[31mos", "system")))
    assert "names something" in refusal(pickled(Global("m" * 150, "n")))
    assert DAMAGED in refusal(pickled(Global("m" * 5000, "n")))
    assert DAMAGED in refusal(b"\x80\x02c\xff\nsystem\n.")
    assert DAMAGED in refusal(b"\x80\x02ccollections\nOrdered\\x44ict\n.")


@pytest.mark.parametrize(
    "value",
    [
        Call(Global("torch", "FloatStorage"), (3,)),  # a type, no function
        Call(ORDERED, ({"a": 1},)),
        Call(ORDERED, ([], [])),
        Call(ORDERED, ([["a", 1, 2]],)),
        Call(ORDERED, ([[1, "a"]],)),
        Call(ORDERED, (["ab"],)),
        Call(REBUILD, (STORED, 0, (12,), (1,), False)),
        Call(REBUILD, ("storage", 0, (12,), (1,), False, None)),
        Call(REBUILD, ()),
        Call(Global("torch._utils", "_rebuild_parameter"), (3, True, None)),
        Call(Global("torch._utils", "_rebuild_parameter"), (tensor(STORED, VALUES),)),
        Persistent(()),
        Persistent(("module", *STORED.persistent_id[1:])),
        Persistent(("storage", ORDERED, "0", "cpu", 12)),
        Persistent(("storage", "FloatStorage", "0", "cpu", 12)),
        Persistent(("storage", STORED.persistent_id[1], 0, "cpu", 12)),
        Persistent(("storage", STORED.persistent_id[1], "0", "cpu", -1)),
        Persistent(("storage", STORED.persistent_id[1], "0", "cpu", 10**30)),
        Persistent((*STORED.persistent_id, ("1", 0, 3))),
        Persistent((*STORED.persistent_id, None, None)),
    ],
)
def test_whatever_torch_does_not_write_is_refused(value: Any) -> None:
    assert DAMAGED in refusal(pickled(value))


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"\x80\x02.",
        b"\x80\x04N.",
        b"NN.",
        b"(N.",
        b"(.",
        b"t.",
        b"N\x86.",
        b"(N\x85.",
        b"]N(ae.",
        b"Na.",
        b"(a.",
        b"]N.",
        b"NNs.",
        b"]NNs.",
        b"}NNs.",
        b"}K\x01NNs.",
        b"}(Nu.",
        b"}(K\x01Nu.",
        b"}()Nu.",
        b"}u.",
        b"h\x00.",
        b"j\x00\x00\x00\x00.",
        b"q\x00.",
        b"NNR.",
        b")R.",
        b"N)R.",
        b"NQ.",
        b"Nb.",
        b"NNb.",
        b"b.",
        b"X\xff\xff\xff\xff",
        b"X\x02\x00\x00\x00\xff\xff.",
        b"U\x05abc",
        b"\x8a\xff\x00",
        b"ccollections\n",
        b"ccollections\nOrderedDict",
        b"J\x00",
    ],
)
def test_a_program_that_makes_no_sense_is_refused(program: bytes) -> None:
    assert DAMAGED in refusal(program)


def test_instructions_that_no_weights_need_are_refused() -> None:
    known = b".NKMJGXUT}])(taeusqrhjcRbQ\x80\x85\x86\x87\x88\x89\x8a"
    for number in range(256):
        if number not in known:
            message = refusal(b"\x80\x02NNNN" + bytes([number]) + b"os\nsystem\n.")
            assert message == f"has the pickle instruction {bytes([number])!r}; no weights need it"


@pytest.mark.slow
def test_every_cut_and_every_changed_byte_is_read_or_refused() -> None:
    program = state_program({"a.weight": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.int64)})
    for length in range(len(program)):
        refusal(program[:length])
    for at in range(len(program)):
        for byte in (0, 0x28, 0x2E, 0x52, 0x63, 0x85, 0xFF):
            try:
                read(program[:at] + bytes([byte]) + program[at + 1 :])
            except ValueError as error:
                assert type(error) is ValueError and str(error).isprintable()


# Instead of the limit of the program, so that the test takes a second. Time and memory are
# proportional to it.
LIMIT = 2**16
BOMBS = {
    "a long program": b"N0" * 10,
    "many objects": b"\x80\x02(" + b"}" * 2 * LIMIT,
    "a long text": b"\x80\x02X" + struct.pack("<I", 2**31 - 1) + b"a" * 2 * LIMIT,
    "a list that is made a dictionary again and again": b"\x80\x02(]q\x00("
    + b"".join(pickled([str(number), None])[2:-1] for number in range(1_250))
    + b"e"
    + b"ccollections\nOrderedDict\nq\x01h\x00\x85q\x02"
    + b"h\x01h\x02R" * 6_250
    + b"t.",
    "doubled again and again": b"\x80\x02N" + b"q\x00h\x00\x86" * 6_250 + b".",
    "an endless line": b"\x80\x02c" + b"a" * 2 * LIMIT,
}


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_program_meant_to_fill_memory_is_read_or_refused_in_little(
    bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of the longest length in 256 MB."""
    most_bytes = 2**28 * LIMIT / torch_pickle._LONGEST_PROGRAM
    monkeypatch.setattr(torch_pickle, "_LONGEST_PROGRAM", LIMIT)
    tracemalloc.start()
    with suppress(ValueError):
        read(BOMBS[bomb])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < most_bytes


@pytest.mark.parametrize(
    "part, length",
    [
        (pickled("a" * 900)[2:-1], None),
        # Many small objects: what they take is proportional to the limit.
        (b"}", LIMIT),
        (b"ccollections\nOrderedDict\n", LIMIT),
    ],
    ids=["text", "dictionaries", "names"],
)
def test_a_program_may_take_a_megabyte(
    part: bytes, length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if length:
        monkeypatch.setattr(torch_pickle, "_LONGEST_PROGRAM", length)
    most = ((length or 2**20) - 5) // len(part)
    assert len(read(b"\x80\x02(" + part * most + b"t.")) == most
    assert DAMAGED in refusal(b"\x80\x02(" + part * (most + 1) + b"t.")


def test_a_key_is_text_so_that_nothing_deep_is_compared() -> None:
    """The hash of a tuple of the same two tuples, 100 deep, would never end."""
    deep = b"N" + b"q\x00h\x00\x86" * 100
    assert DAMAGED in refusal(b"\x80\x02}" + deep + b"Ns.")
    assert DAMAGED in refusal(b"\x80\x02}(" + deep + b"Nu.")
