"""Loss and gradients of losses without a sampling, as pytorch-metric-learning computes them.

The other half of `against_pml_losses`, run by a Python with PyTorch: reads an .npz, writes another.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from pytorch_metric_learning import losses, miners, reducers


def main(source: str, target: str) -> None:
    """Computes each loss of the file `source` and writes the results to `target`."""
    inputs, outputs = np.load(source), {}
    for key in {name.partition("/")[0] for name in inputs}:
        x, labels, proxies = (
            torch.from_numpy(inputs[f"{key}/{name}"])
            for name in ("embeddings", "labels", "proxies")
        )
        x.requires_grad_()
        proxies.requires_grad_()
        value = compute(key, x, labels.long(), proxies)
        value.backward()
        outputs[f"{key}/loss"] = value.detach().numpy()
        outputs[f"{key}/embeddings"] = x.grad.numpy()
        if proxies.grad is not None:
            outputs[f"{key}/proxies"] = proxies.grad.numpy()
    np.savez(target, **outputs)


def compute(key: str, x: torch.Tensor, labels: torch.Tensor, proxies: torch.Tensor) -> torch.Tensor:
    """Returns the loss of the row of `model.methods` that the key begins with, as a float64."""
    classes, dimension = proxies.shape
    name = key.partition(",")[0]
    if name == "multi-similarity":
        pairs = miners.MultiSimilarityMiner(0.1)(x, labels)
        return losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)(x, labels, pairs)
    if name == "proxy-nca":
        # This library adds the own proxy to the denominator: log(1 + e^loss) of each image.
        loss = losses.ProxyNCALoss(classes, dimension, reducer=reducers.DoNothingReducer())
        replace(loss, "proxies", proxies)
        each = loss(x, labels)["loss"]["losses"]
        return torch.log(torch.expm1(each)).mean()
    if name == "proxy-anchor":
        loss = losses.ProxyAnchorLoss(classes, dimension, margin=0.1, alpha=32)
        replace(loss, "proxies", proxies)
    elif name == "normalized-softmax":
        loss = losses.NormalizedSoftmaxLoss(classes, dimension, temperature=1 / 20)
        replace(loss, "W", proxies.t())
    else:
        loss = losses.ArcFaceLoss(classes, dimension, margin=float(np.degrees(0.5)), scale=64)
        replace(loss, "W", proxies.t())
    return loss(x, labels)


def replace(loss: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    """Puts a tensor in the place of a loss's parameter, so that its gradient flows back."""
    delattr(loss, name)
    setattr(loss, name, value)
    loss.cast_types = lambda *_: None


if __name__ == "__main__":
    main(*sys.argv[1:])
