"""The flags of the backbone: where its weights come from, and how it learns on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from embedding_learning.cli.parser import add_choice
from embedding_learning.config import POOLS
from embedding_learning.model.weights import catalog


def add_flags(group: argparse._ArgumentGroup) -> None:
    """With none given the original's run results."""
    text = "print the backbones, their sizes and where weights of them are, and end"
    group.add_argument("--list-models", action=_ListModels, help=text)
    text = "take the ImageNet weights from a .params, .safetensors or .pth file"
    group.add_argument("--pretrained-params", metavar="FILE", help=text)
    add_choice(group, "--pool", POOLS, "pooling of the last map of features")
    text = "start from a trained network, its .params or its prefix, as far as its layers fit"
    group.add_argument("--init-from", metavar="FILE", help=text)
    text = "let the backbone's batch norm use its statistics as they are, and keep them"
    group.add_argument("--freeze-bn", action="store_true", help=text)
    text = "multiply the backbone's learning rate (default: 0.01 on pretrained convolutions)"
    group.add_argument("--lr-mult-backbone", type=float, metavar="X", help=text)
    text = "train the new layers alone in the first N epochs (default: %(default)s)"
    group.add_argument("--warm-up-epochs", type=int, default=0, metavar="N", help=text)
    text = "no weight decay on biases and on batch norm's parameters"
    group.add_argument("--wd-exclude-bn-bias", action="store_true", help=text)
    text = "cut each number of the network's gradients, divided by the batch size, to [-X, X]"
    group.add_argument("--grad-clip", type=float, metavar="X", help=text)


class _ListModels(argparse.Action):
    """Prints the backbones and ends, as --help does."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        default = argparse.SUPPRESS
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=default, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(catalog.format_table())
        parser.exit()
