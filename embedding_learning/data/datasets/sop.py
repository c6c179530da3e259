"""Stanford Online Products: Oh Song, Xiang, Jegelka, Savarese, Deep Metric Learning via Lifted
Structured Feature Embedding, CVPR 2016.

The folder holds ``Ebay_train.txt`` and ``Ebay_test.txt``, with a header and then a line an image:
image_id, class_id, super_class_id and the path below the folder. 11,318 classes train (59,551
images) and 11,316 test (60,502 images), which are searched among each other; no boxes.
"""

from __future__ import annotations

from pathlib import Path

from embedding_learning.data.datasets.splits import ListedImage, split_by_lists
from embedding_learning.data.datasets.text_files import check_folder, parse_class_number, read_table
from embedding_learning.data.image_set import Split
from embedding_learning.errors import DataError

NAME = "Stanford Online Products"
TRAIN, TEST = "Ebay_train.txt", "Ebay_test.txt"
_LAYOUT = f"the folder of {NAME} holds {TRAIN} and {TEST}"


def read(folder: Path) -> Split:
    """The images as the two lists split them, the classes in the order of their numbers.

    Raises DataError that names the file and the line of whatever is wrong.
    """
    check_folder(folder)
    entries = _entries(folder, TRAIN, "train") + _entries(folder, TEST, "test")
    return split_by_lists(NAME, folder, entries)


def _entries(folder: Path, name: str, part: str) -> list[ListedImage]:
    file, start = folder / name, f"{folder}/"
    entries = []
    for line, (_, label, _, path) in read_table(
        file, "image_id class_id super_class_id path", _LAYOUT
    ):
        number = parse_class_number(label, f"{file}:{line}")
        entries.append(ListedImage(start + path, number, part, None, file, line))
    if not entries:
        raise DataError(f"{file}: lists no image; fetch it again")
    return entries
