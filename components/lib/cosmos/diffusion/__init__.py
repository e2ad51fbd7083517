"""The diffusion process: EDM loss, samplers, text embeddings, text to video."""
