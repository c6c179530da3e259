"""In-Shop Clothes Retrieval: Liu, Luo, Qiu, Wang, Tang, DeepFashion: Powering Robust Clothes
Recognition and Retrieval with Rich Annotations, CVPR 2016.

``list_eval_partition.txt``, in the folder or in its ``Eval/``, has the number of images, a header
and then one line per image: its name, item and part (train, query or gallery). 3,997 items train
(25,882 images). Of 3,985 others, 14,218 queries are searched in a gallery of 12,612 images. The
images are in ``img/`` or ``Img/img/``.

``list_bbox_inshop.txt``, in the folder or in its ``Anno/``, holds boxes and may be missing. Its
corners are not documented. They are read as in MATLAB: counted from 1, and both in the box.
"""

from __future__ import annotations

from pathlib import Path

from embedding_learning.data.datasets.splits import ListedImage, split_by_lists
from embedding_learning.data.datasets.text_files import check_folder, parse_box, read_table
from embedding_learning.data.image_set import Split
from embedding_learning.errors import DataError

NAME = "In-Shop Clothes Retrieval"
PARTITION, BOXES = "list_eval_partition.txt", "list_bbox_inshop.txt"
_PARTS = ("train", "query", "gallery")
_LAYOUT = (
    f"the folder of {NAME} holds {PARTITION} (image_name item_id evaluation_status), there or in "
    "Eval/, and img/ or Img/img/"
)


def read(folder: Path, use_boxes: bool = True) -> Split:
    """Reads the images and the split of the list; classes are ordered by the items' names.

    Raises DataError that names the file and the line of an error.
    """
    check_folder(folder)
    file = _find_file(folder, "Eval", PARTITION)
    rows = read_table(file, "image_name item_id evaluation_status", _LAYOUT, counted=True)
    boxes_file = _find_file(folder, "Anno", BOXES)
    boxes = _read_boxes(boxes_file) if use_boxes and boxes_file.is_file() else None

    start = f"{_find_images_folder(folder)}/"
    images = []
    for line, (image, item, part) in rows:
        if part not in _PARTS:
            expected = ", ".join(_PARTS)
            raise DataError(
                f"{file}:{line}: expected one of {expected}, but found {part!r}; {_LAYOUT}"
            )
        if boxes is not None and image not in boxes:
            raise DataError(
                f"{boxes_file}: has no line for {image} ({file}:{line}); fetch the file again, or "
                "ignore the boxes with --no-bbox"
            )
        box = None if boxes is None else boxes[image]
        images.append(ListedImage(start + image, item, part, box, file, line))
    return split_by_lists(NAME, file, images)


def _find_file(folder: Path, subfolder: str, name: str) -> Path:
    """Returns the path of the file in the subfolder if it exists there, else in the folder."""
    file = folder / subfolder / name
    return file if file.is_file() else folder / name


def _find_images_folder(folder: Path) -> Path:
    """Returns the folder that holds img/. Tries Img/ first: some systems confuse it with img/."""
    for parent in (folder / "Img", folder):
        if (parent / "img").is_dir():
            return parent
    raise DataError(f"{folder / 'img'}: no such folder; unpack img.zip there or into Img/")


def _read_boxes(file: Path) -> dict[str, list[int]]:
    header = "image_name clothes_type pose_type x_1 y_1 x_2 y_2"
    boxes: dict[str, list[int]] = {}
    for line, (image, _, _, *corners) in read_table(
        file, header, "ignore the boxes with --no-bbox", counted=True
    ):
        if image in boxes:
            raise DataError(
                f"{file}:{line}: {image} is listed a second time; remove one of the lines"
            )
        boxes[image] = parse_box(corners, f"{file}:{line}", corners=True)
    return boxes
