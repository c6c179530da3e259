"""The settings of a training run, by topic. Each field of a section is one flag of train.py.

The flags, their ranges, `--help` and docs/flags.md come from this table. `training.settings` makes
a checked configuration of it. Functions take the section that they need, such as `DataConfig`.
Imports no MXNet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Of each list of choices the first is the default.
KVSTORES = ("device", "local", "nccl", "dist_sync", "dist_device_sync", "dist_async")
SMALL_CLASSES = ("error", "drop", "repeat")
CACHES = ("pixels", "none")
RESIZES = ("linear", "area")
RESIZE_TO = ("square", "shorter-side")
TRAIN_CROPS = ("original", "random-resized")
POOLS = ("original", "avg", "max", "none")
DTYPES = ("float32", "float16")
BETA_PER = ("class", "image", "common")
BETA_OPTIMIZERS = ("sgd", "adam")
NEGATIVES = ("device", "batch")
SAVED_EPOCHS = ("best", "last")
ON_NONFINITE = ("stop", "skip")

# The ranks K of the Recall@K that the original reports.
COMMON_RECALL_RANKS = (1, 2, 4, 8, 16)
# Of saved models: images embedded at once, and threads that decode.
BATCH_SIZE, WORKERS = 64, 4
# What computes the embeddings of a saved model; the first is the default.
ENGINES = ("auto", "mxnet", "onnxruntime")

# MXNet counts in 32 bits.
LARGEST_COUNT = 2**31 - 1
# MXNet reads numbers as float32 (at most 3.4e38) and rejects numbers too small for its full
# precision (1.2e-38). There is room for the factors that optimizers apply.
LEAST_NUMBER, LARGEST_NUMBER = 1e-34, 3e38
LARGEST_IMAGE = 4096  # pixels; a batch of such images takes 3.5 GB already
LARGEST_LAYER = 2**16  # units; such a layer on VGG's features takes 6.6 GB already
LARGEST_MEMORY = 2**20  # images; the distances of 70 anchors to so many take 0.3 GB
# Each thread and each context needs memory of its own.
MOST_WORKERS, MOST_CONTEXTS = 1024, 256

# What a resumed run may do with a setting: keep it, or change it with a line in the log.
SAME, MAY_CHANGE = "same", "may change"


@dataclass(frozen=True)
class Flag:
    """How a setting is typed, and which values it may have.

    Attributes
    ----------
    default : object
        None: found from other settings or from the data, as the help says.
    help : str
    type : type
        int, float, str, bool for a switch, or tuple for values with commas between them.
    key : str
        The flag without its dashes, `batch_num` for ``--batch-num``; also the name in checkpoints.
    metavar : str, optional
        What stands for the value in ``--help``.
    choices : tuple of str
        The only values; empty if there are others.
    at_least, at_most, above, below : float, optional
        The range of a number.
    can_be_none : bool
        The word ``none`` is a value, too.
    can_be_negated : bool
        A switch that has the form ``--no-...`` too.
    is_path : bool
        A name of a file or folder, in which ``~`` is expanded.
    on_resume : str
        `SAME`, `MAY_CHANGE`, or empty if it does not change what is learned.
    before : object
        The value of runs that were made before the flag existed.
    """

    default: Any
    help: str
    type: type
    key: str = ""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    can_be_none: bool = False
    can_be_negated: bool = False
    is_path: bool = False
    on_resume: str = ""
    before: Any = None

    @property
    def name(self) -> str:
        """The flag as it is typed."""
        return as_flag(self.key)


def as_flag(key: str) -> str:
    """Returns the flag that sets a setting: ``--batch-num`` for `batch_num`."""
    return "--" + key.replace("_", "-")


def _flag(default: Any, help: str, type_: type | None = None, **more: Any) -> Any:
    return dataclasses.field(metadata={"flag": Flag(default, help, type_ or type(default), **more)})


def _number(default: int | float, help: str, at_least: float = 0, **more: Any) -> Any:
    return _flag(default, help, at_least=at_least, **more)


def _count(help: str, **more: Any) -> Any:
    """A whole number from 1 that is found otherwise if the flag is not given."""
    return _flag(None, help, int, metavar="N", at_least=1, **more)


def _choice(choices: tuple[str, ...], help: str, **more: Any) -> Any:
    return _flag(choices[0], help, choices=choices, metavar="WORD", **more)


def _switch(help: str, **more: Any) -> Any:
    return _flag(False, help, **more)


def _path(help: str, default: str | None = None, metavar: str | None = None, **more: Any) -> Any:
    return _flag(default, help, str, metavar=metavar, is_path=True, **more)


@dataclass(frozen=True)
class DataConfig:
    """Which images train and test, and how they become pixels."""

    path: str = _path(
        "folder of the images; glyphs: a drawn set", "data/CUB_200_2011", key="data_path"
    )
    # Its choices are the names in `data.datasets`.
    dataset: str | None = _flag(
        None, "format of --data-path, if its files do not show it", str, metavar="NAME"
    )
    bbox: bool = _flag(
        True, "crop images to their bounding boxes where there are any", can_be_negated=True
    )
    train_classes: int | None = _count("the first N classes train (default: half of them)")
    cache_dir: str = _path("folder of decoded and drawn images")
    classes: int | None = _count("number of training classes; read from the data and checked")
    held_out: float = _number(
        0.0, "part of the training classes that does not train, and tests in place of the test "
        "classes", below=1,
    )  # fmt: skip
    held_out_fold: int = _number(
        1, "which part of the training classes --held-out takes, counted from the last", 1,
        metavar="N",
    )  # fmt: skip
    small_classes: str = _choice(SMALL_CLASSES, "training classes with fewer images than --batch-k")
    skip_bad_images: bool = _switch("leave out images that cannot be decoded")
    image_size: int = _count(
        "pixels of the square that each image is resized to (default: by model, mostly 256)",
        at_most=LARGEST_IMAGE, on_resume=SAME,
    )  # fmt: skip
    crop_size: int = _count(
        "pixels of the square that is cut out of it (default: by model, mostly 224)",
        at_most=LARGEST_IMAGE, on_resume=SAME,
    )  # fmt: skip
    exif_orientation: bool = _switch(
        "turn images upright as their EXIF data say, before boxes are cut",
        can_be_negated=True, on_resume=SAME, before=False,
    )  # fmt: skip
    resize: str = _choice(
        RESIZES, "how images are resized; area: the mean of all pixels where they shrink",
        on_resume=SAME, before=RESIZES[0],
    )  # fmt: skip
    resize_to: str = _choice(
        RESIZE_TO, "what images are resized to: a square of --image-size; or keeping their shape, "
        "until the shorter side is --image-size", on_resume=SAME, before=RESIZE_TO[0],
    )  # fmt: skip
    train_crop: str = _choice(
        TRAIN_CROPS, "what is cut out of a training image: a random square of --crop-size; or a "
        "random part of the photograph, resized to it", on_resume=SAME, before=TRAIN_CROPS[0],
    )  # fmt: skip
    cache: str = _choice(CACHES, "what is kept of images once they are decoded")
    workers: int = _number(
        WORKERS, "threads that decode images; 0: the main thread decodes", at_most=MOST_WORKERS
    )


@dataclass(frozen=True)
class ModelConfig:
    """The network, and where its weights come from."""

    backbone: str = _flag(
        "resnet50_v2", "backbone, as Gluon's model zoo or torchvision names it",
        key="model", on_resume=SAME,
    )  # fmt: skip
    embed_dim: int = _number(
        128, "dimensionality of the image embedding", 1, at_most=LARGEST_LAYER, on_resume=SAME
    )
    feat_dim: int | None = _count(
        "add a fully connected layer of N units before the embedding",
        at_most=LARGEST_LAYER, on_resume=SAME,
    )  # fmt: skip
    use_pretrained: bool = _switch("start from the ImageNet weights of Gluon's model zoo")
    pretrained_params: str | None = _path(
        "take the ImageNet weights from a .params, .safetensors or .pth file", metavar="FILE"
    )
    pool: str = _choice(POOLS, "pooling of the last feature map", on_resume=SAME, before=POOLS[0])
    init_from: str | None = _path(
        "start from a trained network, its .params or its prefix, as far as its layers fit",
        metavar="FILE",
    )
    freeze_bn: bool = _switch(
        "the backbone's batch norm uses its running statistics, and keeps them",
        on_resume=MAY_CHANGE, before=False,
    )  # fmt: skip
    dtype: str = _choice(
        DTYPES, "what the layers compute in; float16: mixed precision, for GPUs",
        on_resume=SAME, before=DTYPES[0],
    )  # fmt: skip

    @property
    def has_pretrained_backbone(self) -> bool:
        """Whether the backbone starts from weights that were trained on ImageNet."""
        return bool(self.use_pretrained or self.pretrained_params)


@dataclass(frozen=True)
class MethodConfig:
    """The loss and its parameters, such as beta, and the sampling of negatives."""

    # The choices of both are the rows of `model.methods`.
    loss: str = _flag(
        "margin", "loss that is minimized", metavar="WORD", on_resume=SAME, before="margin"
    )
    sampling: str = _flag(
        "distance-weighted", "which negatives an anchor is compared with",
        metavar="WORD", on_resume=SAME, before="distance-weighted",
    )  # fmt: skip
    margin: float = _flag(
        0.2, "margin of the loss; another --loss has its own default", on_resume=MAY_CHANGE
    )
    scale: float | None = _flag(
        None, "scale of the similarities in a loss that sees labels (default: by --loss)",
        float, metavar="X", above=0, on_resume=MAY_CHANGE,
    )  # fmt: skip
    lr_proxies: float = _flag(
        0.01, "learning rate of the proxies that a loss has of the classes",
        above=0, on_resume=MAY_CHANGE, before=0.01,
    )  # fmt: skip
    beta: float = _flag(1.2, "initial value of beta")
    beta_per: str = _choice(
        BETA_PER, "a learned beta is one per class, or the sum of a common one, one per class "
        "and one per image, or one for all", on_resume=SAME, before=BETA_PER[0],
    )  # fmt: skip
    nu: float = _number(0.0, "regularization parameter for beta", on_resume=MAY_CHANGE)
    lr_beta: float = _flag(0.1, "learning rate for beta; 0: beta is constant", on_resume=MAY_CHANGE)
    beta_optimizer: str = _choice(
        BETA_OPTIMIZERS, "optimizer of beta; sgd has momentum 0.9",
        on_resume=SAME, before=BETA_OPTIMIZERS[0],
    )  # fmt: skip
    cutoff: float = _number(
        0.5, "distance weighted sampling: a smaller distance has the weight of this one",
        below=2, on_resume=MAY_CHANGE, before=0.5,
    )  # fmt: skip
    nonzero_loss_cutoff: float | None = _flag(
        1.4, "distance weighted sampling: no negatives from this distance on; none: no such limit",
        above=0, can_be_none=True, metavar="X", on_resume=MAY_CHANGE, before=1.4,
    )  # fmt: skip
    normalize_weights: bool = _switch(
        "scale the log weights of the sampling to [0, 1]", on_resume=SAME
    )
    negatives: str = _choice(
        NEGATIVES, "whether the loss sees each device's part of a batch by itself, or all of it "
        "together", on_resume=MAY_CHANGE, before=NEGATIVES[0],
    )  # fmt: skip
    memory: int = _number(
        0, "also sample negatives from the last N images", metavar="N", at_most=LARGEST_MEMORY,
        on_resume=SAME, before=0,
    )  # fmt: skip
    memory_from: int = _number(
        0, "the epoch from which on images are remembered for --memory",
        metavar="EPOCH", on_resume=MAY_CHANGE, before=0,
    )  # fmt: skip


@dataclass(frozen=True)
class OptimizerConfig:
    """How the network's parameters are updated."""

    name: str = _flag("adam", "optimizer of MXNet", key="optimizer", on_resume=SAME)
    lr: float = _number(0.0001, "learning rate", on_resume=MAY_CHANGE)
    factor: float = _number(0.5, "learning rate schedule factor", on_resume=MAY_CHANGE)
    steps: tuple[int, ...] = _flag(
        (12, 14, 16, 18), "epochs that multiply the learning rates by the factor",
        on_resume=MAY_CHANGE,
    )  # fmt: skip
    wd: float = _number(0.0001, "weight decay rate", on_resume=MAY_CHANGE)
    momentum: float = _number(0.9, "momentum of sgd", on_resume=MAY_CHANGE)
    lr_mult_backbone: float | None = _flag(
        None, "multiply the backbone's learning rate (default: 0.01 on pretrained convolutions)",
        float, metavar="X", at_least=0, on_resume=MAY_CHANGE,
    )  # fmt: skip
    warm_up_epochs: int = _number(
        0, "train only the new layers in the first N epochs",
        metavar="N", on_resume=MAY_CHANGE, before=0,
    )  # fmt: skip
    wd_exclude_bn_bias: bool = _switch(
        "no weight decay on biases and on batch norm's parameters",
        on_resume=MAY_CHANGE, before=False,
    )  # fmt: skip
    grad_clip: float | None = _flag(
        None, "clip each number of the network's gradients, divided by the batch size, to [-X, X]",
        float, metavar="X", above=0, on_resume=MAY_CHANGE,
    )  # fmt: skip

    def decay(self, epoch: int) -> float:
        """Returns what the schedule multiplies all learning rates by in an epoch.

        It is the factor for each of the steps up to that epoch, wherever they stand in the list and
        however often.
        """
        return float(self.factor ** sum(epoch >= step for step in self.steps))


