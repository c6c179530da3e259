"""Loss and gradients of losses without a sampling, as pytorch-metric-learning computes them.

The other half of `against_pml_losses`, run by a Python with PyTorch: reads an .npz, and writes
another. Then it says how long a loss takes, for each line of the input with a number of calls and
the loss.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from pytorch_metric_learning import losses, miners, reducers


def main(source: str, target: str) -> None:
    """Computes each loss of the file `source`, writes the results to `target`, and times losses."""
    inputs, outputs = np.load(source), {}
    steps = {key: make_step(key, inputs) for key in {name.partition("/")[0] for name in inputs}}
    for key, step in steps.items():
        outputs |= {f"{key}/{name}": array.numpy() for name, array in step().items()}
    np.savez(target, **outputs)
    print("computed", flush=True)
    for line in sys.stdin:
        calls, key = line.rstrip("\n").split(" ", 1)
        steps[key]()
        started = time.perf_counter()
        for _ in range(int(calls)):
            steps[key]()
        print((time.perf_counter() - started) / int(calls), flush=True)


def make_step(key: str, inputs: Mapping[str, np.ndarray]) -> Callable[[], dict[str, torch.Tensor]]:
    """Returns a function that computes a loss and its gradients."""
    x, labels, proxies = (
        torch.from_numpy(inputs[f"{key}/{name}"]) for name in ("embeddings", "labels", "proxies")
    )
    labels = labels.long()
    x.requires_grad_()
    proxies.requires_grad_()
    compute = make_loss(key, proxies)

    def step() -> dict[str, torch.Tensor]:
        x.grad = proxies.grad = None
        value = compute(x, labels)
        value.backward()
        arrays = {"loss": value.detach(), "embeddings": x.grad}
        return arrays if proxies.grad is None else {**arrays, "proxies": proxies.grad}

    return step


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_loss(key: str, proxies: torch.Tensor) -> Loss:
    """Returns the loss of embeddings and labels that a key of `against_pml_losses` names."""
    classes, dimension = proxies.shape
    name = key.partition(",")[0]
    if name == "multi-similarity":
        mine = miners.MultiSimilarityMiner(0.1)
        loss = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
        return lambda x, labels: loss(x, labels, mine(x, labels))
    if name == "proxy-nca":
        # This library adds the own proxy to the denominator: log(1 + e^loss) of each image.
        loss = losses.ProxyNCALoss(classes, dimension, reducer=reducers.DoNothingReducer())
        replace(loss, "proxies", proxies)
        return lambda x, labels: torch.log(torch.expm1(loss(x, labels)["loss"]["losses"])).mean()
    if name == "proxy-anchor":
        loss = losses.ProxyAnchorLoss(classes, dimension, margin=0.1, alpha=32)
        replace(loss, "proxies", proxies)
    elif name == "normalized-softmax":
        loss = losses.NormalizedSoftmaxLoss(classes, dimension, temperature=1 / 20)
        replace(loss, "W", proxies.t())
    else:
        loss = losses.ArcFaceLoss(classes, dimension, margin=float(np.degrees(0.5)), scale=64)
        replace(loss, "W", proxies.t())
    return loss


def replace(loss: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    """Puts a tensor in the place of a loss's parameter, so that its gradient flows back."""
    delattr(loss, name)
    setattr(loss, name, value)
    loss.cast_types = lambda *_: None


if __name__ == "__main__":
    main(*sys.argv[1:])
