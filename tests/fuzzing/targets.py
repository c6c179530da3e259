"""The fuzzing targets: a small valid sample of each file format, and how the program reads it.

To add a target, write a function that writes a sample into an empty folder, one that reads it as
the program does, and a row of TARGETS. Both functions import what they need when they are called:
so MXNet is loaded only by the targets that need it.
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
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from PIL import Image

from embedding_learning.config import TrainConfig
from embedding_learning.data import datasets
from embedding_learning.data.datasets import cub200, pairs
from embedding_learning.data.pixel_cache import open_pixel_cache
from embedding_learning.data.preprocessing import (
    ORIGINAL_PREPROCESSING,
    SHORTER_SIDE,
    Preprocessing,
    find_decoding_errors,
    read_square,
)
from embedding_learning.errors import DataError
from tests.fuzzing import format_mutations, samples
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from embedding_learning.training.learner import Learner

_SCRIPT = ROOT / "get_cub200_data.sh"
_SIZE = 8
_KEEPING_SHAPE = Preprocessing(resize_to=SHORTER_SIDE)


class Target(NamedTuple):
    """A file format to fuzz.

    Attributes
    ----------
    write : function
        Writes a sample into an existing, empty folder.
    files : tuple of str
        Patterns of the sample's files that are mutated.
    read : function
        Reads the sample as the program does.
    mutate_format : function, optional
        Changes a file's bytes with knowledge of the format.
    starts_programs : bool
        Reading starts programs. Only a tenth of the mutations are tried, and files stay files.
    """

    write: Callable[[Path], object]
    files: tuple[str, ...]
    read: Callable[[Path], object]
    mutate_format: Callable[[Random, bytes], bytes] | None = None
    starts_programs: bool = False


def _read_dataset(path: Path) -> None:
    """Reads and decodes a data set as training and `check` do before the first batch."""
    split = datasets.load_dataset(str(path), "nowhere")
    for part in split.parts:
        part.read_file_stats(missing_ok=True)
        for fault in find_decoding_errors(part, _SIZE, workers=1).values():
            raise DataError(fault)


def _write_images(folder: Path) -> None:
    """Writes images of each supported format, in each variant that decoders treat differently."""
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


def _read_images(folder: Path) -> None:
    """Decodes each file to pixels of 8 bits."""
    for file in sorted(folder.iterdir()):
        pixels = read_square(str(file), np.array([2, 3, 9, 9]), _SIZE)
        assert (pixels.shape, pixels.dtype) == ((_SIZE, _SIZE, 3), np.uint8)


def _write_unsupported(folder: Path) -> None:
    """Writes files of unsupported formats: OpenCV's, or a signature followed by noise."""
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


def _read_unsupported(folder: Path) -> None:
    """Reads each file. It must be refused, unless a mutation has made a supported format of it."""
    for file in sorted(folder.iterdir()):
        with contextlib.suppress(DataError):
            assert read_square(str(file), None, _SIZE).dtype == np.uint8


def _write_pixel_cache(folder: Path, preprocessing: Preprocessing = ORIGINAL_PREPROCESSING) -> None:
    """Writes a pixel cache, and the partial files of a process that was killed."""
    samples.write_cub(folder)
    _read_pixel_cache(folder, preprocessing)
    (home,) = (folder / "cache").iterdir()
    for name in ("index", "pixels"):
        (home / f"{name}.new").write_bytes(b"begun")


def _read_pixel_cache(folder: Path, preprocessing: Preprocessing = ORIGINAL_PREPROCESSING) -> None:
    images = cub200.read(folder)
    cache = open_pixel_cache(images, _SIZE, folder / "cache", 2, preprocessing=preprocessing)
    if cache is not None:
        pixels, is_decoded = cache
        assert sum(pixels[row].sum() for row in range(len(images))) > 0 and is_decoded.all()


def _write_params(folder: Path) -> None:
    """Writes a .params file as MXNet does, and one as this program does."""
    import mxnet as mx

    from embedding_learning.model.weights.params_file import save_parameters
    from tests.helpers.tiny_networks import small_net

    net = small_net([mx.cpu()])
    net.save_parameters(str(folder / "plain.params"))
    description = {"model": "resnet50_v2", "embed_dim": 8, "classes": ["a", "b"], "mean": [0.5]}
    save_parameters(net, str(folder / "described.params"), description)


def _read_params(folder: Path) -> None:
    from embedding_learning.model.weights.params_file import read_description, read_parameters

    for name in ("plain.params", "described.params"):
        file = str(folder / name)
        for array in read_parameters(file, "--resume").values():
            array.asnumpy()
        read_description(file, "--resume")


# Some weights of VGG by torchvision's names, with smaller shapes.
_WEIGHTS = {
    "features.0.weight": (4, 3, 3, 3),
    "features.0.bias": (4,),
    "classifier.0.weight": (5, 6),
    "classifier.6.bias": (7,),
}


def _write_weights(folder: Path) -> None:
    """Writes files in the present and the former format of torch.save, and a safetensors file."""
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


_FLAGS = ["--batch-size=4", "--batch-k=2", "--embed-dim=8", "--batch-num=10"]


