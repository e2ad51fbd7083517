"""Checkpoints: what they hold, their files, where they lie."""
