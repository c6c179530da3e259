"""Reads the pickles in a PyTorch state dictionary without running anything.

A pickle is a program: its GLOBAL names any function of any module, its REDUCE calls it. Python's
`pickletools.genops` takes it apart and runs none of it. Here the instructions that torch.save needs
for a state dictionary are carried out, and the only functions are the few below, each replaced by
what it means. Any other that is named is refused by its name; nothing is ever imported or called
for a file.

The instructions are those of Python's pickle protocol 2 (PEP 307).
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

# The program for the largest networks takes a third of it. As each instruction is at least a byte,
# this bounds time and memory too.
_LONGEST_PROGRAM = 2**20  # bytes
_LONGEST_NAME = 1000  # bytes
_MOST_DIMENSIONS = 32

_STORAGE_TYPES = {
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch DoubleStorage": "float64",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
    "torch BFloat16Storage": "bfloat16",  # unknown to numpy
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


class _Name(str):
    """A function or type that the pickle names: its module, a space, and its own name."""


class _Program(io.BytesIO):
    """A pickle, for genops, which reads names as lines."""

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(_LONGEST_NAME)
        # genops would resolve escapes, which Python itself does not.
        _require(b"\\" not in line)
        return line


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
    begin = file.tell()
    program = _Program(file.read(_LONGEST_PROGRAM))
    value = _Machine().run(program)
    file.seek(begin + program.tell())
    return value


class _Machine:
    """The stack, and where the objects are that the pickle refers to again."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: _Program) -> Any:
        """Returns what the pickle holds; leaves the program at its end."""
        operations = pickletools.genops(program)
        with program.getbuffer() as codes:
            while True:
                # Asked for before genops reads what follows it, which may be anything.
                code = bytes(codes[program.tell() :][:1])
                _require(code != b"")
                if code != b"." and code not in _INSTRUCTIONS:
                    raise ValueError(f"has the pickle instruction {code!r}; no weights need it")
                try:
                    _, argument, _ = next(operations)
                except ValueError as error:
                    raise ValueError(_DAMAGED) from error
                if code == b".":
                    value = self._pop()
                    _require(not self._stack and not self._marks)
                    return value
                _INSTRUCTIONS[code](self, argument)

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _push_text(self, text: str) -> None:
        _require(len(text) <= _LONGEST_NAME)
        self._push(text)

    def _push_old_text(self, text: str) -> None:
        """The text of Python 2, whose bytes genops takes for Latin-1."""
        try:
            self._push_text(text.encode("latin-1").decode())
        except UnicodeDecodeError as error:
            raise ValueError(_DAMAGED) from error

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

    def _put(self, number: int) -> None:
        value = self._pop()
        self._push(value)
        self._memo[number] = value

    def _get(self, number: int) -> None:
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

    def _name(self, name: str) -> None:
        if name not in _STORAGE_TYPES and name not in _FUNCTIONS:
            shown = name.replace(" ", ".", 1)
            shown = shown if shown.isprintable() and len(shown) < 100 else "something"
            raise ValueError(f"names {shown}, which no weights need; nothing of it was run")
        self._push(_Name(name))

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
        _require(storage_type in _STORAGE_TYPES)
        _require(isinstance(key, str) and _is_size(size))
        # Of old: a part of another storage.
        _require(len(told) == 5 or told[5] is None)
        self._push(Storage(key, _STORAGE_TYPES[storage_type], size))


# Each is given what follows the instruction in the program.
_INSTRUCTIONS: dict[bytes, Callable[[_Machine, Any], None]] = {
    b"\x80": lambda _, version: _require(version == 2),  # torch.save's protocol
    b"\x88": lambda machine, _: machine._push(True),
    b"\x89": lambda machine, _: machine._push(False),
    **dict.fromkeys([b"N", b"K", b"M", b"J", b"\x8a", b"G"], _Machine._push),
    b"X": _Machine._push_text,
    **dict.fromkeys([b"U", b"T"], _Machine._push_old_text),
    b"}": lambda machine, _: machine._push({}),
    b"]": lambda machine, _: machine._push([]),
    b")": lambda machine, _: machine._push(()),
    b"(": lambda machine, _: machine._marks.append(len(machine._stack)),
    b"t": lambda machine, _: machine._push(tuple(machine._pop_to_mark())),
    b"\x85": lambda machine, _: machine._pop_tuple(1),
    b"\x86": lambda machine, _: machine._pop_tuple(2),
    b"\x87": lambda machine, _: machine._pop_tuple(3),
    b"a": lambda machine, _: machine._append([machine._pop()]),
    b"e": lambda machine, _: machine._append(machine._pop_to_mark()),
    b"s": lambda machine, _: machine._set_items([machine._pop(), machine._pop()][::-1]),
    b"u": lambda machine, _: machine._set_items(machine._pop_to_mark()),
    **dict.fromkeys([b"q", b"r"], _Machine._put),
    **dict.fromkeys([b"h", b"j"], _Machine._get),
    b"c": _Machine._name,
    b"R": lambda machine, _: machine._call(),
    b"b": lambda machine, _: machine._build(),
    b"Q": lambda machine, _: machine._storage(),
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


_FUNCTIONS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections OrderedDict": _ordered_dictionary,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
}


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError(_DAMAGED)
