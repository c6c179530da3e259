"""The checked reader of binary files: nothing beyond the end, and nothing backward."""

from __future__ import annotations

import io

import pytest

from embedding_learning.model.weights.binary_reader import BinaryReader


def reader_of(content: bytes = b"\1\0\2\0\0\0rest") -> BinaryReader:
    return BinaryReader(io.BytesIO(content), "is damaged")


def test_integers_and_bytes_are_read_in_order() -> None:
    reader = reader_of()
    assert reader.size == reader.count_left() == 10
    assert reader.read_integers("HI") == (1, 2)
    reader.skip(1)
    assert reader.read(3) == b"est"
    assert reader.count_left() == 0
    assert reader.read(0) == b""


@pytest.mark.parametrize("length", [11, 2**31, 2**63, 2**64, -1])
def test_a_length_that_the_file_does_not_have_is_refused(length: int) -> None:
    reader = reader_of()
    for move in (reader.read, reader.skip):
        with pytest.raises(ValueError, match=r"^is damaged$"):
            move(length)
        assert reader.file.tell() == 0


def test_integers_beyond_the_end_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^is damaged$"):
        reader_of(b"\1\2\3").read_integers("I")
