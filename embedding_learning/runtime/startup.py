"""What a program does before anything else: its standard streams, and Ctrl-C while it loads.

Imports next to nothing, since Ctrl-C can come while the other modules are still being imported.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress


def prepare_process(program: str) -> None:
    """Mends the standard streams; from here on Ctrl-C ends the process with a line, status 130."""
    repair_streams()

    def interrupt(number: int, _: object) -> None:
        with suppress(OSError):
            os.write(2, f"{program}: interrupted\n".encode())
        # No exception: raised while a module is being imported, it could come out as another one.
        os._exit(128 + number)

    signal.signal(signal.SIGINT, interrupt)


def repair_streams() -> None:
    """Opens closed standard streams on /dev/null, and lets all of them write any character.

    A file that is opened while 1 or 2 is closed would get that number, and what libraries print
    would be written into it.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, so this one.
            os.open(os.devnull, mode)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold what the terminal's encoding, or any, has no bytes for.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
