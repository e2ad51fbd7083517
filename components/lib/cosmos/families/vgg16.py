"""VGG16, whose features judge pictures in the perceptual loss; never trained here."""

from __future__ import annotations

from components.lib.cosmos.families.record import Family

VGG16 = Family(
    name="vgg16",
    noun="feature network",
    about="VGG16 features for a perceptual loss.",
    settings="components.lib.cosmos.formats.vgg:VGGConfig",
    shapes="components.lib.cosmos.formats.vgg:shapes_of",
    variants={"auto": (("*.safetensors",), ("*.pth",), ("pytorch_model.bin",))},
    optional=("config.json",),
)
