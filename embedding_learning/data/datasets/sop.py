"""Stanford Online Products: Oh Song, Xiang, Jegelka, Savarese, Deep Metric Learning via Lifted
Structured Feature Embedding, CVPR 2016.

The folder holds ``Ebay_train.txt`` and ``Ebay_test.txt``. Each has a header and then one line per
image: image_id, class_id, super_class_id and the path in the folder. 11,318 classes train (59,551
images) and 11,316 test (60,502 images). Test images are searched among each other. No boxes.
"""

from __future__ import annotations

from pathlib import Path

from embedding_learning.data.datasets.splits import ListedImage, split_by_lists
from embedding_learning.data.datasets.text_files import (
    check_folder,
    parse_number,
    read_table,
)
from embedding_learning.data.image_set import Split
from embedding_learning.errors import DataError

NAME = "Stanford Online Products"
TRAIN, TEST = "Ebay_train.txt", "Ebay_test.txt"
_LAYOUT = f"the folder of {NAME} holds {TRAIN} and {TEST}"


def read(folder: Path) -> Split:
    """Reads the images and the split of the two lists; classes are ordered by their numbers.

    Raises DataError that names the file and the line of an error.
    """
    check_folder(folder)
    images = _read_list(folder, TRAIN, "train") + _read_list(folder, TEST, "test")
    return split_by_lists(NAME, folder, images)


def _read_list(folder: Path, name: str, part: str) -> list[ListedImage]:
    file, start = folder / name, f"{folder}/"
    images = []
    for line, (_, label, _, path) in read_table(
        file, "image_id class_id super_class_id path", _LAYOUT
    ):
        number = parse_number(label, f"{file}:{line}")
        images.append(ListedImage(start + path, number, part, None, file, line))
    if not images:
        raise DataError(f"{file}: lists no image; fetch it again")
    return images
