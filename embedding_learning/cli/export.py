"""`export`: writes a saved model in a form that can be used without this program."""

from __future__ import annotations

import argparse
import os

from embedding_learning.cli import model_flags
from embedding_learning.cli.parser import Parser, expand_path
from embedding_learning.errors import UsageError
from embedding_learning.inference.run_files import find_network
from embedding_learning.runtime.atomic_files import check_input_is_kept, check_output_path

# The endings of other formats of networks: a name that has one is no prefix.
_NOT_WRITTEN = {".params", ".json", ".pth", ".pt", ".bin", ".ckpt", ".h5", ".pb", ".tflite", ".npz"}


def main(arguments: list[str]) -> int:
    """Writes the files; returns 0."""
    options = _parse(arguments)
    if not os.path.basename(options.output):
        raise UsageError(
            f"OUTPUT {options.output!r}: is no file name; give one, such as models/birds.onnx"
        )
    _check_output(options.output, options.model_file)
    for_pytorch = options.output.lower().endswith(".safetensors")
    if for_pytorch and options.normalize_input:
        raise UsageError(
            "--normalize-input: is for graphs; a .safetensors file has only weights, and says in "
            "its metadata how pixels are normalized; leave the flag out"
        )
    model = model_flags.load(options)
    # Imported here, since it imports MXNet.
    from embedding_learning.data.preprocessing import SQUARE
    from embedding_learning.inference.export import export_onnx, export_pytorch, export_symbol

    crop_size = model.description["crop_size"]
    if for_pytorch:
        network = export_pytorch(model.net, options.output, model.description)
        print(f"{options.output}: weights of {network}, to unit embeddings (n, d).")
    elif options.output.lower().endswith(".onnx"):
        export_onnx(model.net, options.output, crop_size, options.normalize_input)
        print(f"{options.output}: {_describe_graph(crop_size, options.normalize_input)}")
    else:
        export_symbol(model.net, options.output, crop_size, options.normalize_input)
        print(
            f"{', '.join(_output_files(options.output))}: "
            f"{_describe_graph(crop_size, options.normalize_input)}"
        )
    if model.preprocessing.exif_orientation:
        print("It was trained with --exif-orientation: turn images upright for it too.")
    if model.preprocessing.resize == "area":
        print("It was trained with --resize area: resize images for it in the same way.")
    if model.preprocessing.resize_to != SQUARE:
        print(
            f"It was trained with --resize-to {model.preprocessing.resize_to}: the shorter side of "
            f"an image becomes {model.description['image_size']} pixels."
        )
    return 0


def _output_files(output: str) -> list[str]:
    """Returns the files that are written."""
    if output.lower().endswith((".onnx", ".safetensors")):
        return [output]
    return [f"{output}-symbol.json", f"{output}-0000.params"]


def _check_output(output: str, model: str) -> None:
    """Raises UsageError if the output ends like a file that is not written, cannot be written
    there, or is the model.
    """
    suffix = os.path.splitext(output)[1]
    if suffix.lower() in _NOT_WRITTEN:
        raise UsageError(
            f"OUTPUT {output}: {suffix} is not written; end the name in .onnx or .safetensors, or "
            "give a prefix without an ending for MXNet's two files"
        )
    for file in _output_files(output):
        check_output_path(file, ("",), "OUTPUT")
        check_input_is_kept(file, [find_network(model, "MODEL")], "OUTPUT")


def _describe_graph(crop_size: int, normalize_input: bool) -> str:
    """Returns the input and the output of the graph as text."""
    pixels = "uint8 RGB" if normalize_input else "float32 RGB, normalized"
    return f"data (n, 3, {crop_size}, {crop_size}), {pixels}, to unit embeddings (n, d)."


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m embedding_learning export",
        description="Write a saved model as an ONNX file, as weights for PyTorch, or as a symbol "
        "and a parameter file for Gluon's SymbolBlock. Former files are replaced once the new ones "
        "are complete.",
    )
    model_flags.add_model(parser)
    text = (
        "FILE.onnx; FILE.safetensors for PyTorch; any other name is the prefix of "
        "PREFIX-symbol.json and PREFIX-0000.params"
    )
    parser.add_argument("output", type=expand_path, metavar="OUTPUT", help=text)
    text = "let the graph take uint8 pixels and normalize them itself"
    parser.add_argument("--normalize-input", action="store_true", help=text)
    return parser.parse_args(arguments)
