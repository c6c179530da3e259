"""Functions that write small data sets, each in its own format, into a folder."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np


def pixels(number: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def write_images(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), pixels(number))


def animation_of_16_bits(side: int = 16) -> bytes:
    """Returns a PNG file of 16 bits a channel and two frames; the first is also its still image."""
    still = cv2.imencode(".png", pixels(0, side).astype(np.uint16) * 257)[1].tobytes()
    at = still.index(b"IDAT") - 4
    end = still.index(b"IEND") - 4
    data = zlib.compress(zlib.decompress(still[at + 8 : end - 4]))
    frame = struct.pack(">IIIIHHBB", side, side, 0, 0, 1, 10, 0, 0)
    return b"".join(
        [
            still[:at],
            _chunk(b"acTL", struct.pack(">II", 2, 0)),
            _chunk(b"fcTL", struct.pack(">I", 0) + frame),
            _chunk(b"IDAT", data),
            _chunk(b"fcTL", struct.pack(">I", 1) + frame),
            _chunk(b"fdAT", struct.pack(">I", 2) + data),
            still[end:],
        ]
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    """Returns a chunk of a PNG file: its size, name, data and checksum."""
    checksum = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + checksum


def write_lines(file: Path, *lines: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_cub(folder: Path) -> None:
    names = [f"{number:03d}.Bird/{image}.jpg" for number in (1, 2, 3) for image in (1, 2)]
    write_images(folder / "images", names)
    columns = {
        "images": names,
        "image_class_labels": [1, 1, 2, 2, 3, 3],
        "bounding_boxes": ["2.0 1.0 12.5 9.0"] * 6,
        "classes": ["001.Bird", "002.Bird", "003.Bird"],
    }
    for file, values in columns.items():
        lines = (f"{number} {value}" for number, value in enumerate(values, 1))
        write_lines(folder / f"{file}.txt", *lines)


def write_cars(folder: Path) -> None:
    from scipy.io import savemat

    names = [f"car_ims/{number}.jpg" for number in range(1, 5)]
    write_images(folder, names)
    fields = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    annotations = np.empty((1, 4), [(field, object) for field in fields])
    for row, name in enumerate(names):
        annotations[0, row] = (name, 1, 1, 12, 14, row // 2 + 1, row % 2)
    class_names = np.empty((1, 2), object)
    class_names[0] = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    savemat(folder / "cars_annos.mat", {"annotations": annotations, "class_names": class_names})


def write_sop(folder: Path) -> None:
    for part, classes in (("train", (1, 2)), ("test", (3, 4))):
        names = [f"chair_final/{number}_{image}.JPG" for number in classes for image in (0, 1)]
        write_images(folder, names)
        rows = [f"{row} {classes[row // 2]} 1 {name}" for row, name in enumerate(names)]
        write_lines(folder / f"Ebay_{part}.txt", "image_id class_id super_class_id path", *rows)


def write_inshop(folder: Path) -> None:
    names = [f"img/id_{number}/0{image}.jpg" for number in (1, 2) for image in range(4)]
    write_images(folder, names)
    parts = ["train"] * 4 + ["query", "query", "gallery", "gallery"]
    rows = [f"{name:40} {name[4:8]} {part}" for name, part in zip(names, parts)]
    header = "image_name item_id evaluation_status"
    write_lines(folder / "Eval" / "list_eval_partition.txt", "8", header, *rows)
    header = "image_name clothes_type pose_type x_1 y_1 x_2 y_2"
    rows = [f"{name:40} 1 2 003 002 014 012" for name in names]
    write_lines(folder / "Anno" / "list_bbox_inshop.txt", "8", header, *rows)


def write_pairs(folder: Path) -> None:
    """Writes the same pairs of images in the format of LFW and as CSV."""
    write_images(folder, [f"{name}/{name}_000{number}.jpg" for name in "AB" for number in (1, 2)])
    write_lines(folder / "pairs.txt", "2\t1", "A\t1\t2", "A\t1\tB\t1", "B\t1\t2", "A\t2\tB\t2")
    rows = ("1,A/A_0002.jpg,same,0", "1,B/B_0001.jpg,different,0", "2,A/A_0001.jpg,same,1")
    rows += ("2,B/B_0001.jpg,different,1",)
    lines = [f"A/A_000{row[0]}.jpg{row[1:]}" for row in rows]
    write_lines(folder / "pairs.csv", "first,second,type,fold", *lines)


def write_csv(folder: Path) -> None:
    names = [f"{number} é.png" for number in range(6)]
    write_images(folder, names)
    parts = ["train", "train", "query", "query", "gallery", "gallery"]
    rows = [f'"{name}",{name[0]},{part},1,2,10,11.5' for name, part in zip(names, parts)]
    write_lines(folder / "own.csv", "path,label,split,x,y,width,height", *rows)
