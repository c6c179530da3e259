"""Declares and reads flags, for train.py and all commands. Imports no MXNet."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from embedding_learning.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists the flags)")


def expand_path(text: str) -> str:
    """Returns the path with ``~`` expanded. A shell does not expand it in ``--flag=~/file``.

    An empty path is refused: it comes from a shell variable that is not set, and would be taken for
    the current folder, or for a flag that was not given.
    """
    if not text:
        raise argparse.ArgumentTypeError("the name of a file or folder is empty")
    return os.path.expanduser(text)


def number_or_none(text: str) -> float | None:
    """Reads a number, or the word ``none``."""
    return None if text == "none" else float(text)


def add(group: argparse._ActionsContainer, name: str, default: Any, text: str) -> None:
    """Adds a flag of its default's type."""
    help_text = f"{text} (default: %(default)s)" if default != "" else text
    group.add_argument(name, default=default, type=type(default), help=help_text)


def add_path(group: argparse._ActionsContainer, name: str, default: str, text: str) -> None:
    """Adds the path of a file or folder, in which ``~`` is expanded."""
    help_text = f"{text} (default: %(default)s)"
    group.add_argument(name, default=default, type=expand_path, help=help_text)


def add_count(group: argparse._ActionsContainer, name: str, text: str) -> None:
    """Adds a whole number that the command determines itself if the flag is not given."""
    group.add_argument(name, type=int, metavar="N", help=text)


def add_choice(
    group: argparse._ActionsContainer, name: str, choices: tuple[str, ...], text: str
) -> None:
    """Adds a choice of words, of which the first is the default."""
    help_text = f"{text}: {', '.join(choices)} (default: {choices[0]})"
    group.add_argument(name, choices=choices, default=choices[0], metavar="WORD", help=help_text)


def given(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the flags that are typed in the arguments, by attribute; read, but not checked.

    Raises UsageError if one is unknown or cannot be read.
    """
    absent = object()
    defaults = argparse.Namespace(**{action.dest: absent for action in parser._actions})
    values = vars(parser.parse_args(arguments, defaults))
    return {name: value for name, value in values.items() if value is not absent}
