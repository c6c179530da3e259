"""The flags of the original, and the data set in its format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedding_learning.cli import train_flags
from embedding_learning.data.datasets import ImageSet, Split
from embedding_learning.original import processes


def test_the_flags_are_those_of_the_original(tmp_path: Path) -> None:
    config = train_flags.parse(
        ["--total-batch-size=60", "--gpus=0,2,3", "--pretrained-params=x", "--nu=2"]
    )
    flags = processes.flags(config, tmp_path, tmp_path / "model")
    # The original multiplies the batch size by the devices.
    for flag in ("--batch-size=20", "--gpus=0,2,3", "--use-pretrained", "--nu=2.0", "--seed=123"):
        assert flag in flags
    again = train_flags.parse(flags)
    assert again.batch.total == 60 and again.optimizer.steps == (12, 14, 16, 18)


def test_on_the_cpu_with_random_weights(tmp_path: Path) -> None:
    flags = processes.flags(
        train_flags.parse(["--model=SqueezeNet1_1"]), tmp_path, tmp_path / "model"
    )
    assert "--model=squeezenet1.1" in flags
    assert not any(flag.startswith(("--gpus", "--use-pretrained")) for flag in flags)


@pytest.mark.parametrize("boxes", [True, False])
def test_any_split_becomes_the_layout_of_cub(tmp_path: Path, boxes: bool) -> None:
    images = [tmp_path / f"a bird {number}.png" for number in range(5)]
    for number, image in enumerate(images):
        image.write_bytes(bytes([number]))
    paths = [str(image) for image in images]
    box = np.arange(20, dtype=np.int32).reshape(5, 4) if boxes else None
    split = Split(
        "birds",
        ImageSet(paths[:3], np.int32([0, 1, 0]), ["x", "y"], None if box is None else box[:3]),
        ImageSet(paths[3:], np.int32([1, 0]), ["z", "w"], None if box is None else box[3:]),
    )
    folder = tmp_path / "data"
    processes.write_data(split, folder)
    # As the original reads them: lines side by side, the last word, a path below images.
    read = {
        name: (folder / f"{name}.txt").read_text().splitlines()
        for name in ("images", "image_class_labels", "bounding_boxes")
    }
    names = [line.split()[-1] for line in read["images"]]
    assert [(folder / "images" / name).read_bytes() for name in names] == [
        bytes([number]) for number in range(5)
    ]
    labels = [int(line.split()[-1]) - 1 for line in read["image_class_labels"]]
    assert labels == [0, 1, 0, 3, 2]
    found = [[int(float(v)) for v in line.split()[-4:]] for line in read["bounding_boxes"]]
    assert found == (box.tolist() if box is not None else [[0, 0, 10**6, 10**6]] * 5)


def test_what_a_process_said_last() -> None:
    fault = processes.create_error(
        "the original", "at step 3", "Traceback\n  x\nValueError: no\n\n"
    )
    assert str(fault) == "the original failed at step 3: ValueError: no"
    error = processes.create_error("here", "at all", "")
    assert str(error) == "here failed at all: without a message"
