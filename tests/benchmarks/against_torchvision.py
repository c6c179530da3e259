"""Do converted weights give torchvision's features?

    python -m tests.benchmarks.against_torchvision [--pytorch-python PYTHON] [NAME ...]

torchvision creates each network with random weights and running statistics of batch norm, and
computes its features of two random images. This program computes the features with the same weights
from a file of each format: .pth of the present, .pth as written before PyTorch 1.6, .safetensors,
and the .params that `convert` makes of the first one. Prints the largest difference divided by the
largest feature; exit status 1 if one is above 1e-4. Names that begin with timm/ are of timm.

PYTHON is that of an environment with torch, torchvision, safetensors and, for its networks, timm
(default: the Python that runs this). A network takes two seconds to a minute on one core; VGG
writes 2 GB into a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LARGEST_DIFFERENCE = 1e-4
# torchvision's or timm's name, and the name for --model.
NETWORKS = {
    **{f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"resnet{depth} as v1": f"resnet{depth}_v1" for depth in (18, 34)},
    "alexnet": "alexnet",
    **{name: name for depth in (11, 13, 16, 19) for name in (f"vgg{depth}", f"vgg{depth}_bn")},
    "squeezenet1_0": "squeezenet1_0",
    "squeezenet1_1": "squeezenet1_1",
    **{f"densenet{depth}": f"densenet{depth}" for depth in (121, 161, 169, 201)},
    "inception_v3": "inception_v3",
    "mobilenet_v2": "mobilenet_v2",
}
TIMM_NETWORKS = {
    "timm/resnet18": "resnet18",
    **{f"timm/resnet{n}{stem}": f"resnet{n}_v1{stem}" for n in (50, 101, 152) for stem in "cds"},
    "timm/vgg11_bn": "vgg11_bn",
    "timm/densenet121": "densenet121",
    "timm/inception_v3": "inception_v3",
    "timm/mobilenetv2_100": "mobilenet_v2",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare converted weights with torchvision.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: torchvision's networks")
    text = "a Python that has PyTorch"
    parser.add_argument("--pytorch-python", default=sys.executable, metavar="PYTHON", help=text)
    parser.add_argument("--make", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        write_reference(args.names[0], Path(args.make))
        return 0
    networks = {**NETWORKS, **TIMM_NETWORKS}
    worst = 0.0
    print(f"{'network':22}{'pth':>10}{'old pth':>10}{'safetens.':>10}{'params':>10}{'s':>7}")
    for name in args.names or NETWORKS:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            command = [args.pytorch_python, __file__, name, "--make", folder]
            environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            subprocess.run(command, check=True, env=environment)
            of_files = differences(networks[name], Path(folder))
        worst = max(worst, *of_files)
        cells = "".join(f"{value:10.1e}" for value in of_files)
        print(f"{name:22}{cells}{time.perf_counter() - begin:7.0f}", flush=True)
    return int(worst > LARGEST_DIFFERENCE)


def write_reference(name: str, folder: Path) -> None:
    """Writes the weights, images and features of a network. Runs in PyTorch's environment."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = create_network(name.split()[0]).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2)
    state = net.state_dict()
    torch.save(state, folder / "new.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "new.safetensors")
    side = 299 if "inception" in name else 224
    images = torch.randn(2, 3, side, side)
    features = compute_features(net, name, images).detach().numpy()
    np.savez(folder / "features.npz", images=images.numpy(), features=features)


def create_network(name: str):  # type: ignore[no-untyped-def]
    """Returns a network of torchvision or timm with random weights."""
    if name.startswith("timm/"):
        import timm

        return timm.create_model(name[len("timm/") :], pretrained=False)
    from torchvision import models

    if name == "inception_v3":
        # So it takes pixels with the usual normalization, as it does with ImageNet weights.
        return models.inception_v3(transform_input=True, init_weights=False)
    return models.get_model(name)


def compute_features(net, name: str, images):  # type: ignore[no-untyped-def]
    """Returns the input of the network's last layer."""
    import torch

    if name.startswith("squeezenet"):
        return net.features(images)
    if name == "timm/inception_v3":
        # It takes pixels in [-1, 1].
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        images = (images * deviation[:, None, None] + mean[:, None, None]) * 2 - 1
    if name.startswith("timm/"):
        net.reset_classifier(0)
        return net(images)
    holder, last = (net, "fc") if hasattr(net, "fc") else (net, "classifier")
    if isinstance(getattr(holder, last), torch.nn.Sequential):
        holder, last = net.classifier, str(len(net.classifier) - 1)
    setattr(holder, last, torch.nn.Identity())
    return net(images)


def differences(model: str, folder: Path) -> list[float]:
    """Returns the relative difference of this program's features, for each file."""
    import embedding_learning  # noqa: F401, I001
    import mxnet as mx

    from embedding_learning.model import backbones

    backbones.convert(model, str(folder / "new.pth"), str(folder / "new.params"))
    with np.load(folder / "features.npz") as arrays:
        images, features = arrays["images"], arrays["features"]
    of_files = []
    for file in ("new.pth", "old.pth", "new.safetensors", "new.params"):
        net = backbones.create(model, [mx.cpu()], pretrained_params=str(folder / file))
        own = net(mx.nd.array(images)).asnumpy().reshape(features.shape)
        of_files.append(float(np.abs(own - features).max() / np.abs(features).max()))
    return of_files


if __name__ == "__main__":
    sys.exit(main())
