"""Reads the pickles in a PyTorch state dictionary without running anything.

A pickle is a program: its GLOBAL names any function of any module, its REDUCE calls it. Python's
`pickletools.genops` splits it into instructions and runs none of them. This module executes the
instructions that torch.save needs for a state dictionary. It knows only the few functions below,
and replaces each by its result. A pickle that names any other function is refused, and the message
shows the name; nothing is ever imported or called for a file.

The instructions are those of Python's pickle protocol 2 (PEP 307).
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from embedding_learning.model.weights.binary_reader import LONGEST_NAME, MOST_DIMENSIONS, require

# Three times the length for the largest networks. As each instruction has at least one byte, this
# bounds time and memory too.
_LONGEST_PROGRAM = 2**20  # bytes

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
_require = partial(require, fault=_DAMAGED)


class Storage(NamedTuple):
    """The values that tensors are views of: their key in the file, their type and number."""

    key: str
    dtype: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage, no larger than the storage. Offset and strides count values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """The number of the storage's values from the tensor's first to its last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))


class _Name(str):
    """A function or type that the pickle names: its module, a space, and its own name."""


class _Program(io.BytesIO):
    """A pickle for genops, which reads a name as a line: its length is bounded here."""

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(LONGEST_NAME)
        # genops would replace escape sequences; Python's own unpickler does not.
        _require(b"\\" not in line)
        return line


def read_pickle(file: BinaryIO) -> Any:
    """Reads the pickle that begins here. Ends after it.

    Returns
    -------
    object
        None, a number, text, a list, a tuple, a dictionary with text as keys, a `Tensor` or a
        `Storage`. A list may contain itself.

    Raises
    ------
    ValueError
        If the pickle is refused: the reason, which fits into a line of text.
    """
    begin = file.tell()
    program = _Program(file.read(_LONGEST_PROGRAM))
    value = _Machine().run(program)
    file.seek(begin + program.tell())
    return value


class _Machine:
    """Executes a pickle: its stack, and the objects that the pickle refers to again (the memo)."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: _Program) -> Any:
        """Returns the pickle's object. Ends after the pickle."""
        operations = pickletools.genops(program)
        with program.getbuffer() as codes:
            while True:
                # Checked before genops reads the instruction's argument, which may be anything.
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
        _require(len(text) <= LONGEST_NAME)
        self._push(text)

    def _push_old_text(self, text: str) -> None:
        """Pushes a text of Python 2, whose bytes genops decodes as Latin-1."""
        try:
            self._push_text(text.encode("latin-1").decode())
        except UnicodeDecodeError as error:
            raise ValueError(_DAMAGED) from error

    def _pop(self) -> Any:
        # Nothing below the last mark may be popped.
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
        target = self._pop()
        _require(isinstance(target, list))
        target.extend(values)
        self._push(target)

    def _set_items(self, values: list[Any]) -> None:
        target = self._pop()
        _require(isinstance(target, dict) and len(values) % 2 == 0)
        target.update(_make_dictionary(zip(values[::2], values[1::2])))
        self._push(target)

    def _push_name(self, name: str) -> None:
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
        """Drops the attributes of an ordered dictionary, which hold versions of layers."""
        self._pop()
        _require(isinstance(self._stack[-1] if self._stack else None, dict))

    def _push_storage(self) -> None:
        identifier = self._pop()
        _require(isinstance(identifier, tuple) and len(identifier) in (5, 6))
        tag, storage_type, key, _, size = identifier[:5]
        _require(tag == "storage" and isinstance(storage_type, _Name))
        _require(storage_type in _STORAGE_TYPES)
        _require(isinstance(key, str) and _is_size(size))
        # In old files the sixth may make it a part of another storage.
        _require(len(identifier) == 5 or identifier[5] is None)
        self._push(Storage(key, _STORAGE_TYPES[storage_type], size))


# Each function takes the instruction's argument.
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
    b"c": _Machine._push_name,
    b"R": lambda machine, _: machine._call(),
    b"b": lambda machine, _: machine._build(),
    b"Q": lambda machine, _: machine._push_storage(),
}


def _make_dictionary(pairs: Any) -> dict[str, Any]:
    dictionary = {}
    for pair in pairs:
        _require(isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str))
        dictionary[pair[0]] = pair[1]
    return dictionary


def _make_ordered_dictionary(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Takes no argument or, as Python 2 writes it, a list of pairs."""
    if arguments == ():
        return {}
    _require(len(arguments) == 1 and isinstance(arguments[0], list))
    pairs = arguments[0]
    dictionary = _make_dictionary(pairs)
    # The pickle cannot make many copies of one list, which would take memory.
    pairs.clear()
    return dictionary


def _make_tensor(arguments: tuple[Any, ...]) -> Tensor:
    """Takes storage, offset, shape, strides, and arguments that concern gradients."""
    _require(len(arguments) in (4, 6))
    storage, offset, shape, strides = arguments[:4]
    _require(isinstance(storage, Storage) and _is_size(offset))
    for sizes in (shape, strides):
        _require(isinstance(sizes, tuple) and len(sizes) <= MOST_DIMENSIONS)
        _require(all(_is_size(size) for size in sizes))
    _require(len(shape) == len(strides))
    tensor = Tensor(storage, offset, shape, strides)
    _require(offset + tensor.span <= storage.size and math.prod(shape) <= storage.size)
    return tensor


def _make_parameter(arguments: tuple[Any, ...]) -> Tensor:
    """Takes a tensor, and arguments that concern gradients."""
    _require(len(arguments) == 3 and isinstance(arguments[0], Tensor))
    tensor: Tensor = arguments[0]
    return tensor


_FUNCTIONS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections OrderedDict": _make_ordered_dictionary,
    "torch._utils _rebuild_tensor": _make_tensor,
    "torch._utils _rebuild_tensor_v2": _make_tensor,
    "torch._utils _rebuild_parameter": _make_parameter,
}


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62