@dataclass(frozen=True)
class BatchConfig:
    """How many images a training step has."""

    # `training.settings` refuses sizes that are not whole classes on each device.
    per_device: int = _number(70, "training batch size per device (CPU/GPU)", 1, key="batch_size")
    batch_k: int = _number(5, "number of images per class in a batch", 2, on_resume=SAME)
    batch_num: int = _number(200, "number of batches in an epoch", 1, on_resume=SAME)
    total: int = _count(
        "the port's --batch-size: images over all devices", key="total_batch_size", on_resume=SAME
    )


@dataclass(frozen=True)
class DeviceConfig:
    """Where training steps are computed, and by how many worker processes."""

    gpus: tuple[int, ...] = _flag((), "list of gpus to use, e.g. 0 or 0,2,5; empty means using cpu")
    kvstore: str = _flag(
        KVSTORES[0], "how devices exchange gradients", choices=KVSTORES, on_resume=MAY_CHANGE
    )
    cpu_contexts: int = _number(
        1, "without --gpus: CPU contexts that act as devices, for trials", 1, at_most=MOST_CONTEXTS
    )
    # No flag: the environment variables of the launcher give it.
    processes: int = 1

    @property
    def per_process(self) -> int:
        """Devices of one worker process."""
        return len(self.gpus) or self.cpu_contexts

    @property
    def count(self) -> int:
        """Devices of all worker processes."""
        return self.per_process * self.processes

    @property
    def is_distributed(self) -> bool:
        """Whether gradients are exchanged over MXNet's parameter server."""
        return self.kvstore.startswith("dist_")


