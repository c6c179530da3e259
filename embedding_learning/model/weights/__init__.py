"""Weights: Gluon parameter files, PyTorch files, the model zoo, and the names in each."""
