"""TorchScript tokenizers: read without trust, write as NVIDIA does."""
