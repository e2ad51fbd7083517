"""Encode every distinct prompt once with the T5 encoder."""
