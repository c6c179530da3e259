"""The commands: train.py, and a module for each verb of `python -m embedding_learning`."""
