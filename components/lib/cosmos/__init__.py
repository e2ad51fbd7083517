"""The Cosmos-1.0 networks: tokenizers, DiT, noise schedule, samplers.

Parameter names and shapes are those of the published checkpoints, so a state dict of ours is an
official one. Importing this package imports nothing heavy; `dit.config` and `tokenizer.config`
hold the settings without torch.
"""
