"""The video tokenizers: networks, quantiser, faster arithmetic, perceptual distance."""
