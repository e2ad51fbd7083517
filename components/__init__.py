"""The stages of a post-training pipeline, one folder each, and what they share in `lib`."""
