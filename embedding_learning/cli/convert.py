"""`convert`: writes ImageNet weights, also those of PyTorch, as a Gluon parameter file."""

from __future__ import annotations

import argparse

from embedding_learning.cli.parser import Parser, expand_path
from embedding_learning.errors import UsageError
from embedding_learning.runtime.atomic_files import check_output_path
from embedding_learning.runtime.progress import log_to_terminal

# The endings of formats that are not written.
_OTHER_FORMATS = (".safetensors", ".pth", ".pt", ".bin", ".onnx")


def main(arguments: list[str]) -> int:
    """Writes the file; returns 0."""
    options = _parse(arguments)
    if options.output.lower().endswith(_OTHER_FORMATS):
        raise UsageError(
            f"OUT {options.output}: a Gluon parameter file is written; end the name in .params"
        )
    check_output_path(options.output, ("",), "OUT")
    # Imported here, since it imports MXNet.
    from embedding_learning.model import backbones

    with log_to_terminal():
        backbones.convert(options.model, options.input, options.output)
    print(f"{options.output}: the features of {options.model}, for --pretrained-params.")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning convert",
        description="Write ImageNet weights as a Gluon parameter file. No code of the input file "
        "is run. A former output is replaced once the new one is complete.",
    )
    text = (
        "a .safetensors or a .pth state dictionary, named as in torchvision or timm, or a Gluon "
        ".params file"
    )
    parser.add_argument("input", metavar="IN", help=text)
    text = "the .params file to write"
    parser.add_argument("output", type=expand_path, metavar="OUT", help=text)
    text = "the backbone of these weights, as --model of train.py names it"
    parser.add_argument("--model", metavar="NAME", required=True, help=text)
    return parser.parse_args(arguments)
