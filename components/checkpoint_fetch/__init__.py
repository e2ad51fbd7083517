"""Fetches a checkpoint and converts it to the canonical model folder."""
