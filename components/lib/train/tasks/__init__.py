"""What is trained: the diffusion model, the tokenizers, low-rank updates."""
