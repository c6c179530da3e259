"""The network that is trained: backbone, embedding and normalization, with or without sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mxnet.gluon import HybridBlock, nn

from embedding_learning.model.cpu_fusion import fuse_for_training
from embedding_learning.model.sampling import DistanceWeightedSampling
from embedding_learning.model.weights.catalog import DEVIATION, MEAN


class ImageNormalization(HybridBlock):
    """Normalizes RGB pixels for pretrained backbones: uint8 (n, 3, h, w) -> float32, same shape.

    After a cast to float16, it still computes in float32 and rounds its output.
    """

    _dtype = "float32"

    def cast(self, dtype: str) -> None:
        super().cast(dtype)
        self._dtype = dtype

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        # With mean and deviation scaled to 255, the pixels need no scaling of their own.
        mean, deviation = (tuple(255 * value for value in v) for v in (MEAN, DEVIATION))
        x = F.image.normalize(F.cast(x, "float32"), mean=mean, std=deviation)
        return x if self._dtype == "float32" else F.cast(x, self._dtype)


class L2Normalization(HybridBlock):
    """Scales each row to unit length: (n, d) -> (n, d).

    After a cast to float16, its input is float16 and its output still float32, so all that follows,
    up to the loss, is float32.
    """

    _dtype = "float32"

    def cast(self, dtype: str) -> None:
        super().cast(dtype)
        self._dtype = dtype

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        if self._dtype != "float32":
            x = F.cast(x, "float32")
        return F.L2Normalization(x, mode="instance")


class MarginNet(HybridBlock):
    """Embedding network, with its sampling of negatives if it has one (Wu et al., 2017).

    Its parameters have the names of the original example's network (``base_net.*``,
    ``dense.*``), so that each loads the other's files.

    Parameters
    ----------
    base_net : HybridBlock
        Backbone: from (n, 3, height, width) to features (n, ...).
    emb_dim : int
        Dimension of the embedding.
    batch_k : int
        Consecutive images per class in a batch.
    feat_dim : int, optional
        The size of an additional fully connected layer between backbone and embedding.
    sampling : callable, optional
        From `batch_k` to a :class:`Sampling`. None: the output is the embeddings alone.
    preprocess : HybridBlock, optional
        Applied to the images first, within the same graph.

    Inputs:
        - **x** (n, 3, height, width): normalized images, or the input of `preprocess`; rows 0 to
          batch_k - 1 are of one class, the next batch_k of another, and so on.

    Outputs: those of :class:`DistanceWeightedSampling`, or **embeddings** (n, emb_dim).
    """

    # On a CPU; set to False if the backbone cannot be trained with fused layers.
    should_fuse = True

    def __init__(
        self,
        base_net: HybridBlock,
        emb_dim: int,
        batch_k: int,
        feat_dim: int | None = None,
        sampling: Callable[[int], HybridBlock] | None = DistanceWeightedSampling,
        preprocess: HybridBlock | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.preprocess = preprocess
            self.base_net = base_net
            self.feature = nn.Dense(feat_dim) if feat_dim else None
            self.dense = nn.Dense(emb_dim)
            self.normalize = L2Normalization()
            self.sampling = sampling(batch_k) if sampling else None

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        embeddings = self.embed(x)
        return self.sampling(embeddings) if self.sampling else embeddings

    def _get_graph(self, *arguments: Any) -> tuple[Any, Any]:
        """Returns the graph that training compiles after `hybridize`."""
        is_new = not self._cached_graph
        inputs, outputs = super()._get_graph(*arguments)
        if is_new and self.should_fuse and arguments[0].context.device_type == "cpu":
            outputs = fuse_for_training(outputs)
            self._cached_graph: tuple[Any, Any] = inputs, outputs
        return inputs, outputs

    def embed(self, x: Any) -> Any:
        """Returns the embeddings, without sampling: (n, 3, height, width) -> (n, emb_dim)."""
        if self.preprocess is not None:
            x = self.preprocess(x)
        z = self.base_net(x)
        if self.feature is not None:
            z = self.feature(z)
        return self.normalize(self.dense(z))
