"""t-SNE of embeddings, and the choice of images if there are very many."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import numpy as np
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from embedding_learning.runtime.progress import open_bar

# The number of near neighbors of an image, as the authors of t-SNE recommend.
_PERPLEXITY = 30.0
_ITERATIONS = 1000
# Images of a class that are enough to show whether they lie together.
_SEEN_OF_CLASS = 20


def choose_rows(labels: np.ndarray, seed: int, most: int) -> np.ndarray:
    """Returns the ascending rows of at most so many images; all rows if there are no more.

    If there are few classes, equally many random images of each are chosen, or all that a class
    has. If there are many, some random classes are chosen, with enough images to show whether the
    images of a class lie together.

    Parameters
    ----------
    labels : array (n,)
    seed : int
    most : int
        At least 1.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    _, members = np.unique(labels, return_inverse=True)
    sizes = np.bincount(members)
    # The position of each image among those of its class in the shuffled order, from 0.
    by_class = shuffled[np.argsort(members[shuffled], kind="stable")]
    position = np.empty(len(labels), int)
    position[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turn = rng.permutation(len(sizes))[members]
    # First the first twenty images of each class, class by class; then the others, in turn.
    first = position < _SEEN_OF_CLASS
    order = np.lexsort((turn, np.where(first, 0, position), np.where(first, turn, len(sizes))))
    return np.sort(order[:most])


def tsne(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """Computes t-SNE of the embeddings by their Euclidean distances, (n, 2) float32.

    van der Maaten and Hinton, *Visualizing Data using t-SNE*, JMLR 2008, in scikit-learn's
    Barnes-Hut form. It starts from the two directions of largest variance, so points that are far
    apart tend to stay far apart. The perplexity is 30, and less for fewer than 91 images. The seed
    fixes the result. Memory grows with n: only the 90 nearest of each embedding are kept. A bar
    shows the iterations.

    Parameters
    ----------
    embeddings : array (n, d)
    seed : int

    Raises
    ------
    ValueError
        If there is no embedding, or a value is not finite.
    """
    x = np.ascontiguousarray(embeddings, np.float32)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"embeddings (n, d) expected, not {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("the embeddings contain values that are not finite")
    if len(x) == 1:
        return np.zeros((1, 2), np.float32)
    method = TSNE(
        perplexity=min(_PERPLEXITY, max(1.0, (len(x) - 1) / 3)),
        init=_start(x, np.random.default_rng(seed)),
        learning_rate="auto",
        max_iter=_ITERATIONS,
        random_state=seed,
        verbose=2,
    )
    # Three or more threads add their sums in any order, and the last bit decides where a point
    # lands. The sum of two threads is the same in either order.
    with threadpool_limits(2), _iterations_in_a_bar():
        return np.asarray(method.fit_transform(x), np.float32)


@contextmanager
def _iterations_in_a_bar() -> Iterator[None]:
    """Shows how far t-SNE is. scikit-learn only prints it: every 50 iterations a line."""
    with open_bar(_ITERATIONS, "t-SNE", "iteration") as bar:

        class Reader(io.TextIOBase):
            def write(self, text: str) -> int:
                for number in re.findall(r"Iteration (\d+):", text):
                    bar.update(int(number) - bar.n)
                return len(text)

        with redirect_stdout(Reader()):
            yield


def _start(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the first two principal components, 1e-4 wide, plus noise of a hundredth of that.

    Without the noise, equal embeddings would start on one point, where nothing pushes them apart.
    """
    centered = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    _, directions = np.linalg.eigh(centered.T @ centered)
    directions = directions[:, ::-1][:, :2]
    # The library may return either sign of a direction: choose one.
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(directions.shape[1])])
    start = np.zeros((len(x), 2))
    start[:, : directions.shape[1]] = centered @ directions
    start /= start[:, 0].std() or 1.0
    return (1e-4 * (start + 0.01 * rng.normal(size=start.shape))).astype(np.float32)
