"""Embeddings in the plane: t-SNE, and which images it is made of when there are very many."""

from __future__ import annotations

import numpy as np
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

# Neighbors that an image counts as near, as the authors of t-SNE recommend.
_PERPLEXITY = 30.0
# Images of a map: more could not be told apart in it, and take minutes.
MOST_IMAGES = 10_000
# Images of a class without which it cannot be seen to lie together.
_SEEN_OF_CLASS = 20


def choose_rows(labels: np.ndarray, seed: int, most: int = MOST_IMAGES) -> np.ndarray:
    """The rows of at most so many images, rising; all of them if there are no more.

    Of few classes, equally many images of each, drawn at random, as far as they have them. Of many
    classes, some of the classes, drawn at random, so that the images of one still show whether
    they lie together: one image of each would not.

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
    # Each image's place among its class's in the shuffled order, from 0.
    by_class = shuffled[np.argsort(members[shuffled], kind="stable")]
    place = np.empty(len(labels), int)
    place[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turn = rng.permutation(len(sizes))[members]
    # The first twenty images of one class after another; then all classes' next, by turns.
    first = place < _SEEN_OF_CLASS
    order = np.lexsort((turn, np.where(first, 0, place), np.where(first, turn, len(sizes))))
    return np.sort(order[:most])


def tsne(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE of the embeddings by their Euclidean distances, (n, 2) float32.

    van der Maaten and Hinton, *Visualizing Data using t-SNE*, JMLR 2008, in scikit-learn's
    Barnes-Hut form. It starts from the two directions of largest variance, so that what lies far
    apart tends to stay so. The perplexity is 30, and less for fewer than 91 images. The seed fixes
    the result.

    Parameters
    ----------
    embeddings : array (n, d)
    seed : int

    Raises
    ------
    ValueError
        If there is no embedding or one of its values is not finite.
    """
    x = np.ascontiguousarray(embeddings, np.float32)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"embeddings (n, d) expected, not {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("the embeddings hold values that are not finite")
    if len(x) == 1:
        return np.zeros((1, 2), np.float32)
    method = TSNE(
        perplexity=min(_PERPLEXITY, max(1.0, (len(x) - 1) / 3)),
        init=_start(x, np.random.default_rng(seed)),
        learning_rate="auto",
        random_state=seed,
    )
    # Sums over three or more threads come in any order, and the last bit decides where a point
    # goes; two threads' sum is the same in either order.
    with threadpool_limits(2):
        return np.asarray(method.fit_transform(x), np.float32)


def _start(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The first two principal components, 1e-4 wide, and a hundredth of that at random.

    Equal embeddings would else start on one point, where nothing pushes them apart.
    """
    centered = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    _, directions = np.linalg.eigh(centered.T @ centered)
    directions = directions[:, ::-1][:, :2]
    # The sign of a direction is the library's choice: fix it.
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(directions.shape[1])])
    start = np.zeros((len(x), 2))
    start[:, : directions.shape[1]] = centered @ directions
    start /= start[:, 0].std() or 1.0
    return (1e-4 * (start + 0.01 * rng.normal(size=start.shape))).astype(np.float32)
