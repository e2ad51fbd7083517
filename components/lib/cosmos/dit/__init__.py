"""The diffusion transformer: network, blocks, attention, tensor parallelism."""
