"""Reads the pickles in a PyTorch state dictionary without running anything.

A pickle is a program: its GLOBAL names any function of any module, its REDUCE calls it. Here the
instructions that torch.save needs for a state dictionary are carried out, and the only functions
are the few below, each replaced by what it means. Whatever else is named is refused by its name;
nothing is ever imported or called for a file.

The instructions are those of Python's pickle protocol 2 (PEP 307, Lib/pickletools.py).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

# The program for the largest networks takes a third of it. As each instruction is at least a byte,
# this bounds time and memory too.
_LONGEST_PROGRAM = 2**20  # bytes
_LONGEST_NAME = 1000  # bytes
_MOST_DIMENSIONS = 32

_STORAGE_TYPES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "BFloat16Storage": "bfloat16",  # unknown to numpy
}
_DAMAGED = "is damaged or not as torch.save writes weights"


class Storage(NamedTuple):
    """Values that tensors are views of: the key under which the file has them, type and number."""

    key: str
    dtype: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage, no larger than it. Offset and strides count values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Values of the storage from the tensor's first to its last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))


class _Name(NamedTuple):
    """A function or type that the pickle names."""

    module: str
    name: str


def read_pickle(file: BinaryIO) -> Any:
    """What the pickle that begins here holds. Leaves the file behind it.

    Returns
    -------
    object
        None, numbers, text, lists, tuples and dictionaries by text; `Tensor` and `Storage`. A list
        may hold itself.

    Raises
    ------
    ValueError
        Says why it is refused, in a part of a line that can be shown.
    """
    try:
        return _Machine(file).run()
    except UnicodeDecodeError as error:
        raise ValueError(_DAMAGED) from error


class _Machine:
    """The stack, and where the objects are that the pickle refers to again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _LONGEST_PROGRAM
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            instruction = self._read(1)
            if instruction == b".":
                value = self._pop()
                _require(not self._stack and not self._marks)
                return value
            if instruction not in _INSTRUCTIONS:
                raise ValueError(f"has the pickle instruction {instruction!r}; no weights need it")
            _INSTRUCTIONS[instruction](self)

    def _read(self, length: int) -> bytes:
        _require(0 <= length <= self._left)
        self._left -= length
        data = self._file.read(length)
        _require(len(data) == length)
        return data

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._read(struct.calcsize(layout)))[0]

    def _text(self, length: int) -> str:
        _require(length <= _LONGEST_NAME)
        return self._read(length).decode()

    def _line(self) -> str:
        """Up to the end of the line."""
        line = self._file.readline(_LONGEST_NAME)
        self._left -= len(line)
        _require(line.endswith(b"\n"))
        return line[:-1].decode()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        # What lies below the last mark is not at hand.
        _require(len(self._stack) > (self._marks[-1] if self._marks else 0))
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        _require(bool(self._marks))
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _pop_tuple(self, length: int) -> None:
        values = [self._pop() for _ in range(length)]
        self._push(tuple(reversed(values)))

    def _put(self, layout: str) -> None:
        value = self._pop()
        self._push(value)
        self._memo[self._number(layout)] = value

    def _get(self, layout: str) -> None:
        number = self._number(layout)
        _require(number in self._memo)
        self._push(self._memo[number])

    def _append(self, values: list[Any]) -> None:
        found = self._pop()
        _require(isinstance(found, list))
        found.extend(values)
        self._push(found)

    def _set_items(self, values: list[Any]) -> None:
        found = self._pop()
        _require(isinstance(found, dict) and len(values) % 2 == 0)
        found.update(_dictionary(zip(values[::2], values[1::2])))
        self._push(found)

    def _name(self) -> None:
        name = _Name(self._line(), self._line())
        is_storage = name.module == "torch" and name.name in _STORAGE_TYPES
        if not is_storage and name not in _FUNCTIONS:
            told = f"{name.module}.{name.name}"
            told = told if told.isprintable() and len(told) < 100 else "something"
            raise ValueError(f"names {told}, which no weights need; nothing of it was run")
        self._push(name)

    def _call(self) -> None:
        arguments, name = self._pop(), self._pop()
        _require(isinstance(name, _Name) and name in _FUNCTIONS and isinstance(arguments, tuple))
        self._push(_FUNCTIONS[name](arguments))

    def _build(self) -> None:
        """An ordered dictionary's attributes, which tell versions of layers."""
        self._pop()
        _require(isinstance(self._stack[-1] if self._stack else None, dict))

    def _storage(self) -> None:
        told = self._pop()
        _require(isinstance(told, tuple) and len(told) in (5, 6))
        kind, storage_type, key, _, size = told[:5]
        _require(kind == "storage" and isinstance(storage_type, _Name))
        _require(storage_type.module == "torch" and storage_type.name in _STORAGE_TYPES)
        _require(isinstance(key, str) and _is_size(size))
        # Of old: a part of another storage.
        _require(len(told) == 5 or told[5] is None)
        self._push(Storage(key, _STORAGE_TYPES[storage_type.name], size))


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": lambda machine: _require(machine._number("<B") == 2),  # torch.save's protocol
    b"N": lambda machine: machine._push(None),
    b"\x88": lambda machine: machine._push(True),
    b"\x89": lambda machine: machine._push(False),
    b"K": lambda machine: machine._push(machine._number("<B")),
    b"M": lambda machine: machine._push(machine._number("<H")),
    b"J": lambda machine: machine._push(machine._number("<i")),
    b"\x8a": lambda machine: machine._push(
        int.from_bytes(machine._read(machine._number("<B")), "little", signed=True)
    ),
    b"G": lambda machine: machine._push(machine._number(">d")),
    b"X": lambda machine: machine._push(machine._text(machine._number("<I"))),
    # The text of Python 2.
    b"U": lambda machine: machine._push(machine._text(machine._number("<B"))),
    b"T": lambda machine: machine._push(machine._text(machine._number("<I"))),
    b"}": lambda machine: machine._push({}),
    b"]": lambda machine: machine._push([]),
    b")": lambda machine: machine._push(()),
    b"(": lambda machine: machine._marks.append(len(machine._stack)),
    b"t": lambda machine: machine._push(tuple(machine._pop_to_mark())),
    b"\x85": lambda machine: machine._pop_tuple(1),
    b"\x86": lambda machine: machine._pop_tuple(2),
    b"\x87": lambda machine: machine._pop_tuple(3),
    b"a": lambda machine: machine._append([machine._pop()]),
    b"e": lambda machine: machine._append(machine._pop_to_mark()),
    b"s": lambda machine: machine._set_items([machine._pop(), machine._pop()][::-1]),
    b"u": lambda machine: machine._set_items(machine._pop_to_mark()),
    b"q": lambda machine: machine._put("<B"),
    b"r": lambda machine: machine._put("<I"),
    b"h": lambda machine: machine._get("<B"),
    b"j": lambda machine: machine._get("<I"),
    b"c": _Machine._name,
    b"R": _Machine._call,
    b"b": _Machine._build,
    b"Q": _Machine._storage,
}


