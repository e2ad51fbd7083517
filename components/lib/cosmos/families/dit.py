"""The diffusion transformers: Cosmos-1.0-Diffusion, Text2World and Video2World."""

from __future__ import annotations

from components.lib.cosmos.families.record import CANONICAL, Family, diffusers_files

DIT = Family(
    name="dit",
    noun="diffusion model",
    about="A diffusion transformer of the Cosmos-1.0 family (latent video diffusion, EDM).",
    settings="components.lib.cosmos.dit.config:DiTConfig",
    presets="components.lib.cosmos.dit.config:DIT_PRESETS",
    network="components.lib.cosmos.dit.network:DiT",
    variants={
        "model.pt": (("model.pt",),),
        "nemo": (("nemo/*",), ("metadata.json", "*")),
        "diffusers": diffusers_files("transformer/"),
        "canonical": CANONICAL,
    },
    optional=("config.json",),
    uses={
        "diffusers": "from diffusers import CosmosTransformer3DModel\n"
        'model = CosmosTransformer3DModel.from_pretrained("{place}")',
        "model.pt": 'import torch\nweights = torch.load("{place}/model.pt", weights_only=True)',
    },
    hub_tag="text-to-video",
    training="diffusion",
    title="Diffusion post-training",
    data_kind="latent-dataset",
    inputs={"checkpoint": "resume.restore_config.path", "prompts": "data.prompts"},
)
