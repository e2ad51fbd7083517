"""Measures a trained model and its base on held-out video and writes the report."""
