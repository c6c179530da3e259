"""Registers the tiny backbones: Python imports a module of this name when it starts."""

from tests.helpers import tiny_backbone

# Kept, since its end would remove them.
registered = tiny_backbone.registered()
registered.__enter__()
