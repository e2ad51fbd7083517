"""The T5 text encoder: a folder of transformers, never trained here."""

from __future__ import annotations

from components.lib.cosmos.families.record import Family

T5 = Family(
    name="t5",
    noun="text encoder",
    about="A T5 text encoder.",
    variants={
        "auto": (
            ("config.json", "model.safetensors"),
            ("config.json", "model.safetensors.index.json", "model-*.safetensors"),
            ("config.json", "pytorch_model.bin"),
            ("config.json", "pytorch_model.bin.index.json", "pytorch_model-*.bin"),
        )
    },
    optional=(
        "tokenizer.json",
        "spiece.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
)
