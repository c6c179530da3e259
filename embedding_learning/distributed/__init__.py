"""Training in several processes, with MXNet's parameter server."""
