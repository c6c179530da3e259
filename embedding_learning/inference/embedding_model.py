"""A saved network that embeds images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any, Callable, Union

import mxnet as mx
import numpy as np

from embedding_learning.config import BATCH_SIZE, ENGINES, RESIZE_TO, RESIZES, WORKERS
from embedding_learning.data.batches import SequentialBatches
from embedding_learning.data.preprocessing import (
    Pixels,
    Preprocessing,
    cut_to_box,
    read_image,
    resize_image,
    shape_of,
)
from embedding_learning.errors import UsageError
from embedding_learning.inference import onnxruntime_engine
from embedding_learning.inference.batched import embed_each_batch
from embedding_learning.inference.embedding_graph import EmbeddingGraph
from embedding_learning.inference.onnxruntime_engine import OnnxRuntimeEngine
from embedding_learning.inference.run_files import find_network
from embedding_learning.model import backbones
from embedding_learning.model.description import read as read_description
from embedding_learning.model.net import ImageNormalization, MarginNet
from embedding_learning.model.weights.params_file import read_parameters, set_parameters
from embedding_learning.runtime import gpus

# A file, or RGB pixels, uint8 (height, width, 3).
Image = Union[str, "os.PathLike[str]", np.ndarray]

# onnxruntime needs a second or two to begin, which it gains back with so many images.
_MANY = 1000
# What the vectors depend on in addition to the weights, by its name in the description.
_DIGEST_KEYS = ("model", "pool", "image_size", "crop_size", "exif_orientation", "resize")


def load_model(
    path: str | os.PathLike[str],
    devices: list[mx.Context] | None = None,
    model: str | None = None,
    exif_orientation: bool | None = None,
    resize: str | None = None,
    resize_to: str | None = None,
    engine: str = ENGINES[0],
) -> EmbeddingModel:
    """Loads a saved network and makes it ready to embed images.

    Parameters
    ----------
    path : str or path
        A .params file that train.py wrote, or the prefix or the folder of its run. A file of the
        original example works too; it does not name its backbone.
    devices : list of Context, optional
        The devices that compute; a batch is divided among them. By default the CPU.
    model : str, optional
        The backbone, as ``--model`` of train.py names it, for a file that does not name it. Its
        images then have the default sizes.
    exif_orientation : bool, optional
        Whether to turn images upright as their EXIF data say; by default as in training.
    resize : str, optional
        "linear" or "area", as ``--resize`` of train.py; by default as in training.
    resize_to : str, optional
        "square" or "shorter-side", as ``--resize-to`` of train.py; by default as in training.
    engine : str
        What computes the embeddings. "mxnet" is the reference. "onnxruntime" is faster on a CPU,
        and needs the packages onnx and onnxruntime; the embeddings differ in the last bits.
        "auto" takes onnxruntime if it is installed, for many images on a CPU.

    Raises
    ------
    ValueError
        If `resize`, `resize_to` or `engine` is another word, or `devices` is no list.
    UsageError
        If the file does not exist, holds no such network, or does not name its backbone; or if
        onnxruntime cannot be used, or the memory of a GPU is used up.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r}: choose from {', '.join(ENGINES)}")
    if resize not in (None, *RESIZES):
        raise ValueError(f"resize {resize!r}: choose from {', '.join(RESIZES)}")
    if resize_to not in (None, *RESIZE_TO):
        raise ValueError(f"resize_to {resize_to!r}: choose from {', '.join(RESIZE_TO)}")
    if isinstance(devices, mx.Context):
        raise ValueError(f"devices: a list of contexts expected, not {devices} alone")
    path = find_network(os.fspath(path), "MODEL")
    source = f"MODEL {path}"
    devices = devices or [mx.cpu()]
    arrays = read_parameters(path, "MODEL")
    shapes = {name: array.shape for name, array in arrays.items()}
    description = read_description(path, model, shapes)
    if exif_orientation is not None:
        description["exif_orientation"] = exif_orientation
    if resize is not None:
        description["resize"] = resize
    if resize_to is not None:
        description["resize_to"] = resize_to
    with _memory_faults("end other programs on it, which nvidia-smi lists, or leave --gpus out"):
        net = _build_net(description, arrays, source, devices)
    loaded = EmbeddingModel(net, description, devices, engine)
    loaded.choose_engine(0)  # or the error would come after the images were listed
    return loaded


