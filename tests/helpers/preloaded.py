"""What the process imports from which `forked` forks others."""

from embedding_learning.training import run  # noqa: F401
