"""Writes docs/flags.md, the list of flags of train.py, from the table in `config`.

Usage: python -m docs.write_flags docs/flags.md
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from embedding_learning.cli import train_flags
from embedding_learning.config import FLAGS, MAY_CHANGE, SAME, Flag

HEADING = """# Flags of train.py

This page is written by `python -m docs.write_flags docs/flags.md`; a test compares it with the
program. `python3 train.py --help` prints the same. A flag may be abbreviated as long as it stays
unique; an abbreviation that the original example knows means the same flag here.

The last column says what a resumed run may do: **same**: the flag must have the value that the run
was started with; *may change*: another value is logged, and leads to another model.
"""
TABLE = ["| flag | default | values | meaning | when resumed |", "|---|---|---|---|---|"]
# What argparse calls the flags outside of groups: before Python 3.10 "optional arguments".
TITLES = dict.fromkeys(("options", "optional arguments"), "Flags of the original example")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.parse_args().file.write_text(page(), encoding="utf-8")


def page() -> str:
    """Returns the whole page."""
    lines = [HEADING]
    for group in train_flags.build_parser()._action_groups:
        rows = [row(action) for action in group._group_actions if action.option_strings]
        rows = [text for text in rows if not text.startswith("| `-h`")]
        if rows:
            title = group.title or ""
            title = TITLES.get(title, title[:1].upper() + title[1:])
            lines += [f"## {title}", "", *TABLE, *rows, ""]
    return "\n".join(lines)


def row(action: argparse.Action) -> str:
    """Returns the line of a flag in a table."""
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    help_text = (action.help or "").replace("%%", "%")
    flag = None if help_text.startswith("another name") else FLAGS.get(action.dest)
    if flag:
        # Names that are rows of a table are not listed: a new row would make the page out of date.
        choices = f": {', '.join(flag.choices)}" if flag.choices else ""
        help_text = f"{flag.help}{choices}"
    default = action.default
    has_default = not isinstance(default, bool) and default not in (None, argparse.SUPPRESS, "")
    cells = [
        names,
        f"`{short(str(default))}`" if has_default else "",
        values(flag) if flag else "",
        help_text,
        {SAME: "**same**", MAY_CHANGE: "*may change*"}.get(flag.on_resume, "") if flag else "",
    ]
    return f"| {' | '.join(cells)} |"


def values(flag: Flag) -> str:
    """Returns the range of a number, for a cell of a table."""
    ranges = {
        "at least": flag.at_least,
        "above": flag.above,
        "at most": flag.at_most,
        "below": flag.below,
    }
    limits = [f"{word} {limit}" for word, limit in ranges.items() if limit not in (None, math.inf)]
    return ", ".join(limits)


def short(path: str) -> str:
    """Returns a path with the home folder as ``~``, so that the page is equal on all machines."""
    home = os.path.expanduser("~")
    return path.replace(home, "~", 1) if path.startswith(f"{home}/") else path


if __name__ == "__main__":
    main()
