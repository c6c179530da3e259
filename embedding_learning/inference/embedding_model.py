"""Images to embeddings: with a network in training, and with a saved one made ready for use."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Sequence
from functools import cached_property
from typing import Any, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from embedding_learning.config import BATCH_SIZE, RESIZES, WORKERS
from embedding_learning.data.batches import SequentialBatches
from embedding_learning.data.preprocessing import (
    Pixels,
    Preprocessing,
    read_square,
    resize_to_square,
)
from embedding_learning.errors import DataError, UsageError
from embedding_learning.inference.batched import embed_each_batch
from embedding_learning.inference.run_files import find_network
from embedding_learning.model import backbones
from embedding_learning.model.description import read as read_description
from embedding_learning.model.net import ImageNormalization, MarginNet
from embedding_learning.model.weights.params_file import read_parameters, set_parameters

# A file, or RGB pixels, uint8 (height, width, 3).
Image = Union[str, "os.PathLike[str]", np.ndarray]

# What the vectors depend on besides the weights, by its name in the description.
_SEEN = ("model", "pool", "image_size", "crop_size", "exif_orientation", "resize")


def load_model(
    path: str | os.PathLike[str],
    devices: list[mx.Context] | None = None,
    model: str | None = None,
    exif_orientation: bool | None = None,
    resize: str | None = None,
) -> EmbeddingModel:
    """A saved network, ready to embed images.

    Parameters
    ----------
    path : str or path
        A .params file that train.py wrote, or its run's prefix or folder. A file that the original
        example wrote works too; it does not name its backbone.
    devices : list of Context, optional
        Where it computes, a batch divided among them; by default the CPU.
    model : str, optional
        The backbone, as ``--model`` of train.py names it, for a file that does not tell. The sizes
        of its images are taken to be the default ones.
    exif_orientation : bool, optional
        Whether to turn images upright as their EXIF data say; by default as in its training.
    resize : str, optional
        "linear" or "area", as ``--resize`` of train.py; by default as in its training.

    Raises
    ------
    ValueError
        If `resize` is another word.
    UsageError
        If there is no such file, it holds no such network, or it does not tell the backbone.
    """
    if resize not in (None, *RESIZES):
        raise ValueError(f"resize {resize!r}: choose of {', '.join(RESIZES)}")
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
    net = MarginNet(
        backbones.create(description["model"], devices, pool=description["pool"]),
        description["embed_dim"],
        batch_k=2,  # of no consequence: nothing is sampled
        feat_dim=description["feat_dim"],
        preprocess=ImageNormalization(),
    )
    set_parameters(net._collect_params_with_prefix(), arrays, source, devices)
    image = mx.nd.zeros((1, 3, *2 * [description["crop_size"]]), devices[0], np.uint8)
    try:
        net.embed(image).wait_to_read()
        # The weights may be read next, and must not be rearranged meanwhile: see learner_state.
        mx.nd.waitall()
    except (mx.base.MXNetError, ValueError) as error:
        raise UsageError(
            f"{source}: {description['model']} with these parameters does not take images of "
            f"{description['crop_size']} pixels; was it trained with other sizes?"
        ) from error
    return EmbeddingModel(net, description, devices)


class EmbeddingModel:
    """A trained network that embeds photographs. Made by `load_model`.

    Attributes
    ----------
    net : MarginNet
    description : dict
        The values that `description.describe` names; None where the file does not tell.
    dimension : int
        Of the embeddings.
    devices : list of Context
    preprocessing : Preprocessing
        How files become squares, as the description names it.
    """

    def __init__(
        self, net: MarginNet, description: dict[str, Any], devices: list[mx.Context]
    ) -> None:
        self.net = net
        self.description = description
        self.dimension: int = description["embed_dim"]
        self.devices = devices
        self.preprocessing = Preprocessing.from_settings(description)
        self._graph = _Embedding(net)
        self._graph.hybridize(static_alloc=True, static_shape=True)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights and of how images are prepared: equal for equal vectors."""
        digest = hashlib.sha256(json.dumps([self.description[key] for key in _SEEN]).encode())
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
        """The embeddings of images, treated as test images are in training.

        Parameters
        ----------
        images : sequence
            Files, and RGB pixels in uint8 arrays (height, width, 3); n in all, each of any size.
        boxes : int array (n, 4), optional
            x, y, width and height in pixels of the part of each image that is seen; of the upright
            image where the model was trained with ``--exif-orientation``.
        batch_size : int
            Images that are computed at once, at most.
        workers : int
            Threads that decode images.

        Returns
        -------
        float32 array (n, d)
            Rows of unit length. What is computed beside an image may change the last bits.

        Raises
        ------
        DataError
            If a file cannot be decoded, or a box lies outside of its image.
        ValueError
            If an array is no image, or there is not a box for each image.
        """
        pixels = _Images(images, boxes, self.description["image_size"], self.preprocessing)
        size = self.choose_batch_size(len(images), batch_size)
        parts = list(self.embed_batches(pixels, size, workers))
        return np.concatenate([np.empty((0, self.dimension), np.float32), *parts])

    def choose_batch_size(self, count: int, most: int) -> int:
        """Images in a batch, for that many images, so that also the last batch is nearly full.

        A multiple of the number of devices.
        """
        batches = -(-count // most) or 1
        devices = len(self.devices)
        return max(1, -(-count // (batches * devices))) * devices

    def embed_batches(
        self, pixels: Pixels, batch_size: int, workers: int, first: int = 0
    ) -> Generator[np.ndarray, None, None]:
        """The embeddings of images, batch by batch, in bounded memory; float32 (b, d) each.

        Parameters
        ----------
        pixels : Pixels
            Squares of ``description["image_size"]`` pixels; they are asked for by the workers.
        batch_size : int
            A multiple of the number of devices, such as the method of that name returns.
        workers : int
        first : int
            The number of the batch to begin with.

        Raises
        ------
        UsageError
            If an embedding is not finite.
        """
        labels = np.zeros(pixels.shape[0], np.float32)
        crop_size = self.description["crop_size"]
        batches = SequentialBatches(pixels, labels, batch_size, crop_size, workers)
        batches.seek(first)
        try:
            for embeddings, _ in embed_each_batch(self._graph, self.devices, batches):
                if not np.isfinite(embeddings).all():
                    raise UsageError(
                        "MODEL: its embeddings are not finite; its training had diverged"
                    )
                yield embeddings
        finally:
            # What is queued still reads the batches' memory.
            mx.nd.waitall()
            batches.close()


class _Embedding(HybridBlock):
    """A network without its sampling, in one graph.

    `MarginNet.embed` runs a graph for each of its parts, and what goes from one to the next is
    allocated anew for each batch. With SqueezeNet on a CPU that is a twelfth of the time.
    """

    def __init__(self, net: MarginNet) -> None:
        super().__init__()
        with self.name_scope():
            self.net = net

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.net.embed(x)


class _Images:
    """Files and arrays alike as squares; each is resized when it is asked for."""

    def __init__(
        self,
        images: Sequence[Image],
        boxes: np.ndarray | None,
        size: int,
        preprocessing: Preprocessing,
    ) -> None:
        if isinstance(images, (str, bytes, os.PathLike)):
            raise ValueError(f"a list of images expected, not {images!r} alone")
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
        self.shape = (len(images), size, size, 3)

    def __getitem__(self, row: int) -> np.ndarray:
        image, size = self._images[row], self.shape[1]
        box = None if self._boxes is None else self._boxes[row]
        if not isinstance(image, np.ndarray):
            return read_square(os.fspath(image), box, size, self._preprocessing)
        if box is not None:
            x, y, width, height = (int(value) for value in box)
            image = image[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
            if not image.size:
                raise DataError(
                    f"image {row}: the box {x, y, width, height} lies outside of the image"
                )
        return resize_to_square(np.ascontiguousarray(image), size, self._preprocessing.resize)


def _check_pixels(image: np.ndarray, row: int) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"image {row}: RGB pixels, uint8 (height, width, 3), expected, not {image.dtype} "
            f"{image.shape}"
        )
