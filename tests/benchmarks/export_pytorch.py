"""Do the exported weights give the trained network's embeddings in PyTorch?

    python -m tests.benchmarks.export_pytorch --pytorch-python PYTHON [NAME ...]

Weights are random, and so are the statistics of batch norm. Each network is saved, exported with
`export NAME.params NAME.safetensors`, and embeds four photographs of noise. The code for PyTorch is
that of docs/using-a-model.md. Prints the largest difference of a number of an embedding, and the
smallest distance between two embeddings; exit status 1 if a difference is above 1e-4.

PYTHON is that of an environment with torch, torchvision, safetensors and opencv-python, and timm
for its networks (resnet50_v1d and similar names). A network takes some ten seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from embedding_learning import load_model
from embedding_learning.cli import export
from embedding_learning.cli.train_flags import parse
from embedding_learning.model.description import describe
from embedding_learning.model.weights.catalog import default_sizes, pytorch_network, resolve_name
from embedding_learning.model.weights.params_file import save_parameters
from tests.benchmarks.export_families import IMAGES, random_net
from tests.helpers.paths import ROOT

# isort: split
import cv2
import numpy as np

LARGEST_DIFFERENCE = 1e-4
NAMES = ("resnet18_v1b", "mobilenet_v2", "squeezenet1.1", "densenet121")
PAGE = ROOT / "docs" / "using-a-model.md"
(CODE,) = re.findall(
    r"^```python\n(import [^\n]*torchvision\n.*?)^```",
    PAGE.read_text(encoding="utf-8"),
    re.M | re.S,
)
# Runs in PyTorch's environment, after the code of the page.
SAVE = f"""
import numpy
numpy.save("found.npy", [embed(f"{{number}}.png") for number in range({IMAGES})])
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="as for --model")
    parser.add_argument("--pytorch-python", default=sys.executable, metavar="PYTHON")
    args = parser.parse_args()
    worst = 0.0
    print("| network | largest difference | nearest embeddings |\n|---|---|---|")
    for name in args.names:
        with tempfile.TemporaryDirectory() as folder:
            expected, found = embeddings(name, Path(folder), args.pytorch_python)
        difference = float(abs(found - expected).max())
        distances = np.linalg.norm(expected[:, None] - expected, axis=2)
        nearest = distances[~np.eye(IMAGES, dtype=bool)].min()
        worst = max(worst, difference)
        print(f"| {name} | {difference:.1e} | {nearest:.3f} |", flush=True)
    return int(not worst <= LARGEST_DIFFERENCE)


def embeddings(name: str, folder: Path, torch_python: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the embeddings of a network here and in PyTorch, both (4, 128)."""
    config = parse([f"--model={name}", "--embed-dim=128"])
    net = random_net(name, default_sizes(name)[1])
    model, output = folder / "birds.params", folder / "birds.safetensors"
    save_parameters(net, str(model), describe(config.model, config.data, "noise", 0, 0.0))
    with contextlib.redirect_stdout(io.StringIO()):
        export.main([str(model), str(output)])
    rng = np.random.default_rng(0)
    files = [str(folder / f"{number}.png") for number in range(IMAGES)]
    for file in files:
        # Noise of several scales, as in photographs.
        scales = [cv2.resize(rng.random((side, side, 3)), (320, 300)) for side in (4, 16, 64)]
        cv2.imwrite(file, (sum(scales) * 85).astype(np.uint8))
    expected = load_model(model).embed(files)
    code = CODE
    if pytorch_network(resolve_name(name) or "")[0] == "timm":
        # As the page says.
        code = code.replace("torchvision.models.get_model", "timm.create_model")
        code = code.replace(", torchvision\n", ", timm\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [torch_python, "-c", code + SAVE]
    subprocess.run(command, check=True, cwd=folder, env=environment)
    return expected, np.load(folder / "found.npy")


if __name__ == "__main__":
    sys.exit(main())
