"""Data sets: tar shards, latents, the guide's files, prompts; written by stages, read by training."""