def _learner() -> tuple[TrainConfig, Learner]:
    import mxnet as mx

    from embedding_learning.cli.train_flags import parse
    from embedding_learning.training import build
    from tests.helpers.tiny_networks import each_class, small_net

    config, devices = parse(_FLAGS), [mx.cpu()]
    return config, build.build(config, each_class(5), small_net(devices), devices)


def _write_checkpoint(folder: Path) -> None:
    from embedding_learning.training import checkpoint_file, learner_state, resume
    from embedding_learning.training.progress import Progress
    from tests.helpers.tiny_networks import batch_of

    config, learner = _learner()
    learner.step(batch_of(4))
    arrays, state = learner_state.gather(learner)
    state = {"learner": state, **resume.describe(config, "digest of the data", Progress())}
    checkpoint_file.write(folder / "checkpoint-0001-000003.safetensors", arrays, state)


def _read_checkpoint(folder: Path) -> None:
    from embedding_learning.training import learner_state, resume, run_folder

    config, learner = _learner()
    file = str(folder / "checkpoint-0001-000003.safetensors")
    checkpoint = run_folder.find(file, "nowhere")
    resume.check_flags(checkpoint, config)
    resume.read_progress(checkpoint, config.batch.batch_num)
    resume.check_data(checkpoint, "digest of the data", config.data.path)
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
    checksum = hashlib.md5(content, usedforsecurity=False).hexdigest()
    (folder / "md5").write_text(checksum, encoding="ascii")


def _read_archive(folder: Path) -> None:
    """Runs the script on the archive as a download and, if it is refused, as a local file."""
    if shutil.which("curl"):
        try:
            _run_script(folder / "downloaded", folder, left=[])
            return
        except DataError:
            pass
    checkout = folder / "local"
    (checkout / "data").mkdir(parents=True)
    shutil.copy(folder / "served.tgz", checkout / "data" / "CUB_200_2011.tgz")
    _run_script(checkout, folder, left=["CUB_200_2011.tgz"])


def _run_script(checkout: Path, served: Path, left: list[str]) -> None:
    """Runs get_cub200_data.sh in a checkout. Raises DataError if it refuses the archive.

    `left` are the files that data/ must contain after a refusal.
    """
    checkout.mkdir(exist_ok=True)
    shutil.copy(_SCRIPT, checkout)
    result = subprocess.run(
        ["bash", str(checkout / _SCRIPT.name)],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(checkout),
            "LC_ALL": "C",
            "CUB200_URL": f"file://{served}/served.tgz",
            "CUB200_MD5": (served / "md5").read_text(encoding="ascii"),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    names = sorted(entry.name for entry in (checkout / "data").iterdir())
    if result.returncode == 0:
        assert names == ["CUB_200_2011", "CUB_200_2011.tgz"], names
        return
    assert (result.returncode, names) == (1, left), (result, names)
    raise DataError(result.stderr.decode().rstrip("\n"))


TARGETS = {
    "cub200-images": Target(samples.write_cub, ("images.txt",), _read_dataset),
    "cub200-labels": Target(samples.write_cub, ("image_class_labels.txt",), _read_dataset),
    "cub200-boxes": Target(samples.write_cub, ("bounding_boxes.txt",), _read_dataset),
    "cub200-classes": Target(samples.write_cub, ("classes.txt",), _read_dataset),
    "cars196": Target(
        samples.write_cars, ("cars_annos.mat",), _read_dataset, format_mutations.mutate_mat
    ),
    "sop": Target(samples.write_sop, ("Ebay_*.txt",), _read_dataset),
    "inshop": Target(samples.write_inshop, ("*/list_*.txt",), _read_dataset),
    "csv": Target(
        samples.write_csv, ("own.csv",), lambda folder: _read_dataset(folder / "own.csv")
    ),
    "pairs": Target(
        samples.write_pairs, ("pairs.txt",), lambda folder: pairs.read(folder / "pairs.txt")
    ),
    "pairs-csv": Target(
        samples.write_pairs, ("pairs.csv",), lambda folder: pairs.read(folder / "pairs.csv")
    ),
    "images": Target(_write_images, ("*",), _read_images, format_mutations.mutate_image),
    "unsupported-images": Target(
        _write_unsupported, ("*",), _read_unsupported, format_mutations.mutate_image
    ),
    "pixel-cache": Target(_write_pixel_cache, ("cache/*/*",), _read_pixel_cache),
    "pixel-cache-shapes": Target(
        partial(_write_pixel_cache, preprocessing=_KEEPING_SHAPE),
        ("cache/*/*",),
        partial(_read_pixel_cache, preprocessing=_KEEPING_SHAPE),
    ),
    "params": Target(_write_params, ("*.params",), _read_params, format_mutations.mutate_params),
    "weights": Target(_write_weights, ("*",), _read_weights, format_mutations.mutate_weights),
    "checkpoint": Target(
        _write_checkpoint, ("*",), _read_checkpoint, format_mutations.mutate_checkpoint
    ),
    "archive": Target(_write_archive, ("served.tgz",), _read_archive, starts_programs=True),
}
