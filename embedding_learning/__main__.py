"""Runs the commands of the package: `python -m embedding_learning VERB …`."""

from __future__ import annotations

import importlib
import sys

from embedding_learning.cli.exit_codes import run_command
from embedding_learning.errors import UsageError
from embedding_learning.runtime import environment

# Each verb has a module in `cli`, which is imported only when the verb is used.
VERBS = {
    "train": "train an image embedding, as train.py does",
    "check": "list all that is wrong with a data set",
    "evaluate": "measure a saved model on a data set's test images",
    "embed": "write the embeddings of images to a file",
    "search": "print or draw the images that are nearest to others",
    "plot": "draw t-SNE, queries with their neighbors, confused classes, or the curves of a run",
    "report": "write the report of a run as one HTML page",
    "convert": "write ImageNet weights, also PyTorch's, as a Gluon parameter file",
    "export": "write a saved model as ONNX, for PyTorch or for SymbolBlock",
    "compare": "train with several losses, samplings and seeds, and tabulate the results",
    "launch": "train on several machines",
    "compare-original": "compare this program with the original example",
}


def main(arguments: list[str]) -> int:
    """Runs the verb; returns its exit status."""
    verb, *rest = arguments or [""]
    if verb in ("-h", "--help"):
        print("usage: python -m embedding_learning VERB ... (VERB --help lists its flags)\n")
        for name, meaning in VERBS.items():
            print(f"  {name:16s} {meaning}")
        return 0
    if verb not in VERBS:
        raise UsageError(f"{verb or 'no verb'}: choose one of {', '.join(VERBS)}")
    if verb != "train":
        environment.leave_group()
    module = f"embedding_learning.cli.{verb.replace('-', '_')}"
    status: int = importlib.import_module(module).main(rest)
    return status


def run() -> int:
    """Runs the verb of the command line; the console script calls this."""
    return run_command("embedding_learning", lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(run())
