"""Uses of a trained network: embedding, search and export."""
