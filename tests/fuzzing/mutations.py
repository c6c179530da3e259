"""Random changes to the bytes of any file. Generators with equal seeds give equal changes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

_NUMBER = re.compile(rb"[-+]?\d+(?:\.\d+)?")
_WORD = re.compile(rb"[^\s,]+")

_POWERS = [
    sign * 2**bits + more for bits in (7, 15, 31, 63, 64) for sign in (1, -1) for more in (-1, 0)
]
_NUMBERS = [
    *b"0 -0 -1 1.5 00001 +7 1_0 0x10 1e308 1e400 -1e400 1e-400 nan NaN inf -inf".split(),
    *(str(number).encode() for number in _POWERS),
    *(b"9" * 400, b"9" * 5000),  # above the largest float; longer than what int() accepts
    *("٣ ３ ² ½ Ⅷ 𝟗 −1 1,5".encode().split()),
]
# The folder `outside` is next to the sample's; see workers.py.
_PATHS = [
    *b"/etc/passwd ../../../../../../../../etc/passwd /dev/zero /dev/stdin /proc/self/mem".split(),
    *(b"../" * up + name for up in range(1, 5) for name in (b"outside/pipe", b"outside/precious")),
    *(b".", b"..", b"/", b"//", b"~/.ssh", b"a/../b", b"images/", b"CON", b"C:\\x", b"-rf"),
    *(b"%s%n%x", b"$(touch x)", b"`touch x`", b"; touch x", b"{0.__class__}", b"a" * 300),
    *(
        b"two\nlines.jpg",
        b'"two\nlines.jpg"',
        b"red\x1b[31m.jpg",
        b"\xe2\x80\xae.jpg",
        b"a\x00.jpg",
    ),
]
_BYTES = [
    *(b"\x00", b"\x00" * 9, b"\xff", b"\xff" * 8, b"\xfe\xff", b"\xef\xbb\xbf", b"\x80\x04\x95"),
    *(b"\r", b"\r\n", b"\n", b"\n\n", b"\t", b" ", b",", b'"', b"'", b"\x0b", b"\x1b]0;x\x07"),
    *(b"\xc2\x85", b"\xe2\x80\xa8", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe3"),
    *(b"a" * 10_000, b"9" * 10_000, b"\xf0\x9f\x90\xa6" * 100_000, b'"' * 10_000, b"," * 10_000),
]
_COUNTS = [b"\xff", b"\x7f", b"\x00", b"\x80", b"\x01"]


def mutate_bytes(rng: Random, content: bytes) -> bytes:
    """Returns the content after one to three changes; it always differs from before."""
    new = content
    while new == content:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            new = rng.choice(_CHANGES)(rng, new)
    return new


def _cut_off(rng: Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _cut_out(rng: Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.randint(1, 64) :]


def _flip_bits(rng: Random, content: bytes) -> bytes:
    new = bytearray(content)
    for _ in range(rng.randint(1, 8) if new else 0):
        new[rng.randrange(len(new))] ^= 1 << rng.randrange(8)
    return bytes(new)


def _overwrite(rng: Random, content: bytes) -> bytes:
    return _put(rng, content, rng.getrandbits(128).to_bytes(16, "big")[: rng.randint(1, 16)])


def _overwrite_count(rng: Random, content: bytes) -> bytes:
    """Overwrites two, four or eight bytes, where binary files often have a size."""
    return _put(rng, content, rng.choice(_COUNTS) * rng.choice((2, 4, 4, 8)), aligned=True)


def _put(rng: Random, content: bytes, new: bytes, aligned: bool = False) -> bytes:
    start = rng.randrange(len(content) + 1)
    if aligned:
        start -= start % 4
    return content[:start] + new + content[start + len(new) :]


def _insert(rng: Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.choice(_BYTES) + content[start:]


def _append(rng: Random, content: bytes) -> bytes:
    return content + rng.choice(_BYTES)


def _repeat(rng: Random, content: bytes) -> bytes:
    """Repeats a run of bytes up to a thousand times."""
    start = rng.randrange(len(content) + 1)
    run = content[start : start + rng.randint(1, 64)]
    return content[:start] + run * rng.choice((2, 3, 1000)) + content[start + len(run) :]


def _replace_number(rng: Random, content: bytes) -> bytes:
    return _replace(rng, _NUMBER, rng.choice(_NUMBERS), content)


def _replace_word(rng: Random, content: bytes) -> bytes:
    return _replace(rng, _WORD, rng.choice((rng.choice(_PATHS), rng.choice(_BYTES))), content)


def _replace(rng: Random, pattern: re.Pattern[bytes], new: bytes, content: bytes) -> bytes:
    """Replaces one match of the pattern."""
    spans = [match.span() for match in pattern.finditer(content)]
    if not spans:
        return content
    start, end = rng.choice(spans)
    return content[:start] + new + content[end:]


def _swap_words(rng: Random, content: bytes) -> bytes:
    words = [match.group() for match in _WORD.finditer(content)] or [b""]
    return _replace(rng, _WORD, rng.choice(words), content)


def _change_lines(rng: Random, content: bytes) -> bytes:
    """Drops, doubles or swaps lines."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    change = rng.choice(("drop", "double", "swap"))
    if change == "drop":
        del lines[i]
    elif change == "double":
        lines.insert(j, lines[i])
    else:
        lines[i], lines[j] = lines[j], lines[i]
    return b"".join(lines)


def _change_encoding(rng: Random, content: bytes) -> bytes:
    return content.decode("latin-1").encode(rng.choice(("utf-16", "utf-32-be", "utf-7", "cp500")))


_CHANGES: list[Callable[[Random, bytes], bytes]] = [
    *(_cut_off, _cut_out, _flip_bits, _overwrite, _overwrite_count, _insert, _append, _repeat),
    *(_replace_number, _replace_number, _replace_word, _replace_word, _swap_words),
    *(_change_lines, _change_lines, _change_encoding),
]


def replace_file(rng: Random, file: Path, outside: Path) -> None:
    """Removes the file, and may create something else under its name."""
    file.unlink()
    new = rng.choice(("nothing", "folder", "pipe", "zeros", "loop", "link", "dangling", "huge"))
    if new == "folder":
        file.mkdir()
    elif new == "pipe":
        os.mkfifo(file)
    elif new == "huge":  # takes no space on the disk
        with open(file, "wb") as empty:
            empty.truncate(2**36)
    elif new != "nothing":
        targets = {
            "zeros": Path("/dev/zero"),
            "loop": file,
            "link": outside / "precious",
            "dangling": outside / "new",
        }
        file.symlink_to(targets[new])