def _dictionary(pairs: Any) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        _require(isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str))
        found[pair[0]] = pair[1]
    return found


def _ordered_dictionary(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Empty, or of Python 2: with a list of pairs."""
    if arguments == ():
        return {}
    _require(len(arguments) == 1 and isinstance(arguments[0], list))
    pairs = arguments[0]
    found = _dictionary(pairs)
    # Lest one list be copied again and again.
    pairs.clear()
    return found


def _tensor(arguments: tuple[Any, ...]) -> Tensor:
    """Storage, offset, shape, strides; what follows concerns gradients."""
    _require(len(arguments) in (4, 6))
    storage, offset, shape, strides = arguments[:4]
    _require(isinstance(storage, Storage) and _is_size(offset))
    for sizes in (shape, strides):
        _require(isinstance(sizes, tuple) and len(sizes) <= _MOST_DIMENSIONS)
        _require(all(_is_size(size) for size in sizes))
    _require(len(shape) == len(strides))
    tensor = Tensor(storage, offset, shape, strides)
    _require(offset + tensor.span <= storage.size and math.prod(shape) <= storage.size)
    return tensor


def _parameter(arguments: tuple[Any, ...]) -> Tensor:
    """A tensor, and what concerns gradients."""
    _require(len(arguments) == 3 and isinstance(arguments[0], Tensor))
    tensor: Tensor = arguments[0]
    return tensor


_FUNCTIONS: dict[_Name, Callable[[tuple[Any, ...]], Any]] = {
    _Name("collections", "OrderedDict"): _ordered_dictionary,
    _Name("torch._utils", "_rebuild_tensor"): _tensor,
    _Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Name("torch._utils", "_rebuild_parameter"): _parameter,
}


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError(_DAMAGED)
