"""The video tokenizers: Cosmos-1.0-Tokenizer, continuous (CV8x8x8) and discrete (DV8x16x16)."""

from __future__ import annotations

from components.lib.cosmos.families.record import CANONICAL, Family, diffusers_files

TOKENIZER = Family(
    name="tokenizer",
    noun="video tokenizer",
    about="A causal video tokenizer of the Cosmos-1.0 family.",
    settings="components.lib.cosmos.tokenizer.config:TokenizerConfig",
    presets="components.lib.cosmos.tokenizer.config:TOKENIZER_PRESETS",
    network="components.lib.cosmos.tokenizer.network:CosmosTokenizer",
    variants={
        "jit": (("autoencoder.jit",), ("encoder.jit", "decoder.jit")),
        "diffusers": diffusers_files("vae/"),
        "canonical": CANONICAL,
    },
    optional=("config.json", "mean_std.pt"),
    uses={
        "diffusers": "from diffusers import AutoencoderKLCosmos\n"
        'model = AutoencoderKLCosmos.from_pretrained("{place}")',
        "jit": "import torch\n"
        'encode = torch.jit.load("{place}/encoder.jit")\n'
        'decode = torch.jit.load("{place}/decoder.jit")\n'
        "latent = encode(video)[0]  # video [B, 3, 8k+1, H, W] in [-1, 1], dtype of the weights",
    },
    hub_tag="feature-extraction",
    training="tokenizer",
    title="Tokenizer post-training",
    data_kind="tokenizer-dataset",
    inputs={"checkpoint": "model.jit_ckpt_pth", "vgg": "model.vgg_path"},
)