@dataclass(frozen=True)
class RunConfig:
    """How long a run trains, what it reports, and what it saves."""

    prefix: str = _path(
        "file of the best network without .params", "margin_loss_model", key="save_model_prefix"
    )
    epochs: int = _number(20, "number of training epochs")
    start_epoch: int = _number(0, "number of the first epoch")
    seed: int = _number(
        123, "random seed; it determines the whole run", at_most=float("inf"), on_resume=SAME
    )
    resume: str | None = _path(
        "continue a run: its prefix, folder, a checkpoint, or auto; or start from a .params file",
        metavar="WHAT",
    )
    log_interval: int = _number(20, "number of batches between log lines", 1)
    preset: str | None = _flag(None, "other defaults, which flags replace", str, metavar="NAME")
    checkpoint_interval: int | None = _count(
        "save the state every N batches too, not only after each epoch"
    )
    keep: int = _number(2, "number of the latest checkpoints that are kept", 1)
    saved_epoch: str = _choice(
        SAVED_EPOCHS, "the epoch whose network is saved: the best by Recall@1, or the last",
        on_resume=MAY_CHANGE, before=SAVED_EPOCHS[0],
    )  # fmt: skip
    on_nonfinite: str = _choice(
        ON_NONFINITE, "if a loss or a gradient is not finite: stop the run, or skip the batch",
        on_resume=MAY_CHANGE,
    )  # fmt: skip
    evaluate_first: bool = _flag(
        None, "print the recalls before training too (default: if the backbone is pretrained)",
        bool, can_be_negated=True,
    )  # fmt: skip
    metrics: tuple[str, ...] = _flag(
        tuple(f"recall@{rank}" for rank in COMMON_RECALL_RANKS),
        "what to log of each epoch",
    )
    tensorboard: str | None = _path(
        "write scalars, histograms and a projection for TensorBoard into a folder", metavar="DIR"
    )

    @property
    def resumes_network(self) -> bool:
        """Whether ``--resume`` names a network alone, not the state of a run."""
        return bool(self.resume) and str(self.resume).endswith(".params")


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run, complete and checked. `training.settings.make_config` makes one."""

    data: DataConfig
    model: ModelConfig
    method: MethodConfig
    optimizer: OptimizerConfig
    batch: BatchConfig
    devices: DeviceConfig
    run: RunConfig

    @classmethod
    def from_flags(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Returns the configuration with these settings, given by the keys of their flags.

        All have to be there; nothing is checked.
        """
        sections = {
            name: section(**{field: values[key] for key, field in _fields(section)})
            for name, section in SECTIONS.items()
        }
        return cls(**sections)

    def as_flags(self) -> dict[str, Any]:
        """Returns each setting by the key of its flag, of what JSON can hold.

        Checkpoints and the log have this form.
        """
        values = {
            key: getattr(getattr(self, name), field)
            for name, section in SECTIONS.items()
            for key, field in _fields(section)
        }
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


