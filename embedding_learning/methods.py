"""STAND-IN: the names of losses and samplings."""

LOSSES = {
    "margin": "margin",
    "contrastive": "contrastive",
    "triplet": "triplet",
    "triplet-euclidean": "triplet-euclidean",
}
SAMPLINGS = {
    "distance-weighted": "distance weighted",
    "random": "random",
    "semi-hard": "semi-hard",
    "hard": "hard",
}
