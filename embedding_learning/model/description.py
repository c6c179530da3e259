"""The description that is saved with a network's parameters, from which it is built again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from embedding_learning.config import (
    LARGEST_IMAGE,
    POOLS,
    RESIZE_TO,
    RESIZES,
    DataConfig,
    ModelConfig,
)
from embedding_learning.errors import UsageError
from embedding_learning.model.backbones import check_name
from embedding_learning.model.weights import catalog
from embedding_learning.model.weights.catalog import DEVIATION, MEAN
from embedding_learning.model.weights.params_file import read_description

# Goes up when an older program could not build the network.
_FORMAT = 1
_LARGEST = 2**31 - 1
# The settings of networks that were trained before these settings existed.
_FORMERLY = {
    "pool": POOLS[0], "exif_orientation": False, "resize": RESIZES[0], "resize_to": RESIZE_TO[0],
}  # fmt: skip


def describe(
    model: ModelConfig, data: DataConfig, title: str, epoch: int, recall_at_1: float
) -> dict[str, Any]:
    """Returns the JSON-serializable description of a trained network.

    Parameters
    ----------
    model : ModelConfig
    data : DataConfig
    title : str
        The training data, such as `Split.title`.
    epoch : int
        Counted from 0.
    recall_at_1 : float
        Recall@1 of the test images, between 0 and 1.
    """
    return _description(
        model=model.backbone,
        embed_dim=model.embed_dim,
        feat_dim=model.feat_dim,
        pool=model.pool,
        image_size=data.image_size,
        crop_size=data.crop_size,
        exif_orientation=data.exif_orientation,
        resize=data.resize,
        resize_to=data.resize_to,
        bbox=data.bbox,
        train_classes=data.train_classes,
        trained_on=title,
        epoch=epoch,
        recall_at_1=recall_at_1,
    )


def _description(
    *,
    model: str,
    embed_dim: int,
    feat_dim: int | None,
    image_size: int,
    crop_size: int,
    pool: str = POOLS[0],
    exif_orientation: bool = False,
    resize: str = RESIZES[0],
    resize_to: str = RESIZE_TO[0],
    bbox: bool = True,
    train_classes: int | None = None,
    trained_on: str | None = None,
    epoch: int | None = None,
    recall_at_1: float | None = None,
) -> dict[str, Any]:
    """Returns the content of a description.

    `bbox`: images that have boxes were cropped to them. `train_classes`: the number of the data's
    classes that trained, if its files do not decide that.
    """
    return {
        "format": _FORMAT,
        "model": model,
        "embed_dim": embed_dim,
        "feat_dim": feat_dim,
        "pool": pool,
        "image_size": image_size,
        "crop_size": crop_size,
        "exif_orientation": exif_orientation,
        "resize": resize,
        "resize_to": resize_to,
        "bbox": bbox,
        "train_classes": train_classes,
        "mean": list(MEAN),
        "deviation": list(DEVIATION),
        "trained_on": trained_on,
        "epoch": epoch,
        "recall_at_1": recall_at_1,
    }


def read(path: str, model: str | None, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the description of the network of a parameter file, or that of its backbone.

    Parameters
    ----------
    path : str
    model : str, optional
        The backbone, for a file without a description.
    shapes : mapping
        The shapes of the arrays in the file, by name.

    Returns
    -------
    dict
        What `describe` returned. For a file without a description, sizes of images are the default
        ones, and what is unknown is None.

    Raises
    ------
    UsageError
        If the file cannot be read, no network can be built from its description, or it has none and
        no backbone is named.
    """
    description = read_description(path, "MODEL")
    if model is not None:
        check_name(model)
    try:
        if description is not None:
            description = {**_FORMERLY, **description}
            _check(description)
        elif model is not None:
            description = _infer(model, shapes)
    except UsageError as error:
        raise UsageError(f"MODEL {path}: {error}") from error
    if description is None:
        raise UsageError(
            f"MODEL {path}: does not name its backbone, like a file of the original example; name "
            "it with --model"
        )
    backbone = description["model"]
    if model is not None and model.lower() != backbone.lower():
        raise UsageError(f"--model {model}: MODEL {path} is a {backbone}; leave the flag out")
    return description


def _infer(model: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the description of a network whose file has none, as trained with default flags.

    Raises UsageError if there is no embedding layer.
    """
    if len(shapes.get("dense.weight", ())) != 2:
        raise UsageError("holds no embedding layer (dense.weight): it is not a network of train.py")
    image_size, crop_size = catalog.default_sizes(model)
    return _description(
        model=model,
        embed_dim=shapes["dense.weight"][0],
        feat_dim=(*shapes.get("feature.weight", ()), None)[0],
        image_size=image_size,
        crop_size=crop_size,
    )


def _check(description: Mapping[str, Any]) -> None:
    """Raises UsageError unless a network can be built from it. Its source may be untrusted."""
    if description.get("format") != _FORMAT:
        raise UsageError("was written by another version of this program")
    # Only feat_dim and train_classes may be None, and they must not be missing.
    values = {"feat_dim": "missing", "train_classes": "missing", **description}
    checks: dict[str, Callable[[Any], bool]] = {
        "model": _is_backbone,
        "embed_dim": _is_count,
        "feat_dim": lambda value: value is None or _is_count(value),
        "train_classes": lambda value: value is None or _is_count(value),
        "pool": lambda value: value in POOLS,
        "image_size": lambda value: _is_count(value, LARGEST_IMAGE),
        "crop_size": lambda value: _is_count(value, values["image_size"]),
        "exif_orientation": lambda value: isinstance(value, bool),
        "resize": lambda value: value in RESIZES,
        "resize_to": lambda value: value in RESIZE_TO,
        "bbox": lambda value: isinstance(value, bool),
        "mean": lambda value: value == list(MEAN),
        "deviation": lambda value: value == list(DEVIATION),
        "trained_on": lambda value: isinstance(value, str),
        "epoch": lambda value: type(value) is int and value >= 0,
        "recall_at_1": lambda value: type(value) in (int, float) and 0 <= value <= 1,
    }
    for key, fits in checks.items():
        if not fits(values.get(key)):
            raise UsageError(f"describes its network, but {key} is not as this program writes it")


def _is_backbone(value: Any) -> bool:
    return isinstance(value, str) and catalog.resolve_name(value) is not None


def _is_count(value: Any, most: int = _LARGEST) -> bool:
    return type(value) is int and 1 <= value <= most
