"""A memory across batches, after Wang et al., Cross-Batch Memory for Embedding Learning (2020)."""

from __future__ import annotations

import mxnet as mx

# The label of a row that holds nothing yet.
_EMPTY = -1.0


class Memory:
    """The embeddings of the last images that trained, and their classes; the newest rows last.

    No gradient flows into it (section 3.2 of the paper: embeddings change slowly).

    Parameters
    ----------
    size : int
        Images that are remembered.
    dimension : int
        Dimension d of the embeddings.
    device : Context

    Attributes
    ----------
    embeddings : NDArray (size, d)
    labels : NDArray (size,)
        Below 0 for rows that hold nothing yet.
    is_open : bool
        Whether batches are remembered.
    """

    def __init__(self, size: int, dimension: int, device: mx.Context) -> None:
        self.embeddings = mx.nd.zeros((size, dimension), device)
        self.labels = mx.nd.full((size,), _EMPTY, device)
        self.is_open = True

    def push(self, embeddings: mx.nd.NDArray, labels: mx.nd.NDArray) -> None:
        """Adds a batch (n, d) with its labels (n,), in place of the oldest rows. Does not block."""
        if self.is_open:
            self.embeddings = _shift(self.embeddings, embeddings)
            self.labels = _shift(self.labels, labels)

    def arrays(self) -> dict[str, mx.nd.NDArray]:
        """Returns what a checkpoint holds."""
        return {"memory/embeddings": self.embeddings, "memory/labels": self.labels}

    def restore(self, arrays: dict[str, mx.nd.NDArray]) -> None:
        """Restores what `arrays` returned. Raises ValueError for anything else."""
        own = self.arrays()
        if arrays.keys() != own.keys() or any(arrays[n].shape != own[n].shape for n in own):
            raise ValueError("memory")
        device = self.labels.context
        self.embeddings = arrays["memory/embeddings"].as_in_context(device)
        self.labels = arrays["memory/labels"].as_in_context(device)


def _shift(former: mx.nd.NDArray, added: mx.nd.NDArray) -> mx.nd.NDArray:
    """Returns the last rows of both arrays together, as many as `former` has."""
    size, count = len(former), len(added)
    if count >= size:
        return added[count - size :].copy()
    return mx.nd.concat(former[count:], added, dim=0)
