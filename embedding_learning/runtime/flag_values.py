"""Reads and checks the values of flags. Imports no MXNet."""

from __future__ import annotations

import math

from embedding_learning.config import LARGEST_COUNT, LARGEST_NUMBER, LEAST_NUMBER, as_flag
from embedding_learning.errors import UsageError


def integers(flag: str, text: str) -> list[int]:
    """Reads a list such as 12,14,16; an empty text gives an empty list."""
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UsageError(
            f"{flag} {text}: whole numbers expected, with commas between them"
        ) from None


def device_numbers(flag: str, text: str) -> list[int]:
    """Reads a list such as 0,2,5 without repetition; an empty text gives an empty list."""
    numbers = integers(flag, text)
    if len(set(numbers)) < len(numbers) or any(number < 0 for number in numbers):
        raise UsageError(
            f"{flag} {text}: different whole numbers expected, with commas between them"
        )
    return numbers


def check_range(key: str, value: float, least: float, most: float = LARGEST_COUNT) -> None:
    """Raises UsageError unless a flag's value is in the range. `key` is one of `config.FLAGS`."""
    if value < least:
        raise UsageError(f"{as_flag(key)} {value}: must be at least {least}")
    if value > most:
        raise UsageError(f"{as_flag(key)} {value}: {most} is the most")


def check_number(source: str, value: float) -> None:
    """Raises UsageError unless a number is 0 or of a size that MXNet can read.

    `source` names the flag and its value, or the value that was computed from flags.
    """
    if not math.isfinite(value):
        raise UsageError(f"{source}: must be a finite number")
    if value and not LEAST_NUMBER <= abs(value) <= LARGEST_NUMBER:
        raise UsageError(
            f"{source}: must be 0 or of a size between {LEAST_NUMBER:g} and {LARGEST_NUMBER:g}"
        )
