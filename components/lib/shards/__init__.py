"""Data sets: tar shards, latents, the guide's files, prompts; stages write, training reads them."""
