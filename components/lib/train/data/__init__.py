"""From data sets to batches: order of samples, loading, noise."""
