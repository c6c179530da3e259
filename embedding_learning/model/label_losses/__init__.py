"""Losses of a batch's embeddings and their classes, without a sampling: one file each."""