def _build_net(
    description: dict[str, Any],
    arrays: dict[str, mx.nd.NDArray],
    source: str,
    devices: list[mx.Context],
) -> MarginNet:
    """Returns the network of a description with these parameters; embeds an image to try it.

    Raises UsageError, which begins with `source`, if the parameters or the sizes do not fit.
    """
    net = MarginNet(
        backbones.create(description["model"], devices, pool=description["pool"]),
        description["embed_dim"],
        batch_k=2,  # any value will do: nothing is sampled
        feat_dim=description["feat_dim"],
        preprocess=ImageNormalization(),
    )
    set_parameters(net._collect_params_with_prefix(), arrays, source, devices)
    image = mx.nd.zeros((1, 3, *2 * [description["crop_size"]]), devices[0], np.uint8)
    try:
        net.embed(image).wait_to_read()
        # The weights may be read next, and must not be rearranged at the same time: see
        # training.learner_state.
        mx.nd.waitall()
    except (mx.base.MXNetError, ValueError) as error:
        if gpus.is_out_of_memory(error):
            raise
        raise UsageError(
            f"{source}: {description['model']} with these parameters does not take images of "
            f"{description['crop_size']} pixels; was it trained with other sizes?"
        ) from error
    return net


@contextmanager
def _memory_faults(way_out: str) -> Iterator[None]:
    """Raises a UsageError that ends with `way_out` if a GPU's memory is used up within."""
    try:
        yield
    except mx.base.MXNetError as error:
        if not gpus.is_out_of_memory(error):
            raise
        raise UsageError(f"--gpus: the memory of a GPU is used up; {way_out}") from error


