"""Images from files to batches: data sets, decoding, the pixel cache, balanced batches."""
