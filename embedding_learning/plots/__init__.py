"""Plots of what was learned, each a PNG or SVG file: arrays in, a file out.

t-SNE maps with photographs or with points as marks, queries with their nearest neighbors, the
curves of a run, the distances of its pairs, the error bars of a comparison, and the ROC of a
verification. No MXNet. A thumbnail is read when it is drawn, one at a time.
"""

from __future__ import annotations

from embedding_learning.plots.canvas import Thumbnail, check_plot_path, class_title
from embedding_learning.plots.comparison import plot_comparison
from embedding_learning.plots.distance_histograms import plot_distances
from embedding_learning.plots.query_gallery import (
    average_precision,
    choose_queries,
    plot_gallery,
    plot_search_results,
)
from embedding_learning.plots.roc import plot_roc
from embedding_learning.plots.run_curves import plot_run_curves
from embedding_learning.plots.tsne import plot_tsne_photographs, plot_tsne_points

__all__ = [
    "Thumbnail",
    "average_precision",
    "check_plot_path",
    "choose_queries",
    "class_title",
    "plot_comparison",
    "plot_distances",
    "plot_gallery",
    "plot_roc",
    "plot_run_curves",
    "plot_search_results",
    "plot_tsne_photographs",
    "plot_tsne_points",
]