# The sections of `TrainConfig`, by name.
SECTIONS: dict[str, type[Any]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "method": MethodConfig,
    "optimizer": OptimizerConfig,
    "batch": BatchConfig,
    "devices": DeviceConfig,
    "run": RunConfig,
}


def _fields(section: type[Any]) -> Iterator[tuple[str, str]]:
    """Each field of a section: its key in checkpoints, and its name."""
    for field in dataclasses.fields(section):
        flag = field.metadata.get("flag")
        yield (flag.key if flag and flag.key else field.name), field.name


def flags_of(section: type[Any]) -> Iterator[Flag]:
    """The flags of a section, in the order of its fields."""
    for field in dataclasses.fields(section):
        flag = field.metadata.get("flag")
        if flag:
            yield dataclasses.replace(flag, key=flag.key or field.name)


# All flags that set something, by key.
FLAGS: dict[str, Flag] = {
    flag.key: flag for section in SECTIONS.values() for flag in flags_of(section)
}


@dataclass(frozen=True)
class TestImages:
    """Which images a saved model is tested on.

    Attributes
    ----------
    data_path, dataset, train_classes, held_out, held_out_fold, cache_dir, skip_bad_images
        As in `DataConfig`.
    bbox : bool, optional
        Whether images are cropped to their boxes; None: as the model was trained.
    classes : str
        One of `data.datasets.TEST_CHOICES`.
    """

    data_path: str
    cache_dir: str
    dataset: str | None = None
    train_classes: int | None = None
    held_out: float = 0.0
    held_out_fold: int = 1
    bbox: bool | None = None
    classes: str = "split"
    skip_bad_images: bool = False

    # pytest takes classes of this name for tests.
    __test__ = False
