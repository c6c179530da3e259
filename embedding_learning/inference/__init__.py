"""What a trained network is used for: embedding, search, export."""
