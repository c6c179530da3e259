"""The cells of a comparison: each loss and sampling with each combination of varied flags."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any

from embedding_learning.cli import train_flags
from embedding_learning.config import FLAGS, as_flag
from embedding_learning.errors import UsageError
from embedding_learning.experiments.results import NO_EFFECT, Cell, CellFlags
from embedding_learning.model.methods import LOSSES

# The flags of train.py that flags of `compare` replace.
METHOD_FLAGS = {"loss": "losses", "sampling": "samplings"}
# A value of every varied flag: the flag is left out. Some defaults have no other name.
_DEFAULT = "default"
_MOST_CELLS = 1000
# What to give instead of a flag that `compare` sets for each run.
_INSTEAD = {
    "gpus": "give --gpus behind --, and each run takes one of them",
    "seed": "give --seeds N for the seeds 1 to N",
    "held_out_fold": "give --select-on held-out --folds K",
}
# The cells in their order.
Cells = dict[Cell, CellFlags]


def parse_vary(texts: Sequence[str], set_here: Collection[str]) -> dict[str, list[str]]:
    """Returns the values of each varied flag, as typed, by its key in `config.FLAGS`.

    Each text is FLAG=V1,V2,... . `set_here` are the keys of flags that cannot be varied.

    Raises UsageError for a flag that is unknown, cannot be varied or is there twice, and for values
    that are missing or repeated.
    """
    varied: dict[str, list[str]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        key = train_flags.find_key(name.lstrip("-"))
        if key is None:
            raise UsageError(f"--vary {name}: unknown; train.py --help lists the flags")
        if key in METHOD_FLAGS:
            flag = f"--{METHOD_FLAGS[key]}"
            raise UsageError(f"--vary {name}: {flag} does this; give {flag} {values}")
        if key in set_here:
            raise UsageError(f"--vary {name}: {format_set_here(key)}")
        if key in varied:
            raise UsageError(f"--vary {name}: is given twice; name all its values in one")
        varied[key] = values.split(",")
        is_complete = all(varied[key]) and len(set(varied[key])) == len(varied[key])
        if not is_complete or not values.isprintable():
            raise UsageError(
                f"--vary {text!r}: different values expected, with commas between them, as in "
                "lr=0.1,0.01"
            )
    count = math.prod(map(len, varied.values()))
    if count > _MOST_CELLS:
        raise UsageError(f"--vary: makes {count} combinations; {_MOST_CELLS} is the most")
    return varied


def format_set_here(key: str) -> str:
    """Returns why a flag that `compare` sets itself is refused, and what to give instead."""
    return f"differs from run to run; {_INSTEAD.get(key, 'leave it out')}"


def build_cells(
    pairs: Sequence[tuple[str, str]],
    varied: Mapping[str, Sequence[str]],
    flags: Sequence[str],
    placeholders: Sequence[str],
    without_influence: Collection[str],
) -> tuple[Cells, list[str]]:
    """Returns the cells, and lines on varied flags that have no effect in some of them.

    A flag that has no effect in a cell is left out there, so some combinations may be one cell.

    Parameters
    ----------
    pairs : sequence of (str, str)
        Losses with their samplings.
    varied : mapping
        What `parse_vary` returns.
    flags : sequence of str
        Flags of train.py for all cells, not abbreviated.
    placeholders : sequence of str
        Flags in place of those that each run has of its own, for the checks.
    without_influence : collection of str
        Keys of flags that do not make another run.

    Raises
    ------
    UsageError
        If train.py would refuse a cell, a flag has no effect in any cell, or values that look
        different are the same run.
    """
    cells: Cells = {}
    unused: dict[str, str] = {}
    used: set[str] = set()
    # The values of each run as they were typed, those with effect and all, by all that makes it
    # another run.
    values_of_runs: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
    for (loss, sampling), values in product(pairs, product(*varied.values())):
        typed = dict(zip(varied, values))
        arguments = [*flags, *_cell_arguments(loss, sampling, typed), *placeholders]
        kept, config, reasons = train_flags.leave_out_unused(arguments, varied)
        unused.update(reasons)
        used |= (train_flags.given(kept).keys() | typed.keys()) - reasons.keys()
        settings = config.as_flags()
        values_with_effect = {key: text for key, text in typed.items() if key not in reasons}
        run = repr([loss, sampling, {**settings, **dict.fromkeys(without_influence)}])
        former, former_typed = values_of_runs.setdefault(run, (values_with_effect, typed))
        if former != values_with_effect:
            raise UsageError(
                f"--vary: {_describe(former_typed)} and {_describe(typed)} are the same run; leave "
                "one out"
            )
        shown = {
            key: NO_EFFECT if key in reasons else _format_value(text, settings[key])
            for key, text in typed.items()
        }
        cell = Cell(loss, sampling, tuple((_name(key), value) for key, value in shown.items()))
        cells[cell] = CellFlags(tuple(kept[: -len(placeholders)]), config)
    for key, reason in unused.items():
        if key not in used:
            flag = f"--vary {_name(key)}" if key in varied else as_flag(key)
            raise UsageError(f"{flag}: has no effect: {reason}; leave it out")
    return cells, [
        f"--vary {_name(key)}: has no effect in some rows ({unused[key]}): there it is left out, "
        f"and shown as {NO_EFFECT}."
        for key in varied
        if key in unused
    ]


def _cell_arguments(loss: str, sampling: str, typed: Mapping[str, str]) -> list[str]:
    """Returns the flags of train.py that a cell does not share with all others."""
    arguments = [argument for key, text in typed.items() for argument in _as_arguments(key, text)]
    arguments.append(f"--loss={loss}")
    return [*arguments, f"--sampling={sampling}"] if LOSSES[loss].samples else arguments


def _as_arguments(key: str, text: str) -> list[str]:
    """Returns a varied flag with a value as train.py takes it."""
    flag = FLAGS[key]
    if text == _DEFAULT:
        return []
    if flag.type is not bool:
        return [f"{flag.name}={text}"]
    if text not in ("yes", "no"):
        raise UsageError(f"--vary {_name(key)}={text}: yes or no expected")
    if text == "yes":
        return [flag.name]
    return [as_flag(f"no_{key}")] if flag.can_be_negated else []


def _format_value(text: str, value: Any) -> str:
    """Returns one text for all spellings of a value, which was typed as `text`."""
    if text == _DEFAULT or isinstance(value, bool):
        return text
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        value = int(value)
    return "none" if value is None else str(value)


def _describe(values: Mapping[str, str]) -> str:
    return " ".join(f"{_name(key)}={text}" for key, text in values.items())


def _name(key: str) -> str:
    """Returns a flag without its dashes."""
    return as_flag(key)[2:]
