"""Pictures of what was learned, each a PNG or SVG file: arrays in, a file out.

t-SNE maps with photographs or with points as marks, rows of queries with their nearest neighbours,
the curves of a run, the distances of its pairs, and a comparison's error bars. No MXNet; thumbnails
are asked for one at a time, when they are drawn.
"""

from __future__ import annotations

from embedding_learning.plots.canvas import Thumbnail, check_path
from embedding_learning.plots.comparison import spreads
from embedding_learning.plots.distance_histograms import distances
from embedding_learning.plots.queries import average_precision, choose_queries
from embedding_learning.plots.query_gallery import gallery, search_results
from embedding_learning.plots.run_curves import curves
from embedding_learning.plots.tsne import tsne_photographs, tsne_points

__all__ = [
    "Thumbnail",
    "average_precision",
    "check_path",
    "choose_queries",
    "curves",
    "distances",
    "gallery",
    "search_results",
    "spreads",
    "tsne_photographs",
    "tsne_points",
]
