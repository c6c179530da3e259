"""How flags are declared and read, for train.py and all commands. Imports no MXNet."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from embedding_learning.errors import UsageError

# MXNet counts in 32 bits.
LARGEST_COUNT = 2**31 - 1
# MXNet reads numbers as float32 and takes none that is too small for its full precision (1.2e-38).
# The largest is 3.4e38. Above the least there is room for the factors that optimizers apply.
LEAST_NUMBER, LARGEST_NUMBER = 1e-34, 3e38


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists the flags)")


def add(group: argparse._ActionsContainer, name: str, default: Any, text: str) -> None:
    """A flag of its default's type."""
    told = f"{text} (default: %(default)s)" if default != "" else text
    group.add_argument(name, default=default, type=type(default), help=told)


def add_count(group: argparse._ActionsContainer, name: str, text: str) -> None:
    """A whole number that is found otherwise where the flag is not given."""
    group.add_argument(name, type=int, metavar="N", help=text)


def add_choice(
    group: argparse._ActionsContainer, name: str, choices: tuple[str, ...], text: str
) -> None:
    """One of some words, of which the first is the default."""
    told = f"{text}: {', '.join(choices)} (default: {choices[0]})"
    group.add_argument(name, choices=choices, default=choices[0], metavar="WORD", help=told)


def integers(flag: str, text: str) -> list[int]:
    """A list such as 12,14,16; empty for no text."""
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UsageError(
            f"{flag} {text}: whole numbers expected, with commas between them"
        ) from None


def device_numbers(flag: str, text: str) -> list[int]:
    """A list such as 0,2,5 without repetition; empty for no text."""
    numbers = integers(flag, text)
    if len(set(numbers)) < len(numbers) or any(number < 0 for number in numbers):
        raise UsageError(
            f"{flag} {text}: different whole numbers expected, with commas between them"
        )
    return numbers


def check_range(
    name: str, value: int | float, least: int, most: int | float = LARGEST_COUNT
) -> None:
    """Raises UsageError unless the value of a flag, named by its attribute, is in the range."""
    if value < least:
        raise UsageError(f"{as_flag(name)} {value}: must be at least {least}")
    if value > most:
        raise UsageError(f"{as_flag(name)} {value}: {most} is the most")


def check_number(source: str, value: float) -> None:
    """Raises UsageError unless a number is 0 or of a size that MXNet can read.

    `source` names the flag and its value, or what was computed of flags.
    """
    if not math.isfinite(value):
        raise UsageError(f"{source}: must be a finite number")
    if value and not LEAST_NUMBER <= abs(value) <= LARGEST_NUMBER:
        raise UsageError(
            f"{source}: must be 0 or of a size between {LEAST_NUMBER:g} and {LARGEST_NUMBER:g}"
        )


def given(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """The flags that stand among the arguments, by attribute; read, but not checked.

    Raises UsageError if one is unknown or cannot be read.
    """
    absent = object()
    everything = argparse.Namespace(**{action.dest: absent for action in parser._actions})
    found = vars(parser.parse_args(arguments, everything))
    return {name: value for name, value in found.items() if value is not absent}


def as_flag(name: str) -> str:
    """The flag that sets an attribute of the options."""
    return "--" + name.replace("_", "-")
