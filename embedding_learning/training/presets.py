"""The presets: other defaults for the flags, each with its source and how certain it is.

Section 5 of the paper could not be read for this, so few settings are certain. What no source says
of the paper is what the programs that follow it use, or else the original example's default.
docs/recipes.md has this table too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from embedding_learning.config import FLAGS

# How a setting is known, from certain to uncertain.
SEEN = "seen"  # in a table or figure of the paper
REPORTED = "reported"  # by others, of the paper
FOLLOWERS = "followers"  # not found for the paper; programs that follow it have it
ORIGINAL = "original"  # not found for the paper; the original example has it
CERTAINTIES = (SEEN, REPORTED, FOLLOWERS, ORIGINAL)


class Setting(NamedTuple):
    """A setting of a preset.

    Attributes
    ----------
    key : str
        Its flag, by the key in `config.FLAGS`.
    value : object
        As `training.settings` reads it. The default of the flag is not set: so another loss keeps
        its own margin.
    certainty : str
        One of CERTAINTIES.
    source : str
        The numbers are those of the sources in docs/recipes.md.
    """

    key: str
    value: Any
    certainty: str
    source: str


_OF_ALL = (
    Setting("embed_dim", 128, REPORTED, "[4], [5]"),
    Setting("image_size", 256, REPORTED, "[5]"),
    Setting("crop_size", 224, REPORTED, "[5]; 227 in a sentence of [4] on several papers"),
    Setting("model", "resnet50_v2", ORIGINAL, "ResNet-50 is reported [5], its version is not"),
    Setting("optimizer", "adam", REPORTED, "[4]"),
    Setting("margin", 0.2, REPORTED, "[5]; of the margin-based loss"),
    Setting("beta", 1.2, REPORTED, "[5]; the common value, those of classes and images begin at 0"),
    Setting("beta_per", "image", REPORTED, "[5]; common, class and image, added up"),
    Setting("nu", 0.0, ORIGINAL, "its place in the loss is reported [5], its value is not"),
    Setting("lr_beta", 0.1, ORIGINAL, "for one beta per class; no source has it for all three"),
    Setting("beta_optimizer", "sgd", ORIGINAL, "as --lr-beta"),
    Setting("cutoff", 0.5, ORIGINAL, "the paper's lambda; its value was not found"),
    Setting(
        "nonzero_loss_cutoff", 1.4, ORIGINAL,
        "the paper's formula has no such limit; its figure 3b draws negatives at 1.75 to 2.0",
    ),
    Setting("lr", 0.0001, ORIGINAL, "of the new layers; all layers if nothing is pretrained"),
    Setting("wd", 0.0001, ORIGINAL, "followers: 4e-4 [3], 1e-4 [10], none [4]"),
    Setting("factor", 0.3, FOLLOWERS, "[3]"),
)  # fmt: skip
_BIRDS_AND_CARS = (
    Setting("batch_size", 128, FOLLOWERS, "[11], [12]"),
    Setting("batch_k", 4, FOLLOWERS, "[3], [10], [12]; 5 in [11], 2 in [13]"),
    Setting("metrics", "recall@1,recall@2,recall@4,recall@8,recall@16", REPORTED, "[2]"),
)
# An epoch is one pass over the training images, to the nearest whole batch.
_CUB = (
    Setting("bbox", False, REPORTED, "[6]"),
    Setting("batch_num", 46, FOLLOWERS, "5,864 images / 128: an epoch is one pass"),
    Setting("epochs", 50, FOLLOWERS, "[3]"),
    Setting("steps", "30", FOLLOWERS, "[3]"),
)
_CARS = (
    Setting("bbox", False, FOLLOWERS, "[3]; not found for the paper, which has none on CUB [6]"),
    Setting("batch_num", 63, FOLLOWERS, "8,054 images / 128: an epoch is one pass"),
    Setting("epochs", 70, FOLLOWERS, "[3]"),
    Setting("steps", "45", FOLLOWERS, "[3]"),
)
_SOP = (
    Setting("bbox", False, FOLLOWERS, "[3]; the data set has none"),
    Setting("batch_size", 80, FOLLOWERS, "[6], [10]"),
    # Half of the data set's classes have fewer than six images.
    Setting("batch_k", 2, FOLLOWERS, "[6], [13]; 4 in [10] and [12], 5 in [11]"),
    Setting("batch_num", 744, FOLLOWERS, "59,551 images / 80: an epoch is one pass"),
    Setting("epochs", 40, FOLLOWERS, "[3]"),
    Setting("steps", "30", FOLLOWERS, "[3]"),
    Setting("metrics", "recall@1,recall@10,recall@100,recall@1000", SEEN, "table 1 [1]"),
)
# By the name of the preset.
SETTINGS: dict[str, tuple[Setting, ...]] = {
    # train.py and data.py of MXNet 1.9.1's example/gluon/embedding_learning are the defaults.
    "original": (),
    "paper-cub": (*_OF_ALL, *_BIRDS_AND_CARS, *_CUB),
    "paper-cars": (*_OF_ALL, *_BIRDS_AND_CARS, *_CARS),
    "paper-sop": (*_OF_ALL, *_SOP),
}


def defaults_of(preset: str | None) -> dict[str, Any]:
    """Returns the settings that a preset replaces, by key; none without a preset."""
    settings = SETTINGS[preset] if preset else ()
    return {
        setting.key: setting.value
        for setting in settings
        if setting.value != FLAGS[setting.key].default
    }
