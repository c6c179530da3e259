"""Comparison with the original example. It runs unchanged, in separate processes."""
