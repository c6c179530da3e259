"""The test images of a data set that a model embeds: without those that cannot be decoded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from embedding_learning.config import TestImages
from embedding_learning.data.preprocessing import ORIGINAL_PREPROCESSING, Pixels
from embedding_learning.errors import DataError
from embedding_learning.inference.embedded_split import EmbeddedSplit, embed_split

PARTS = ("train", "train", "query", "query", "gallery", "gallery")


@pytest.fixture
def model() -> Any:
    """Stands in for a model: the embedding of an image is its mean color."""

    def embed_batches(pixels: Pixels, size: int, workers: int) -> Any:
        for row in range(pixels.shape[0]):
            yield pixels[row].mean(axis=(0, 1))[None]

    return SimpleNamespace(
        description={"bbox": True, "train_classes": None, "image_size": 8},
        preprocessing=ORIGINAL_PREPROCESSING,
        choose_batch_size=lambda count, most: 1,
        embed_batches=embed_batches,
    )


def embed(model: Any, folder: Path, bad: set[int]) -> EmbeddedSplit:
    """Embeds six images, of which `bad` are no images. Image number n has the gray 10 n."""
    lines = ["path,label,split"]
    for number, part in enumerate(PARTS):
        file = folder / f"{number}.png"
        cv2.imwrite(str(file), np.full((8, 8, 3), 10 * number, np.uint8))
        if number in bad:
            file.write_text("no image")
        lines.append(f"{file.name},{'ab'[number % 2]},{part}")
    (folder / "photos.csv").write_text("\n".join(lines))
    images = TestImages(str(folder / "photos.csv"), "", skip_bad_images=True)
    return embed_split(model, images, batch_size=1, workers=1)


def test_bad_images_are_left_out(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = embed(model, tmp_path, bad={0, 3, 4})
    assert found.queries.tolist() == [[20.0] * 3]
    assert found.gallery is not None and found.gallery.tolist() == [[50.0] * 3]
    assert [len(part) for part in found.split.parts] == [2, 1, 1]
    # Images that train are not decoded.
    skipped = [line.split(": ")[1] for line in caplog.messages if line.startswith("Skipped: ")]
    assert sorted(skipped) == [str(tmp_path / "3.png"), str(tmp_path / "4.png")]


@pytest.mark.parametrize("bad, role", [({2, 3}, "that test"), ({4, 5}, "of the gallery")])
def test_a_part_with_nothing_but_bad_images_is_refused(
    model: Any, tmp_path: Path, bad: set[int], role: str
) -> None:
    message = rf"^photos\.csv: none of the 2 images {role} can be decoded; unpack the images again"
    with pytest.raises(DataError, match=message):
        embed(model, tmp_path, bad)