class EmbeddingModel:
    """A trained network that embeds images. `load_model` creates it.

    Attributes
    ----------
    net : MarginNet
        Its weights must not be changed once images were embedded.
    description : dict
        The values that `model.description` lists; None if the file does not contain one.
    dimension : int
        Dimension d of the embeddings.
    devices : list of Context
    preprocessing : Preprocessing
        How image files are decoded and resized, according to the description.
    """

    def __init__(
        self,
        net: MarginNet,
        description: dict[str, Any],
        devices: list[mx.Context],
        engine: str = ENGINES[0],
    ) -> None:
        self.net = net
        self.description = description
        self.dimension: int = description["embed_dim"]
        self.devices = devices
        self.preprocessing = Preprocessing.from_settings(description)
        self._engine = engine
        self._graph = EmbeddingGraph(net)

    def choose_engine(self, count: int) -> str:
        """Returns what computes the embeddings of that many images: "mxnet" or "onnxruntime".

        Raises UsageError if the model was loaded for onnxruntime and that cannot be used.
        """
        if self._engine == "mxnet":
            return "mxnet"
        if self._engine == "auto" and (count < _MANY or not onnxruntime_engine.is_installed()):
            return "mxnet"
        try:
            self._onnxruntime  # noqa: B018  made at the first access
        except UsageError:
            if self._engine != "auto":
                raise
            self._engine = "mxnet"  # or each call would try the translation again
            return "mxnet"
        return "onnxruntime"

    @cached_property
    def _onnxruntime(self) -> OnnxRuntimeEngine:
        if any(device.device_type != "cpu" for device in self.devices):
            raise UsageError("--engine onnxruntime: computes on the CPU; leave out --gpus")
        return OnnxRuntimeEngine(self.net, self.description["crop_size"])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights and the preprocessing; models with equal vectors have the same."""
        preprocessing = [self.description[key] for key in _DIGEST_KEYS]
        if self.description["resize_to"] != RESIZE_TO[0]:
            # The default adds nothing: embeddings from before there was a choice are known again.
            preprocessing.append(self.description["resize_to"])
        digest = hashlib.sha256(json.dumps(preprocessing).encode())
        for name, parameter in self.net._collect_params_with_prefix().items():
            digest.update(name.encode())
            digest.update(parameter.list_data()[0].asnumpy().tobytes())
        return digest.hexdigest()

    def embed(
        self,
        images: Sequence[Image],
        boxes: np.ndarray | None = None,
        batch_size: int = BATCH_SIZE,
        workers: int = WORKERS,
    ) -> np.ndarray:
        """Returns the embeddings of images, treated as test images are in training.

        Blocks until all are computed.

        Parameters
        ----------
        images : sequence
            n files and arrays of RGB pixels, uint8 (height, width, 3), of any size.
        boxes : int array (n, 4), optional
            x, y, width and height of the part of each image that the network sees, in pixels. They
            are in the upright image if the model was trained with ``--exif-orientation``.
        batch_size : int
            Images that are computed at once, at most.
        workers : int
            Threads that decode images.

        Returns
        -------
        float32 array (n, d)
            Rows of unit length. The other images of a batch may change the last bits of a row.

        Raises
        ------
        UsageError
            If an embedding is not finite, or the memory of a GPU is used up.
        DataError
            If a file cannot be decoded, or a box lies outside of its image.
        ValueError
            If `images` is no sequence, an array is no image, the number of boxes is not n, or
            `batch_size` is below 1.
        """
        pixels = _Images(images, boxes, self.description["image_size"], self.preprocessing)
        size = self.choose_batch_size(len(images), batch_size)
        parts = list(self.embed_batches(pixels, size, workers))
        return np.concatenate([np.empty((0, self.dimension), np.float32), *parts])

    def choose_batch_size(self, count: int, most: int) -> int:
        """Returns a batch size for `count` images, so that the last batch is nearly full too.

        It is a multiple of the number of devices, and at most `most` rounded up to one. Raises
        ValueError if `most` is below 1.
        """
        if most < 1:
            raise ValueError(f"batch_size must be at least 1, not {most}")
        batches = -(-count // most) or 1
        devices = len(self.devices)
        return max(1, -(-count // (batches * devices))) * devices

    def embed_batches(
        self, pixels: Pixels, batch_size: int, workers: int, first: int = 0
    ) -> Generator[np.ndarray, None, None]:
        """Yields the embeddings of images batch by batch, float32 (b, d), in bounded memory.

        Parameters
        ----------
        pixels : Pixels
            Images that are resized to ``description["image_size"]``; the workers read them.
        batch_size : int
            A multiple of the number of devices, as `choose_batch_size` returns.
        workers : int
            Threads that read `pixels`.
        first : int
            Number of the first batch to compute.

        Raises
        ------
        UsageError
            If an embedding is not finite, or the memory of a GPU is used up.
        """
        labels = np.zeros(pixels.shape[0], np.float32)
        crop_size = self.description["crop_size"]
        embed: Callable[[mx.nd.NDArray], mx.nd.NDArray] = self._graph
        devices = self.devices
        if self.choose_engine(len(labels)) == "onnxruntime":
            embed, devices = self._onnxruntime, [mx.cpu()]
        batches = SequentialBatches(pixels, labels, batch_size, crop_size, workers)
        batches.seek(first)
        way_out = (
            f"lower --batch-size ({batch_size} images are computed at once), or end other programs "
            "on it, which nvidia-smi lists"
        )
        with _memory_faults(way_out), closing(batches):
            try:
                for embeddings, _ in embed_each_batch(embed, devices, batches):
                    if not np.isfinite(embeddings).all():
                        raise UsageError(
                            "MODEL: its embeddings are not finite; its training had diverged"
                        )
                    yield embeddings
            finally:
                # Queued computations still read the batches' memory.
                mx.nd.waitall()


class _Images:
    """Pixels of files and of arrays; an image is read and resized when it is accessed."""

    def __init__(
        self,
        images: Sequence[Image],
        boxes: np.ndarray | None,
        size: int,
        preprocessing: Preprocessing,
    ) -> None:
        if isinstance(images, (str, bytes, os.PathLike)):
            raise ValueError(f"a list of images expected, not {images!r} alone")
        if not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
            raise ValueError(f"a list of images expected, not a {type(images).__name__}")
        if boxes is not None and np.shape(boxes) != (len(images), 4):
            raise ValueError(f"boxes ({len(images)}, 4) expected, not {np.shape(boxes)}")
        for row, image in enumerate(images):
            if isinstance(image, np.ndarray):
                _check_pixels(image, row)
            elif not isinstance(image, (str, os.PathLike)):
                raise ValueError(
                    f"image {row}: a file or an array of numpy expected, not {type(image).__name__}"
                )
        self._images = images
        self._boxes = boxes
        self._preprocessing = preprocessing
        self._size = size
        self.shape = shape_of(len(images), size, preprocessing)

    def __getitem__(self, row: int) -> np.ndarray:
        image, size = self._images[row], self._size
        box = None if self._boxes is None else self._boxes[row]
        if not isinstance(image, np.ndarray):
            return read_image(os.fspath(image), box, size, self._preprocessing)
        if box is not None:
            image = cut_to_box(image, box, f"image {row}", "correct it")
        return resize_image(np.ascontiguousarray(image), size, self._preprocessing)


def _check_pixels(image: np.ndarray, row: int) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"image {row}: RGB pixels, uint8 (height, width, 3), expected, not {image.dtype} "
            f"{image.shape}"
        )
