"""The kinds of files that the program reads, with a small valid sample of each.

To add one: a function that writes a sample into an empty folder, one that reads it as the program
does, and a line in KINDS. Both import what they need when they are called, so that a run loads
MXNet only where it is read with.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from PIL import Image

from embedding_learning.config import TrainConfig
from embedding_learning.data import datasets
from embedding_learning.data.datasets import cub200
from embedding_learning.data.pixel_cache import open_pixel_cache
from embedding_learning.data.preprocessing import find_decoding_errors, read_square
from embedding_learning.errors import DataError
from tests.fuzzing import crafted, samples
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from embedding_learning.training.learner import Learner

_SCRIPT = ROOT / "get_cub200_data.sh"
_SIZE = 8


class Kind(NamedTuple):
    """How a kind of file is tried.

    ``write`` writes a sample into a folder that is there and empty; of its files, those that a
    pattern of ``files`` fits are changed. ``read`` reads the sample as the program does. ``craft``
    changes a file's bytes knowing the format. With ``starts_programs`` the reading starts some: it
    is tried on a tenth of the mutations, and on plain files only.
    """

    write: Callable[[Path], object]
    files: tuple[str, ...]
    read: Callable[[Path], object]
    craft: Callable[[Random, bytes], bytes] | None = None
    starts_programs: bool = False


def _read_data_set(path: Path) -> None:
    """What training and `check` do with a data set before a batch is drawn."""
    split = datasets.load(str(path), "nowhere")
    for part in split.parts:
        part.read_file_stats(missing_ok=True)
        for fault in find_decoding_errors(part, _SIZE, workers=1).values():
            raise DataError(fault)


def _write_pictures(folder: Path) -> None:
    """Of every format that is read, and of every kind of it that decoders treat apart."""
    samples.write_images(folder, ["a.jpg", "b.png", "c.bmp", "d.tiff", "e.webp", "f.ppm"])
    color, gray = samples.pixels(7, 40), samples.pixels(8)[..., 0]
    for name, pixels, *settings in [
        ("g.jpg", color, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        ("h.png", gray.astype(np.uint16) * 257),
        ("i.jpg", color, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        ("j.tiff", color, cv2.IMWRITE_TIFF_COMPRESSION, 8),
        ("k.tiff", color.astype(np.uint16) * 257, cv2.IMWRITE_TIFF_COMPRESSION, 5),
        ("l.tiff", color, cv2.IMWRITE_TIFF_COMPRESSION, 32773),
        ("m.webp", color, cv2.IMWRITE_WEBP_QUALITY, 80),
        ("n.pgm", gray.astype(np.uint16) * 257),
        ("o.ppm", color, cv2.IMWRITE_PXM_BINARY, 0),
        ("p.pbm", gray),
    ]:
        assert cv2.imwrite(str(folder / name), pixels, settings)
    still = Image.fromarray(color)
    turned = [still.rotate(90)]
    still.convert("CMYK").save(folder / "q.jpg")
    still.save(folder / "r.tiff", compression="jpeg")
    still.convert("1").save(folder / "s.tiff", compression="group4")
    still.convert("P").save(folder / "t.bmp")
    still.convert("RGBA").save(folder / "u.png", save_all=True, append_images=turned)
    still.save(folder / "v.webp", save_all=True, append_images=turned)
    still.save(folder / "w.tiff", save_all=True, append_images=turned, big_tiff=True)
    (folder / "x.png").write_bytes(samples.animation_of_16_bits())


def _read_pictures(folder: Path) -> None:
    """Each file becomes pixels of 8 bits, or is refused."""
    for file in sorted(folder.iterdir()):
        pixels = read_square(str(file), np.array([2, 3, 9, 9]), _SIZE)
        assert (pixels.shape, pixels.dtype) == ((_SIZE, _SIZE, 3), np.uint8)


def _write_other_pictures(folder: Path) -> None:
    """Of formats that are not read, but for their first bytes as OpenCV writes them, or noise."""
    color = samples.pixels(7, 40)
    for ending in ("jp2", "sr", "pam"):
        assert cv2.imwrite(str(folder / f"a.{ending}"), color)
    for ending in ("pfm", "hdr"):
        assert cv2.imwrite(str(folder / f"a.{ending}"), color.astype(np.float32) / 255)
    noise = color.tobytes()[:600]
    for name, signature in {
        "gif": b"GIF89a",
        "exr": b"v/1\x01\x02\0\0\0",
        "avif": b"\0\0\0\x1cftypavif\0\0\0\0mif1",
        "j2k": b"\xff\x4f\xff\x51\0\x2f",
        "jxl": b"\xff\x0a",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'>",
        "ico": b"\0\0\1\0\1\0",
        "html": b"<!DOCTYPE html>",
    }.items():
        (folder / f"b.{name}").write_bytes(signature + noise)


def _read_other_pictures(folder: Path) -> None:
    """Each is refused, unless a change has made a format of it that is read."""
    for file in sorted(folder.iterdir()):
        with contextlib.suppress(DataError):
            assert read_square(str(file), None, _SIZE).dtype == np.uint8


def _write_store(folder: Path) -> None:
    """With what a build that was killed leaves behind."""
    samples.write_cub(folder)
    _read_store(folder)
    (home,) = (folder / "store").iterdir()
    for name in ("index", "pixels"):
        (home / f"{name}.new").write_bytes(b"begun")


def _read_store(folder: Path) -> None:
    store = open_pixel_cache(cub200.read(folder), _SIZE, folder / "store", workers=2)
    if store is not None:
        pixels, good = store
        assert pixels.sum() > 0 and good.all()


def _write_parameters(folder: Path) -> None:
    """As MXNet writes them, and as this program does."""
    import mxnet as mx

    from embedding_learning.model.weights.params_file import save_parameters
    from tests.helpers.tiny_networks import small_net

    net = small_net([mx.cpu()])
    net.save_parameters(str(folder / "plain.params"))
    description = {"model": "resnet50_v2", "embed_dim": 8, "classes": ["a", "b"], "mean": [0.5]}
    save_parameters(net, str(folder / "described.params"), description)


def _read_parameters(folder: Path) -> None:
    from embedding_learning.model.weights.params_file import read_description, read_parameters

    for name in ("plain.params", "described.params"):
        file = str(folder / name)
        for array in read_parameters(file, "--resume").values():
            array.asnumpy()
        read_description(file, "--resume")


# A part of VGG by torchvision's names.
_WEIGHTS = {
    "features.0.weight": (4, 3, 3, 3),
    "features.0.bias": (4,),
    "classifier.0.weight": (5, 6),
    "classifier.6.bias": (7,),
}


def _write_weights(folder: Path) -> None:
    """As torch.save writes them today and did once, and as safetensors."""
    from safetensors.numpy import save_file

    from tests.helpers import torch_writer

    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=s).astype(np.float32) for name, s in _WEIGHTS.items()}
    torch_writer.write_pth(folder / "new.pth", arrays)
    torch_writer.write_old_pth(folder / "old.pth", arrays)
    save_file(arrays, folder / "new.safetensors")


def _read_weights(folder: Path) -> None:
    import mxnet as mx

    from embedding_learning.model.weights.pretrained import load_weights

    names = {"features.0.weight": 0, "features.0.bias": 1, "features.21.weight": 2}
    shapes = list(_WEIGHTS.values())
    for name in ("new.pth", "old.pth", "new.safetensors"):
        parameters = {key: mx.gluon.Parameter(key, shape=shapes[n]) for key, n in names.items()}
        load_weights(str(folder / name), "FILE", "vgg11", parameters, set(), [mx.cpu()])
        for parameter in parameters.values():
            assert np.isfinite(parameter.data().asnumpy()).all()


_RUN = ["--batch-size=4", "--batch-k=2", "--embed-dim=8", "--batch-num=10"]


def _learner() -> tuple[TrainConfig, Learner]:
    import mxnet as mx

    from embedding_learning.cli.train_flags import parse
    from embedding_learning.training import build
    from tests.helpers.tiny_networks import each_class, small_net

    options, devices = parse(_RUN), [mx.cpu()]
    return options, build.build(options, each_class(5), small_net(devices), devices)


def _write_checkpoint(folder: Path) -> None:
    from embedding_learning.training import checkpoint_file, learner_state, resume
    from tests.helpers.tiny_networks import batch_of

    options, learner = _learner()
    learner.step(batch_of(4))
    arrays, state = learner_state.gather(learner)
    state = {"learner": state, **resume.describe(config, "sum of the data", Progress())}
    checkpoint_file.write(folder / "checkpoint-0001-000003.safetensors", arrays, state)


def _read_checkpoint(folder: Path) -> None:
    from embedding_learning.training import checkpoint_file, learner_state, resume

    options, learner = _learner()
    file = str(folder / "checkpoint-0001-000003.safetensors")
    checkpoint = checkpoint_file.find(file, "nowhere")
    resume.check_flags(checkpoint, options)
    resume.read_progress(checkpoint, options.batch_num)
    resume.check_data(checkpoint, "sum of the data", options)
    state = checkpoint.state.get("learner")
    if isinstance(state, dict):
        learner_state.restore(learner, checkpoint.arrays, state, f"--resume {file}")


def _write_archive(folder: Path) -> None:
    with tarfile.open(folder / "served.tgz", "w:gz") as archive:
        for name in ("images.txt", "image_class_labels.txt", "bounding_boxes.txt", "images/a.jpg"):
            member = tarfile.TarInfo(f"CUB_200_2011/{name}")
            member.size = 600
            archive.addfile(member, io.BytesIO(samples.pixels(0).tobytes()[:600]))
    content = (folder / "served.tgz").read_bytes()
    sum_of_content = hashlib.md5(content, usedforsecurity=False).hexdigest()
    (folder / "sum").write_text(sum_of_content, encoding="ascii")


def _read_archive(folder: Path) -> None:
    """Once downloaded and, if that is refused, once put there by hand."""
    if shutil.which("curl"):
        try:
            _get_data(folder / "downloaded", folder, left=[])
            return
        except DataError:
            pass
    checkout = folder / "by_hand"
    (checkout / "data").mkdir(parents=True)
    shutil.copy(folder / "served.tgz", checkout / "data" / "CUB_200_2011.tgz")
    _get_data(checkout, folder, left=["CUB_200_2011.tgz"])


def _get_data(checkout: Path, served: Path, left: list[str]) -> None:
    """Runs the script in a checkout; it unpacks, or refuses, and then only `left` is in data/."""
    checkout.mkdir(exist_ok=True)
    shutil.copy(_SCRIPT, checkout)
    address = {"CUB200_URL": f"file://{served}/served.tgz"}
    checksum = {"CUB200_MD5": (served / "sum").read_text(encoding="ascii")}
    result = subprocess.run(
        ["bash", str(checkout / _SCRIPT.name)],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(checkout),
            "LC_ALL": "C",
            **address,
            **checksum,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    found = sorted(entry.name for entry in (checkout / "data").iterdir())
    if result.returncode == 0:
        assert found == ["CUB_200_2011", "CUB_200_2011.tgz"], found
        return
    assert (result.returncode, found) == (1, left), (result, found)
    raise DataError(result.stderr.decode().rstrip("\n"))


KINDS = {
    "cub200-images": Kind(samples.write_cub, ("images.txt",), _read_data_set),
    "cub200-labels": Kind(samples.write_cub, ("image_class_labels.txt",), _read_data_set),
    "cub200-boxes": Kind(samples.write_cub, ("bounding_boxes.txt",), _read_data_set),
    "cub200-classes": Kind(samples.write_cub, ("classes.txt",), _read_data_set),
    "cars196": Kind(samples.write_cars, ("cars_annos.mat",), _read_data_set, crafted.mat),
    "sop": Kind(samples.write_sop, ("Ebay_*.txt",), _read_data_set),
    "inshop": Kind(samples.write_inshop, ("*/list_*.txt",), _read_data_set),
    "csv": Kind(samples.write_csv, ("own.csv",), lambda folder: _read_data_set(folder / "own.csv")),
    "pictures": Kind(_write_pictures, ("*",), _read_pictures, crafted.image),
    "other-pictures": Kind(_write_other_pictures, ("*",), _read_other_pictures, crafted.image),
    "store": Kind(_write_store, ("store/*/*",), _read_store),
    "params": Kind(_write_parameters, ("*.params",), _read_parameters, crafted.parameters),
    "weights": Kind(_write_weights, ("*",), _read_weights, crafted.weights),
    "checkpoint": Kind(_write_checkpoint, ("*",), _read_checkpoint, crafted.checkpoint),
    "archive": Kind(_write_archive, ("served.tgz",), _read_archive, starts_programs=True),
}
