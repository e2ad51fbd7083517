"""Cut clips from the videos and encode them to latents with the tokenizer."""
