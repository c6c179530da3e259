"""How flags are declared and read, for train.py and all commands. Imports no MXNet."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn


class UsageError(Exception):
    """A flag cannot be followed; the message names the flag and the way out."""


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


def integers(flag: str, text: str, order: str) -> list[int]:
    """A list such as 0,2,5, its numbers "different" or even "increasing"; empty for no text."""
    try:
        numbers = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [-1]
    ordered = sorted(set(numbers))
    fits = numbers == ordered if order == "increasing" else sorted(numbers) == ordered
    if not fits or any(number < 0 for number in numbers):
        raise UsageError(f"{flag} {text}: {order} whole numbers expected, with commas between them")
    return numbers


def as_flag(name: str) -> str:
    """The flag that sets an attribute of the options."""
    return "--" + name.replace("_", "-")
