"""Metrics, exact nearest neighbors and clustering of embeddings. numpy only, no MXNet."""
