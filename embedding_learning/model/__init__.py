"""The network: backbone, embedding, sampling and losses, all HybridBlocks."""
